//! Calling other nodes.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::certificate::{Certificates, Identity};
use super::gate::STACK;
use super::tunnel::Tunnel;
use super::wording::Cause;
use crate::control::client::Client;
use crate::control::message::{CONTROL, Mode, Response, encode_call, error_from_wire};
use crate::control::status::PROTOCOL;
use crate::control::wire::wait;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::NodeName;
use crate::sys::stream::Stream;

/// Connections to one node that are kept for the next call.
const KEPT: usize = 8;
/// … for so long.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// The most bytes of the first answer.
const HELLO_MAX: usize = 64 << 10;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until the other host has accepted.
    pub connect: Duration,
    /// From then until both ends know each other, and the other has said what it speaks.
    pub hello: Duration,
    /// Between two pieces of an answer.
    pub answer: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        let (connect, hello) = (Duration::from_secs(3), Duration::from_secs(5));
        Self { connect, hello, answer: Some(Duration::from_secs(30)) }
    }
}

/// Connects to other nodes, and keeps connections for the next call. Copies share them.
///
/// Errors are one line each, and of these kinds: [`Kind::System`] where nobody could be reached or a connection broke, which
/// may be different later; [`Kind::Invalid`] where one end's certificate is not good for the other; [`Kind::Unsupported`]
/// for a node with a newer protocol; and those that the called method answers.
#[derive(Debug, Clone)]
pub struct Dialer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    certificates: Certificates,
    timeouts: Timeouts,
    kept: Mutex<HashMap<(NodeName, SocketAddr), Vec<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    client: Client,
    identity: Arc<Identity>,
    since: Instant,
}

/// A connection to a node: a [`Client`]. It is closed when it is dropped, unless it is given back.
#[derive(Debug)]
pub struct Line {
    dialer: Dialer,
    to: (NodeName, SocketAddr),
    client: Client,
    identity: Arc<Identity>,
}

impl Dialer {
    /// For the node whose certificates these are.
    #[must_use]
    pub fn new(certificates: Certificates, timeouts: Timeouts) -> Self {
        Self(Arc::new(Shared { certificates, timeouts, kept: Mutex::default() }))
    }

    /// Calls a method of a node once.
    ///
    /// # Errors
    /// Those of [`Dialer`], and what the node answers. A connection that breaks says nothing of whether the method was
    /// called.
    pub fn call<T: DeserializeOwned>(
        &self,
        to: (&NodeName, SocketAddr),
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<T> {
        let mut line = self.connect(to.0, to.1)?;
        let (answer, _) = line.call(method, parameters)?;
        line.keep();
        Ok(answer)
    }

    /// A connection to a node, one that was kept if there is one. Give it back with [`Line::keep`] once a call was answered to
    /// its end.
    ///
    /// # Errors
    /// Those of [`Dialer`].
    pub fn connect(&self, name: &NodeName, address: SocketAddr) -> Result<Line> {
        let (to, identity) = ((name.clone(), address), self.0.certificates.identity());
        let kept = self.take(&to, &identity);
        let mut client = match kept {
            Some(client) => client,
            None => self.dial(name, address, &identity)?,
        };
        client.set_patience(self.0.timeouts.answer);
        Ok(Line { dialer: self.clone(), to, client, identity })
    }

    /// One that is as good as new: of the same certificates, not old, and nothing has come on it.
    fn take(&self, to: &(NodeName, SocketAddr), identity: &Arc<Identity>) -> Option<Client> {
        let mut kept = self.lock();
        let of_node = kept.get_mut(to)?;
        while let Some(Kept { client, identity: then, since }) = of_node.pop() {
            let silent = matches!(wait(&mut [PollFd::new(&client, PollFlags::IN)], Some(Duration::ZERO)), Ok(false));
            if silent && since.elapsed() < KEPT_FOR && Arc::ptr_eq(identity, &then) {
                return Some(client);
            }
        }
        kept.remove(to);
        None
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(NodeName, SocketAddr), Vec<Kept>>> {
        // What is in there is whole at every moment.
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dial(&self, name: &NodeName, address: SocketAddr, identity: &Identity) -> Result<Client> {
        let operation = format!("connect to node '{name}' at {address}");
        let fail = |kind: Kind, cause: String| Error::new(kind, operation.clone(), cause);
        let expected =
            ServerName::try_from(name.as_str().to_owned()).map_err(|error| fail(Kind::Invalid, error.to_string()))?;
        let tls = ClientConnection::new(Arc::clone(&identity.client), expected)
            .map_err(|error| fail(Kind::Invalid, error.to_string()))?;
        let tcp = TcpStream::connect_timeout(&address, self.0.timeouts.connect).map_err(|error| {
            let Cause { kind, text } = error.into();
            fail(kind, text)
        })?;
        let mut tunnel = Tunnel::new(tcp, tls).map_err(|error| error.during(operation.clone()))?;
        let until = Instant::now() + self.0.timeouts.hello;
        let hello = encode_call(&format!("{CONTROL}.GetStatus"), &json!({}), Mode::Once)?;
        // Whether the other end is content with our certificate is known only by what it sends after the handshake.
        let shaken = tunnel.shake_until(until).and_then(|()| tunnel.exchange(&hello, HELLO_MAX, until));
        let answer = shaken.map_err(|Cause { kind, text }| fail(kind, text))?;
        check_hello(&answer).map_err(|error| error.during(operation.clone()))?;
        let (ours, theirs) = Stream::pair()?;
        let carry = move || tunnel.carry(&theirs);
        std::thread::Builder::new()
            .name("to-node".to_owned())
            .stack_size(STACK)
            .spawn(carry)
            .context(|| operation.clone())?;
        Ok(Client::over(ours))
    }
}

/// That what the other end speaks is known here.
fn check_hello(answer: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Hello {
        /// What daemons before there were nodes do not say.
        #[serde(default)]
        protocol: u32,
    }
    let operation = "ask what it speaks";
    let message = answer.strip_suffix(&[0]).unwrap_or(answer);
    let response: Response = serde_json::from_slice(message)
        .map_err(|error| Error::new(Kind::Damaged, operation, format!("its answer is none: {error}")))?;
    let parameters = response.parameters.as_deref().map_or("{}", |parameters| parameters.get());
    if let Some(name) = &response.error {
        let parameters = serde_json::from_str(parameters).context(|| operation)?;
        return Err(error_from_wire(name, &parameters));
    }
    let Hello { protocol } = serde_json::from_str(parameters).context(|| operation)?;
    if protocol > PROTOCOL {
        let cause = format!("it speaks protocol {protocol}, and this node up to {PROTOCOL}");
        return Err(Error::new(Kind::Unsupported, operation, cause).next("update this one first"));
    }
    Ok(())
}

impl Line {
    /// Gives a connection back, on which every call was answered to its end.
    pub fn keep(self) {
        let Self { dialer, to, client, identity } = self;
        let mut kept = dialer.lock();
        let of_node = kept.entry(to).or_default();
        if of_node.len() < KEPT {
            of_node.push(Kept { client, identity, since: Instant::now() });
        }
    }
}

impl Deref for Line {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Line {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}
