//! A node in this process: a server, and a gate for others.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use regen::control::remote::{Bounds, Certificates, Dialer, Gate, Timeouts, bind};
use regen::control::{Access, Answer, Call, Catalog, Fault, Gauge, Interface, Limits, PROTOCOL, Reach, SOCKET, Server};
use regen::sys::fs::{memory_file, open_path};
use regen::sys::stream::StreamListener;
use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Does what methods of the daemon do, and tells who called.
#[derive(Debug)]
struct Machine;

impl Interface for Machine {
    fn name(&self) -> &'static str {
        "test.regen.Machine"
    }

    fn description(&self) -> &'static str {
        "interface test.regen.Machine\nmethod Who() -> (who: string)\n"
    }

    fn access(&self, method: &str) -> Option<Access> {
        match method {
            "Who" | "Count" | "Files" | "Sleep" => Some(Access::Read),
            "Echo" | "Change" => Some(Access::All),
            _ => None,
        }
    }

    fn reach(&self, method: &str) -> Reach {
        if method == "Change" { Reach::Local } else { Reach::Everywhere }
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        match call.method() {
            "Who" => Answer::new(&json!({"who": call.peer().origin.to_string()})),
            "Count" => {
                let to = call.parameters::<Value>()?["to"].as_u64().unwrap();
                (1..to).try_for_each(|number| call.send(&json!({"number": number})))?;
                Answer::new(&json!({"number": to}))
            }
            "Files" => Ok(Answer::new(&json!({}))?.with_descriptor(memory_file("test", b"x").unwrap().into())),
            "Sleep" => {
                let never = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
                call.wait(&never, Some(Duration::from_secs(60)))?;
                Answer::new(&json!({}))
            }
            "Echo" => Answer::new(&call.parameters::<Value>()?),
            other => panic!("{other} was called"),
        }
    }
}

/// Says which protocol it speaks.
#[derive(Debug)]
struct Hello(u32);

impl Interface for Hello {
    fn name(&self) -> &'static str {
        "run.regen.Control"
    }

    fn description(&self) -> &'static str {
        "interface run.regen.Control\nmethod GetStatus() -> (protocol: int)\n"
    }

    fn access(&self, method: &str) -> Option<Access> {
        (method == "GetStatus").then_some(Access::Read)
    }

    fn call(&self, _: &Call<'_>) -> Result<Answer, Fault> {
        Answer::new(&json!({"protocol": self.0}))
    }
}

/// It ends with the test.
#[derive(Debug)]
pub struct Node {
    _directory: TempDir,
    pub gauge: Gauge,
    pub gate: Option<Gate>,
    pub address: SocketAddr,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    pub fn start(certificates: Certificates) -> Self {
        Self::start_with(certificates, Bounds::default(), PROTOCOL)
    }

    pub fn start_with(certificates: Certificates, bounds: Bounds, protocol: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = StreamListener::replace(open_path(directory.path()).unwrap(), SOCKET, 0o600).unwrap();
        let gauge = Gauge::new(Limits::default());
        let catalog = Catalog::new(vec![Box::new(Machine), Box::new(Hello(protocol))]);
        let mut server = Server::new(listener, catalog, &gauge).unwrap();
        let bound = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let gate = Gate::open(bound, certificates, server.entrance(), bounds).unwrap();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let woken = Arc::clone(&wake);
        let thread = std::thread::spawn(move || {
            server.serve(&woken).unwrap();
            assert_eq!(server.stop(Duration::from_secs(60)).unwrap().len(), 0, "a node's connection was kept");
        });
        let address = gate.address();
        Self { _directory: directory, gauge, gate: Some(gate), address, wake, thread: Some(thread) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.gate.take());
        File::from(self.wake.try_clone().unwrap()).write_all(&1_u64.to_ne_bytes()).unwrap();
        let outcome = self.thread.take().unwrap().join();
        assert!(outcome.is_ok() || std::thread::panicking(), "the server panicked");
    }
}

/// Calls other nodes.
pub fn dialer(certificates: Certificates) -> Dialer {
    Dialer::new(certificates, Timeouts { answer: Some(Duration::from_secs(60)), ..Timeouts::default() })
}

/// What one is told who asks a node who called, or why not.
pub fn ask(dialer: &Dialer, name: &str, address: SocketAddr) -> Result<String, String> {
    let answer = dialer.call::<Value>((&name.parse().unwrap(), address), "test.regen.Machine.Who", &json!({}));
    answer.map(|answer| answer["who"].as_str().unwrap().to_owned()).map_err(|error| error.to_string())
}
