//! The page of numbers over HTTP, for Prometheus and what speaks as it does: only if it was asked for, and for whoever can
//! connect, because nobody is asked who they are.
//!
//! ```text
//! a thread that sleeps:  accept ──> read a head ──> look things up, write the page ──> closed
//! ```
//!
//! It answers a few at a time and waits for none of them. Where there are too many, whoever came first goes.

mod gather;
mod http;
mod visitor;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use self::visitor::{Next, Stream, Visitor};
use super::wire::wait;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::supervisor::Passed;

pub use gather::Sources;

/// What the listener is called when it is passed to the next program.
pub const PASSED: &str = "metrics";
/// So many are answered at once.
const VISITORS: usize = 16;
/// How long to wait where nobody can be let in, or nothing can be waited for.
const PAUSE: Duration = Duration::from_millis(200);
/// Enough for what it does, and only what is used of it takes memory.
const STACK: usize = 512 << 10;

/// Where numbers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `tcp://HOST:PORT`
    Tcp(String),
    /// `unix:/PATH`
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(place) = text.strip_prefix("tcp://")
            && let Some((host, port)) = place.rsplit_once(':')
            && !host.is_empty()
            && port.parse::<u16>().is_ok()
        {
            return Ok(Self::Tcp(place.to_owned()));
        }
        match text.strip_prefix("unix:").map(PathBuf::from) {
            Some(path) if path.is_absolute() => Ok(Self::Unix(path)),
            _ => Err(Error::new(
                Kind::Usage,
                format!("read the address '{}'", text.escape_debug()),
                "it is none for metrics",
            )
            .next("write tcp://HOST:PORT or unix:/PATH")),
        }
    }
}

/// A socket where numbers are told.
#[derive(Debug, Clone)]
pub struct Window(Arc<Socket>);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Window {
    /// Listens; with the socket of the program before this one, if that was at this address.
    ///
    /// # Errors
    /// Those of looking up the host's name and of bind(2).
    pub fn open(address: &Address, passed: Option<OwnedFd>) -> Result<Self> {
        let operation = || match address {
            Address::Tcp(place) => format!("listen at tcp://{place} for those who fetch metrics"),
            Address::Unix(path) => format!("listen at {} for those who fetch metrics", quote(path)),
        };
        let socket = match address {
            Address::Tcp(place) => {
                let wanted: Vec<_> = place.to_socket_addrs().context(operation)?.collect();
                match passed.map(TcpListener::from).filter(|listener| is_at(listener, &wanted)) {
                    Some(listener) => Socket::Tcp(listener),
                    None => Socket::Tcp(TcpListener::bind(&*wanted).context(operation)?),
                }
            }
            Address::Unix(path) => match passed.map(UnixListener::from).filter(|listener| is_at_path(listener, path)) {
                Some(listener) => Socket::Unix(listener, path.clone()),
                None => Socket::Unix(bind_path(path).context(operation)?, path.clone()),
            },
        };
        match &socket {
            Socket::Tcp(listener) => listener.set_nonblocking(true),
            Socket::Unix(listener, _) => listener.set_nonblocking(true),
        }
        .context(operation)?;
        Ok(Self(Arc::new(socket)))
    }

