//! A line to a registry that counts what goes over it, and comes to a halt or breaks when a test wants it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::harness::image_registry::Registry;

/// What the line does once so much has gone over it in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Nothing.
    None,
    /// It carries nothing more; what was on its way when something else is wanted is lost.
    Halt(u64),
    /// The same where a request with this method would be the nth.
    HaltAt(&'static str, u64),
    /// The connection breaks, once.
    Break(u64),
    /// The same where a request with this method would be the nth.
    BreakAt(&'static str, u64),
    /// All connections break, and no new ones are made.
    Down(u64),
}

/// One direction.
#[derive(Debug)]
struct Way {
    carried: AtomicU64,
    /// Requests with the method that is waited for.
    requests: AtomicU64,
    halted: AtomicBool,
    limit: Mutex<Limit>,
    changed: Condvar,
}

impl Way {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            carried: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            halted: AtomicBool::new(false),
            limit: Mutex::new(Limit::None),
            changed: Condvar::new(),
        })
    }

    /// Whether the next bytes may pass.
    fn passes(&self, bytes: &[u8], down: &AtomicBool) -> bool {
        let mut limit = self.limit.lock().unwrap();
        let reached = |most| self.carried.load(Ordering::Relaxed) >= most;
        // Whoever asks waits for answers: a request begins what is read.
        let is_nth = |method: &str, n| {
            let is_one = bytes.starts_with(method.as_bytes());
            is_one && self.requests.fetch_add(1, Ordering::Relaxed) + 1 == n
        };
        let halts = match *limit {
            Limit::Halt(most) => reached(most),
            Limit::HaltAt(method, n) => is_nth(method, n),
            Limit::Break(most) if reached(most) => {
                *limit = Limit::None;
                return false;
            }
            Limit::BreakAt(method, n) if is_nth(method, n) => {
                *limit = Limit::None;
                return false;
            }
            Limit::Down(most) if reached(most) => {
                down.store(true, Ordering::Release);
                return false;
            }
            Limit::None | Limit::Break(_) | Limit::BreakAt(..) | Limit::Down(_) => false,
        };
        if halts {
            self.halted.store(true, Ordering::Release);
            let wanted = *limit;
            while *limit == wanted {
                limit = self.changed.wait(limit).unwrap();
            }
            return false;
        }
        !down.load(Ordering::Acquire)
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, down: &AtomicBool) {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if !self.passes(&buffer[..length], down) || to.write_all(&buffer[..length]).is_err() {
                break;
            }
            self.carried.fetch_add(length as u64, Ordering::Relaxed);
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn set(&self, limit: Limit) {
        *self.limit.lock().unwrap() = limit;
        self.carried.store(0, Ordering::Relaxed);
        self.requests.store(0, Ordering::Relaxed);
        self.halted.store(false, Ordering::Release);
        self.changed.notify_all();
    }
}

/// The line, as long as this lives.
#[derive(Debug)]
pub struct Line {
    port: u16,
    up: Arc<Way>,
    down: Arc<Way>,
    is_down: Arc<AtomicBool>,
}

impl Line {
    pub fn to(registry: &Registry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (up, down, is_down) = (Way::new(), Way::new(), Arc::new(AtomicBool::new(false)));
        let (ways, host, broken) = ((up.clone(), down.clone()), registry.host(), is_down.clone());
        // It ends with the tests.
        std::thread::spawn(move || {
            for here in listener.incoming() {
                let here = here.unwrap();
                if broken.load(Ordering::Acquire) {
                    continue;
                }
                let Ok(there) = TcpStream::connect(&host) else { continue };
                let (up, down) = ways.clone();
                let (other_here, other_there) = (here.try_clone().unwrap(), there.try_clone().unwrap());
                let (first, second) = (broken.clone(), broken.clone());
                std::thread::spawn(move || up.carry(here, there, &first));
                std::thread::spawn(move || down.carry(other_there, other_here, &second));
            }
        });
        Self { port, up, down, is_down }
    }

    /// A repository at the other end.
    pub fn reference(&self, name: &str) -> String {
        format!("docker://127.0.0.1:{}/{name}", self.port)
    }

    /// What happens to what is sent; counting begins anew.
    pub fn upwards(&self, limit: Limit) {
        self.is_down.store(false, Ordering::Release);
        self.up.set(limit);
    }

    /// What happens to what is fetched; counting begins anew.
    pub fn downwards(&self, limit: Limit) {
        self.is_down.store(false, Ordering::Release);
        self.down.set(limit);
    }

    /// Whether what is sent has come to a halt.
    pub fn is_halted(&self) -> bool {
        self.up.halted.load(Ordering::Acquire)
    }

    /// The bytes that were sent.
    pub fn sent(&self) -> u64 {
        self.up.carried.load(Ordering::Relaxed)
    }

    /// The bytes that were fetched.
    pub fn fetched(&self) -> u64 {
        self.down.carried.load(Ordering::Relaxed)
    }
}
