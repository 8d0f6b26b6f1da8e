//! Clients that connect anew for every request, check every byte of the answer, and keep account of what went wrong.
//!
//! ```no_run
//! let load = Load::start(Plan::http("127.0.0.1:8080".parse().unwrap(), "/", b"hello\n"));
//! // … restart the server …
//! let outcome = load.stop();
//! assert_eq!((outcome.failed(), outcome.requests > 100), (0, true), "{outcome}");
//! ```
//!
//! It stands on the standard library alone, because `hack/bench` builds it by itself.

#![allow(dead_code, reason = "each user uses a part of it")]

pub mod answer;
pub mod client;
pub mod outcome;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::Client;
pub use outcome::{Failure, Outcome};

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A stream socket in the file system.
    Unix(PathBuf),
}

/// `HOST:PORT` in numbers, or an absolute path.
impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        text.parse().map(Self::Tcp).map_err(|error| format!("read target '{text}': {error}"))
    }
}

/// What the server speaks, and so how an answer is known to be whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1: status 200, a Content-Length that is true, one of the bodies.
    Http,
    /// Anything that answers with bytes known beforehand and then closes the connection.
    Bytes,
}

/// How long a connection is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// For one request, which says so; the answer ends with the end of the connection.
    New,
    /// For as many as the server allows (HTTP only).
    Kept,
}

/// A request, and every answer that is right.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// The bodies of which one must come; [`Outcome::answers`] counts each.
    pub answers: Vec<Vec<u8>>,
}

/// A load.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// What is spoken.
    pub protocol: Protocol,
    /// How long a connection is used.
    pub connections: Connections,
    /// What is asked, in turns.
    pub requests: Vec<Request>,
    /// How many ask at the same time.
    pub threads: usize,
    /// Requests a second of all together, each at its time; as fast as answers come, if none is given.
    pub rate: Option<f64>,
    /// Up to so long a client that has connected waits with its request: a random time for every second request.
    pub pause: Duration,
    /// How long one step (connect, write, read) may take before the request counts as failed.
    pub patience: Duration,
}

impl Plan {
    /// Four clients that ask for one page over new connections, as fast as answers come.
    pub fn http(target: Target, path: &str, body: &[u8]) -> Self {
        Self {
            target,
            protocol: Protocol::Http,
            connections: Connections::New,
            requests: vec![Request { bytes: http_request(path, Connections::New), answers: vec![body.to_vec()] }],
            threads: 4,
            rate: None,
            pause: Duration::ZERO,
            patience: Duration::from_secs(10),
        }
    }

    /// The same, with one more body that is right: that of the version that is to come.
    #[must_use]
    pub fn or(mut self, body: &[u8]) -> Self {
        for request in &mut self.requests {
            request.answers.push(body.to_vec());
        }
        self
    }
}

/// A GET of a path.
pub fn http_request(path: &str, connections: Connections) -> Vec<u8> {
    let word = match connections {
        Connections::New => "close",
        Connections::Kept => "keep-alive",
    };
    format!("GET {path} HTTP/1.1\r\nHost: load\r\nConnection: {word}\r\n\r\n").into_bytes()
}

/// A connection of redis: a PING, a GET, and a QUIT, after which the server closes.
pub fn redis_request(key: &str, value: &[u8]) -> Request {
    let mut answer = format!("+PONG\r\n${}\r\n", value.len()).into_bytes();
    answer.extend_from_slice(value);
    answer.extend_from_slice(b"\r\n+OK\r\n");
    Request { bytes: format!("PING\r\nGET {key}\r\nQUIT\r\n").into_bytes(), answers: vec![answer] }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    started: Instant,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Load {
    /// Lets them loose.
    pub fn start(plan: Plan) -> Self {
        let (stop, tickets, done) = (Arc::default(), Arc::new(AtomicU64::new(0)), Arc::default());
        let (plan, started) = (Arc::new(plan), Instant::now());
        let threads = (0..plan.threads)
            .map(|number| {
                let client = Client::new(Arc::clone(&plan), number, started);
                let (stop, tickets, done) = (Arc::clone(&stop), Arc::clone(&tickets), Arc::clone(&done));
                std::thread::spawn(move || client.work(&stop, &tickets, &done))
            })
            .collect();
        Self { stop, done, started, threads }
    }

    /// How many requests have ended, well or badly.
    pub fn requests(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests have ended, for a minute at most.
    pub fn wait_for(&self, more: u64) {
        let (until, deadline) = (self.requests() + more, Instant::now() + Duration::from_secs(60));
        while self.requests() < until && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets every request that was begun end, and says what became of all of them.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for thread in self.threads {
            match thread.join() {
                Ok(outcome) => all.merge(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all.finish(self.started.elapsed());
        all
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