    /// Where it is, with the port that was chosen.
    #[must_use]
    pub fn place(&self) -> String {
        match &*self.0 {
            Socket::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".into(), |at| format!("tcp://{at}")),
            Socket::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Tells numbers from now on, on a thread of its own.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn serve(&self, sources: Sources) -> Result<()> {
        let mut desk = Desk { socket: Arc::clone(&self.0), visitors: VecDeque::new(), sources };
        let thread = std::thread::Builder::new().name("metrics".to_owned()).stack_size(STACK);
        thread.spawn(move || desk.attend()).context(|| "start the thread that tells metrics").map(drop)
    }

    /// For the next program in this process.
    #[must_use]
    pub fn pass(&self) -> (&'static str, BorrowedFd<'_>) {
        (PASSED, self.0.as_fd())
    }

    /// Nobody is listened to any more: takes the file away, if there is one.
    pub fn close(&self) {
        if let Socket::Unix(_, path) = &*self.0 {
            // One that stays is replaced by the next daemon.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Takes the socket out of what was passed to this process.
pub fn take_passed(passed: &mut Vec<Passed>) -> Option<OwnedFd> {
    let index = passed.iter().position(|one| one.name == PASSED)?;
    Some(passed.swap_remove(index).descriptor)
}

fn is_at(listener: &TcpListener, wanted: &[SocketAddr]) -> bool {
    let same = |own: SocketAddr| {
        wanted.iter().any(|one| one.ip() == own.ip() && (one.port() == own.port() || one.port() == 0))
    };
    listener.local_addr().is_ok_and(same)
}

fn is_at_path(listener: &UnixListener, path: &Path) -> bool {
    listener.local_addr().is_ok_and(|own| own.as_pathname() == Some(path)) && path.exists()
}

/// A socket that somebody has left is replaced, and nothing else.
fn bind_path(path: &Path) -> std::io::Result<UnixListener> {
    let left = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if left
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

impl Socket {
    /// The next one who waits to be let in; `None` if nobody does.
    fn accept(&self) -> std::io::Result<Option<Box<dyn Stream>>> {
        let accepted: std::io::Result<Box<dyn Stream>> = match self {
            Self::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            }),
            Self::Unix(listener, _) => listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            }),
        };
        match accepted {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// Those who are being answered.
#[derive(Debug)]
struct Desk {
    socket: Arc<Socket>,
    /// In the order in which they came.
    visitors: VecDeque<Visitor>,
    sources: Sources,
}

impl Desk {
    fn attend(&mut self) {
        loop {
            match self.wait() {
                Ok(ready) => self.answer(&ready),
                Err(error) => {
                    tracing::error!("{error}");
                    std::thread::sleep(PAUSE);
                }
            }
            let now = Instant::now();
            self.visitors.retain(|visitor| visitor.until() > now);
        }
    }

    /// Which of the visitors can go on. New ones are let in.
    fn wait(&mut self) -> Result<Vec<bool>> {
        let now = Instant::now();
        let first = self.visitors.iter().map(Visitor::until).min();
        let limit = first.map(|until| until.saturating_duration_since(now));
        let mut polled = vec![PollFd::new(&*self.socket, PollFlags::IN)];
        polled.extend(self.visitors.iter().map(|visitor| PollFd::new(visitor, visitor.events())));
        wait(&mut polled, limit)?;
        let ready: Vec<_> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        let (coming, mut ready) = (ready[0], ready[1..].to_vec());
        if coming {
            match self.socket.accept() {
                Ok(Some(stream)) => {
                    if self.visitors.len() >= VISITORS {
                        self.visitors.pop_front();
                        ready.remove(0);
                    }
                    self.visitors.push_back(Visitor::new(stream));
                    ready.push(true);
                }
                Ok(None) => {}
                // They have gone already, or there is no descriptor left: others are served meanwhile.
                Err(error) => {
                    tracing::debug!("let in somebody who fetches metrics: {error}");
                    std::thread::sleep(PAUSE);
                }
            }
        }
        Ok(ready)
    }

    fn answer(&mut self, ready: &[bool]) {
        let Self { visitors, sources, .. } = self;
        let mut ready = ready.iter().copied();
        visitors.retain_mut(|visitor| {
            !ready.next().unwrap_or(false) || visitor.advance(&mut || sources.page()) == Next::Stay
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_a_port_or_a_path() {
        let tcp = |place: &str| Address::Tcp(place.into());
        assert_eq!("tcp://127.0.0.1:9464".parse::<Address>().unwrap(), tcp("127.0.0.1:9464"));
        assert_eq!("tcp://[::1]:0".parse::<Address>().unwrap(), tcp("[::1]:0"));
        assert_eq!("unix:/run/m".parse::<Address>().unwrap(), Address::Unix("/run/m".into()));
        for wrong in ["", "9464", "127.0.0.1:9464", "tcp://:9", "tcp://a", "tcp://a:70000", "unix:m", "http://a:1"] {
            assert_eq!(wrong.parse::<Address>().unwrap_err().kind(), Kind::Usage, "{wrong}");
        }
    }

    #[test]
    fn the_socket_of_the_program_before_is_kept_at_its_address_and_left_at_another() {
        let any = Address::Tcp("127.0.0.1:0".into());
        let first = Window::open(&any, None).unwrap();
        let own = || Some(first.pass().1.try_clone_to_owned().unwrap());
        assert_eq!(Window::open(&any, own()).unwrap().place(), first.place());
        let exact = Address::Tcp(first.place().trim_start_matches("tcp://").to_owned());
        assert_eq!(Window::open(&exact, own()).unwrap().place(), first.place());
        let error = Window::open(&exact, None).unwrap_err();
        assert!(error.to_string().contains(&first.place()), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let path = Address::Unix(directory.path().join("m"));
        assert_eq!(Window::open(&path, own()).unwrap().place(), format!("unix:{}/m", directory.path().display()));
        // Nobody listens there any more, and the file is still there.
        let again = Window::open(&path, None).unwrap();
        assert!(Window::open(&path, None).is_err(), "somebody listens");
        again.close();
        assert!(!directory.path().join("m").exists());
    }
}
