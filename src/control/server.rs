//! The daemon's door: connections are let in, each on a thread of its own, or told why not.
//!
//! ```text
//!             accept ──> who is it, is there room ──> a thread: call, answer, call, answer, …
//!                              │ no
//!                              └──> an error ──> lingers until the caller has seen it ──> closed
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use super::catalog::Catalog;
use super::connection::Connection;
use super::limit::{Account, Limits, Share};
use super::message::{Fault, encode_fault};
use super::peer::Peer;
use super::wire::{Wire, wait};
use crate::error::{Context, Result};
use crate::ids::NodeName;
use crate::metrics;
use crate::sys::stream::{Accepted, Stream, StreamListener};

/// Enough for what methods do, and only what is used of it takes memory.
const STACK: usize = 512 << 10;
/// Callers who were refused may take this long to send the call that they are told of. One that is closed before that
/// would see a broken pipe in place of the reason.
const LINGER: Duration = Duration::from_secs(1);
/// So many of them at once; of more the oldest is closed.
const LINGERING: usize = 64;
/// How long to leave callers waiting where not even one more can be told that there is no room.
const PAUSE: Duration = Duration::from_millis(100);

/// The number of the next connection.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A service on a socket.
#[derive(Debug)]
pub struct Server {
    listener: StreamListener,
    entrance: Entrance,
    refused: VecDeque<(Stream, Instant)>,
    /// Something to close where descriptors run out, so that a caller can at least be told.
    spare: Option<File>,
}

/// What is behind a server's socket, for those who come in elsewhere.
#[derive(Debug, Clone)]
pub struct Entrance {
    catalog: Arc<Catalog>,
    account: Arc<Account>,
    stop: Arc<OwnedFd>,
    /// Connections that ended because of `stop`.
    idle: Arc<Mutex<Vec<Stream>>>,
}

/// How many connections a server has; for those who are asked how it is.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<Account>);

impl Gauge {
    /// A gauge, and what it shows: give it to the server.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Account::new(limits))
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections()
    }
}

