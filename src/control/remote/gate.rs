//! Where other nodes come in.
//!
//! ```text
//!  accept ──> handshake: at most so many at once, each for so long ──> who is it ──> a thread that carries its bytes
//!                 │ too many: the oldest goes     │ no good: told by TLS, and a line in the log
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustls::ServerConnection;

use super::certificate::Certificates;
use super::tunnel::{Shaken, Tunnel};
use crate::control::server::Entrance;
use crate::control::wire::wait;
use crate::error::{Context, Result};
use crate::sys::stream::Stream;

/// Enough to encrypt and decrypt.
pub(super) const STACK: usize = 256 << 10;
/// How long to leave callers waiting where not even one more can be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// Complaints about strangers come no more often than this: anybody can cause them.
const QUIET: Duration = Duration::from_secs(1);

/// What strangers may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Handshakes at once; of more the oldest is ended.
    pub handshakes: usize,
    /// How long one may take.
    pub time: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { handshakes: 64, time: Duration::from_secs(10) }
    }
}

/// A listener for other nodes. Dropping it closes the socket; nodes that are in stay.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the listener's thread has.
#[derive(Debug)]
struct Hall {
    listener: TcpListener,
    certificates: Certificates,
    entrance: Entrance,
    stop: Arc<OwnedFd>,
    bounds: Bounds,
    /// The oldest first.
    arrivals: VecDeque<Arrival>,
    complaints: Complaints,
}

/// Somebody who is not known yet.
#[derive(Debug)]
struct Arrival {
    tunnel: Tunnel,
    from: SocketAddr,
    until: Instant,
    waits: PollFlags,
}

/// A socket for a [`Gate`].
///
/// # Errors
/// Those of bind(2).
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>(listener)
    };
    bind().context(|| format!("listen for other nodes on {address}"))
}

impl Gate {
    /// Lets other nodes in through `entrance`. Those who came since the socket was bound have waited.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn open(listener: TcpListener, certificates: Certificates, entrance: Entrance, bounds: Bounds) -> Result<Self> {
        let operation = || "listen for other nodes";
        let address = listener.local_addr().context(operation)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(operation)?;
        let stop = Arc::new(stop);
        let mut hall = Hall {
            listener,
            certificates,
            entrance,
            stop: Arc::clone(&stop),
            bounds,
            arrivals: VecDeque::new(),
            complaints: Complaints::default(),
        };
        let run = move || hall.run();
        let thread = std::thread::Builder::new().name("gate".to_owned()).stack_size(STACK).spawn(run);
        Ok(Self { address, stop, thread: Some(thread.context(operation)?) })
    }

    /// Where it listens, with the port that was chosen if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // The only failure is that it was told already, 2^64 times.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // One that panicked listens no more, either.
            let _ = thread.join();
        }
    }
}

impl Hall {
    fn run(&mut self) {
        let mut pause = None;
        loop {
            self.dismiss();
            let now = Instant::now();
            let first = self.arrivals.front().map(|arrival| arrival.until.saturating_duration_since(now));
            let limit = [first, pause].into_iter().flatten().min();
            let door = if pause.is_some() { PollFlags::empty() } else { PollFlags::IN };
            let mut sources = vec![PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&self.listener, door)];
            sources.extend(self.arrivals.iter().map(|arrival| PollFd::new(arrival.tunnel.tcp(), arrival.waits)));
            if let Err(error) = wait(&mut sources, limit) {
                tracing::error!("no node is let in any more: {error}");
                return;
            }
            let told: Vec<bool> = sources.iter().map(|source| !source.revents().is_empty()).collect();
            if told[0] {
                return;
            }
            self.advance(&told[2..]);
            pause = if told[1] || pause.is_some() { self.accept() } else { None };
        }
    }

    /// Ends handshakes that take too long.
    fn dismiss(&mut self) {
        let now = Instant::now();
        while self.arrivals.front().is_some_and(|arrival| arrival.until <= now) {
            if let Some(arrival) = self.arrivals.pop_front() {
                let cause = format!("no handshake within {} s", self.bounds.time.as_secs_f64());
                self.complaints.tell(arrival.from, &cause);
            }
        }
    }

    /// Goes on with those handshakes for which something has happened.
    fn advance(&mut self, told: &[bool]) {
        let arrivals = std::mem::take(&mut self.arrivals);
        for (mut arrival, told) in arrivals.into_iter().zip(told) {
            if !told {
                self.arrivals.push_back(arrival);
                continue;
            }
            match arrival.tunnel.shake() {
                Ok(Shaken::Waits(flags)) => {
                    arrival.waits = flags;
                    self.arrivals.push_back(arrival);
                }
                Ok(Shaken::Done) => self.let_in(arrival),
                Err(cause) => self.complaints.tell(arrival.from, &cause.text),
            }
        }
    }

    /// Begins a handshake with all who wait; gives how long to leave the others waiting, if there is no room for them.
    fn accept(&mut self) -> Option<Duration> {
        loop {
            match self.listener.accept() {
                Ok((tcp, from)) => self.greet(tcp, from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody went before being accepted, or no descriptor is left.
                Err(error) => {
                    tracing::debug!("accept a node: {error}");
                    return Some(PAUSE);
                }
            }
        }
    }

    fn greet(&mut self, tcp: TcpStream, from: SocketAddr) {
        let server = Arc::clone(&self.certificates.identity().server);
        let tls = match ServerConnection::new(server) {
            Ok(tls) => tls,
            Err(error) => return self.complaints.tell(from, &error.to_string()),
        };
        let tunnel = match Tunnel::new(tcp, tls) {
            Ok(tunnel) => tunnel,
            Err(error) => return self.complaints.tell(from, &error.to_string()),
        };
        if self.arrivals.len() >= self.bounds.handshakes
            && let Some(oldest) = self.arrivals.pop_front()
        {
            self.complaints.tell(oldest.from, "others want to shake hands, and it has not");
        }
        let until = Instant::now() + self.bounds.time;
        self.arrivals.push_back(Arrival { tunnel, from, until, waits: PollFlags::IN });
    }

    /// Gives a node a connection like any other, and a thread that carries its bytes.
    fn let_in(&mut self, arrival: Arrival) {
        let Arrival { tunnel, from, .. } = arrival;
        let name = match tunnel.peer() {
            Ok(name) => name,
            Err(cause) => return self.complaints.tell(from, &cause.text),
        };
        let carried = Stream::pair().and_then(|(ours, theirs)| {
            let carry = move || tunnel.carry(&theirs);
            let thread = std::thread::Builder::new().name("node".to_owned()).stack_size(STACK).spawn(carry);
            thread.map(|_| ours).context(|| "start a thread")
        });
        match carried {
            Ok(ours) => self.entrance.admit_node(ours, name),
            Err(error) => self.complaints.tell(from, &error.to_string()),
        }
    }
}

/// Lines about strangers, of whom there may be many.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn tell(&mut self, from: SocketAddr, cause: &str) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < QUIET) {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(unsaid = self.unsaid, "let in a node from {from}: {cause}");
        (self.last, self.unsaid) = (Some(now), 0);
    }
}
