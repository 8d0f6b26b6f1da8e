//! One client of a load: a thread that asks, reads, checks and keeps account.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::answer::{After, Progress, check_bytes, check_http};
use super::{Connections, Failure, Outcome, Plan, Protocol, Request, Target};

/// A connection of either kind.
#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An end of a request that is not the right answer.
#[derive(Debug)]
enum Trouble {
    /// The request failed.
    Failed(String),
    /// A kept connection was closed before anything of the answer came: not a failure by itself (RFC 9112, 9.3.1).
    Retired,
}

/// One of the clients of a load.
#[derive(Debug)]
pub struct Client {
    plan: Arc<Plan>,
    started: Instant,
    random: u64,
    kept: Option<Stream>,
    buffer: Vec<u8>,
    outcome: Outcome,
    port: u16,
}

impl Client {
    /// Client number so-and-so of a load.
    pub fn new(plan: Arc<Plan>, number: usize, started: Instant) -> Self {
        let random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
        Self { plan, started, random, kept: None, buffer: Vec::new(), outcome: Outcome::default(), port: 0 }
    }

    /// Asks until told to stop.
    pub fn work(mut self, stop: &AtomicBool, tickets: &AtomicU64, done: &AtomicU64) -> Outcome {
        let plan = Arc::clone(&self.plan);
        while !stop.load(Ordering::Relaxed) {
            let ticket = tickets.fetch_add(1, Ordering::Relaxed);
            let Some(begin) = self.await_turn(ticket, stop) else { break };
            let index = usize::try_from(ticket).unwrap_or(0);
            let request = &plan.requests[index % plan.requests.len()];
            self.ask(request, begin);
            done.fetch_add(1, Ordering::Relaxed);
        }
        self.outcome
    }

    /// The time at which a request has to begin, once it is there: what a late client waits counts as the server's.
    fn await_turn(&self, ticket: u64, stop: &AtomicBool) -> Option<Instant> {
        let Some(rate) = self.plan.rate else { return Some(Instant::now()) };
        #[allow(clippy::cast_precision_loss, reason = "a load has fewer requests than 2^52")]
        let turn = self.started + Duration::from_secs_f64(ticket as f64 / rate);
        loop {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            match turn.checked_duration_since(Instant::now()) {
                None => return Some(turn),
                Some(left) => std::thread::sleep(left.min(Duration::from_millis(50))),
            }
        }
    }

    fn ask(&mut self, request: &Request, begin: Instant) {
        let mut waited = Duration::ZERO;
        let result = loop {
            match self.attempt(request, &mut waited) {
                Err(Trouble::Retired) => self.outcome.retired += 1,
                Err(Trouble::Failed(reason)) => break Err(reason),
                Ok(answer) => break Ok(answer),
            }
        };
        let latency = u32::try_from(begin.elapsed().saturating_sub(waited).as_micros()).unwrap_or(u32::MAX);
        match result {
            Ok(answer) => self.outcome.note_answer(answer, latency),
            Err(reason) => {
                let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.outcome.note_failure(Failure { at_ms, after_us: latency, port: self.port, reason });
            }
        }
    }

    fn attempt(&mut self, request: &Request, waited: &mut Duration) -> Result<usize, Trouble> {
        let (mut stream, used) = match self.kept.take() {
            Some(stream) => (stream, true),
            None => (self.connect()?, false),
        };
        self.pause(waited);
        // A server that is leaving may close a kept connection at any time between two requests, also while ours is
        // on its way; we know it by nothing of an answer having come.
        let lost = |step: &str, error: &io::Error| {
            let gone = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
            if used && gone { Trouble::Retired } else { failed(step, error) }
        };
        stream.write_all(&request.bytes).map_err(|error| lost("write", &error))?;
        self.buffer.clear();
        let mut chunk = [0_u8; 32768];
        let mut whole = None;
        loop {
            let count = match stream.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if self.buffer.is_empty() => return Err(lost("read", &error)),
                Err(error) => return Err(failed("read of the rest", &error)),
            };
            if count == 0 {
                return match whole {
                    Some(answer) => Ok(answer),
                    None if used && self.buffer.is_empty() => Err(Trouble::Retired),
                    None => Err(Trouble::Failed(format!("read: closed after {} bytes", self.bytes_come()))),
                };
            }
            self.buffer.extend_from_slice(&chunk[..count]);
            let checked = match self.plan.protocol {
                Protocol::Http => check_http(&self.buffer, &request.answers),
                Protocol::Bytes => check_bytes(&self.buffer, &request.answers),
            };
            match checked.map_err(Trouble::Failed)? {
                Progress::Partial => {}
                Progress::Whole { answer, after: After::Kept } if self.plan.connections == Connections::Kept => {
                    self.kept = Some(stream);
                    return Ok(answer);
                }
                // The end of the connection belongs to the answer: what comes before it, or instead, is seen.
                Progress::Whole { answer, .. } => whole = Some(answer),
            }
        }
    }

    /// None, some, or how many: so that a table of reasons stays short.
    fn bytes_come(&self) -> &'static str {
        if self.buffer.is_empty() { "no" } else { "some" }
    }

    fn connect(&mut self) -> Result<Stream, Trouble> {
        self.port = 0;
        let patience = self.plan.patience;
        let stream = match &self.plan.target {
            Target::Tcp(address) => {
                let stream =
                    TcpStream::connect_timeout(address, patience).map_err(|error| failed("connect", &error))?;
                self.port = stream.local_addr().map_or(0, |address| address.port());
                let set = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(patience)));
                set.and_then(|()| stream.set_write_timeout(Some(patience)))
                    .map_err(|error| failed("set up", &error))?;
                Stream::Tcp(stream)
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(|error| failed("connect", &error))?;
                let set = stream.set_read_timeout(Some(patience));
                set.and_then(|()| stream.set_write_timeout(Some(patience)))
                    .map_err(|error| failed("set up", &error))?;
                Stream::Unix(stream)
            }
        };
        self.outcome.connected += 1;
        Ok(stream)
    }

    /// Every second time: a connection that is there and has said nothing yet is what a careless drain forgets.
    fn pause(&mut self, waited: &mut Duration) {
        let most = u64::try_from(self.plan.pause.as_micros()).unwrap_or(0);
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if most > 0 && self.random & 1 == 0 {
            let time = Instant::now();
            std::thread::sleep(Duration::from_micros((self.random >> 1) % most));
            *waited += time.elapsed();
        }
    }
}

fn failed(step: &str, error: &io::Error) -> Trouble {
    let reason = match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time".to_owned(),
        ErrorKind::ConnectionRefused => "ECONNREFUSED".to_owned(),
        ErrorKind::ConnectionReset => "ECONNRESET".to_owned(),
        ErrorKind::ConnectionAborted => "ECONNABORTED".to_owned(),
        ErrorKind::BrokenPipe => "EPIPE".to_owned(),
        ErrorKind::AddrNotAvailable => "EADDRNOTAVAIL".to_owned(),
        ErrorKind::NotFound => "ENOENT".to_owned(),
        _ => error.to_string(),
    };
    Trouble::Failed(format!("{step}: {reason}"))
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