impl Server {
    /// A server that has not let anybody in yet.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(listener: StreamListener, catalog: Catalog, gauge: &Gauge) -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(|| "make an event")?;
        Ok(Self {
            listener,
            entrance: Entrance {
                catalog: Arc::new(catalog),
                account: Arc::clone(&gauge.0),
                stop: Arc::new(stop),
                idle: Arc::default(),
            },
            refused: VecDeque::new(),
            spare: spare(),
        })
    }

    /// A way in for callers who do not come through the socket.
    #[must_use]
    pub fn entrance(&self) -> Entrance {
        self.entrance.clone()
    }

    /// The socket.
    #[must_use]
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Lets callers in until there is something to read from `wake`. As long as nothing happens this sleeps.
    ///
    /// # Errors
    /// Those of poll(2) and of a listener that is broken.
    pub fn serve(&mut self, wake: impl AsFd) -> Result<()> {
        let mut crowded = false;
        loop {
            self.close_refused();
            let now = Instant::now();
            let linger = self.refused.front().map(|(_, until)| until.saturating_duration_since(now));
            let limit = if crowded { Some(linger.map_or(PAUSE, |linger| linger.min(PAUSE))) } else { linger };
            let mut sources = vec![PollFd::new(&wake, PollFlags::IN)];
            // The listener would be ready at once, again and again.
            let door = if crowded { PollFlags::empty() } else { PollFlags::IN };
            sources.push(PollFd::new(&self.listener, door));
            sources.extend(self.refused.iter().map(|(stream, _)| PollFd::new(stream, PollFlags::IN)));
            wait(&mut sources, limit)?;
            let (woken, coming) = (!sources[0].revents().is_empty(), !sources[1].revents().is_empty());
            let mut seen =
                sources[2..].iter().map(|source| !source.revents().is_empty()).collect::<Vec<_>>().into_iter();
            // They have sent something, or have gone: what they were told is theirs to read.
            self.refused.retain(|_| !seen.next().unwrap_or(false));
            if woken {
                return Ok(());
            }
            if coming || crowded {
                crowded = self.accept()?;
            }
        }
    }

    /// Lets in one caller; `true` if there was no room to even tell them that there is none.
    fn accept(&mut self) -> Result<bool> {
        match self.listener.accept()? {
            Accepted::Nobody => Ok(false),
            Accepted::Connection(stream) => {
                self.admit(stream);
                Ok(false)
            }
            Accepted::NoRoom => {
                drop(self.spare.take());
                let accepted = self.listener.accept();
                let told = if let Ok(Accepted::Connection(stream)) = accepted {
                    let message = "the daemon has no descriptor left for this connection; try again later";
                    refuse(&stream, &Fault::closing("OutOfResources", message));
                    true
                } else {
                    false
                };
                self.spare = spare();
                Ok(!told || self.spare.is_none())
            }
        }
    }

    /// Gives a connection a thread, or tells why it gets none.
    pub fn admit(&mut self, stream: Stream) {
        let admitted = match Peer::of(&stream) {
            Ok(peer) => self.entrance.start(stream, peer),
            Err(error) => Err((stream, Fault::closing("OutOfResources", error.to_string()))),
        };
        if let Err((stream, fault)) = admitted {
            self.turn_away(stream, &fault);
        }
    }

    /// Tells a caller why not, and closes a little later.
    fn turn_away(&mut self, stream: Stream, fault: &Fault) {
        refuse(&stream, fault);
        if self.refused.len() >= LINGERING {
            self.refused.pop_front();
        }
        self.refused.push_back((stream, Instant::now() + LINGER));
    }

    /// Brings connections to an end where nothing is half said, and gives them: [`Server::admit`] goes on with them.
    /// Calls that are being answered have so much time for it.
    ///
    /// # Errors
    /// Those of the event.
    pub fn stop(&mut self, patience: Duration) -> Result<Vec<Stream>> {
        let operation = || "stop the connections";
        let Entrance { account, stop, idle, .. } = &self.entrance;
        rustix::io::write(stop, &1_u64.to_ne_bytes()).context(operation)?;
        account.wait_for_none(patience);
        rustix::io::read(stop, &mut [0_u8; 8]).context(operation)?;
        Ok(std::mem::take(&mut *idle.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn close_refused(&mut self) {
        let now = Instant::now();
        while self.refused.front().is_some_and(|(_, until)| *until <= now) {
            self.refused.pop_front();
        }
    }
}

impl Entrance {
    /// Lets in another node; `stream` is the end of a pair at whose other end its messages are encrypted. One for whom
    /// there is no room is told so, and the stream is closed.
    pub fn admit_node(&self, stream: Stream, name: NodeName) {
        if let Err((stream, fault)) = self.start(stream, Peer::node(name)) {
            refuse(&stream, &fault);
        }
    }

    /// A thread for a connection, or the connection again and why it gets none.
    fn start(&self, stream: Stream, peer: Peer) -> std::result::Result<(), (Stream, Fault)> {
        let place = match self.account.admit(&peer) {
            Ok(place) => place,
            Err(fault) => return Err((stream, fault)),
        };
        let wire = Wire::new(stream, Arc::clone(&self.stop), self.account.limits());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { wire, peer, catalog: Arc::clone(&self.catalog), place, number };
        let share = Share::new(&self.account);
        let idle = Arc::clone(&self.idle);
        // A thread that cannot be had would take the connection with it.
        let ours = Arc::new(Mutex::new(Some((connection, share))));
        let theirs = Arc::clone(&ours);
        let run = move || {
            if let Some((connection, share)) = take(&theirs) {
                connection.serve(share, &idle);
            }
        };
        let thread = std::thread::Builder::new().name("connection".to_owned()).stack_size(STACK).spawn(run);
        if let Err(error) = thread
            && let Some((connection, _)) = take(&ours)
        {
            let message = format!("the daemon has no thread left for this connection: {error}; try again later");
            return Err((connection.wire.into_stream(), Fault::closing("OutOfResources", message)));
        }
        Ok(())
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// It fits into the empty buffer of a fresh connection; a caller who has filled it is not told.
fn refuse(stream: &Stream, fault: &Fault) {
    metrics::connection_refused(fault.name());
    if let Some(bytes) = encode_fault(fault, "") {
        let _ = stream.send(&bytes, &[]);
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}
