//! A server in this process, with an interface that does what the daemon's own methods do only now and then.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use regen::control::{Access, Answer, Call, Catalog, Fault, Gauge, Interface, Limits, SOCKET, Server, Wake};
use regen::sys::fs::{memory_file, open_path};
use regen::sys::stream::StreamListener;
use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::caller::Caller;

/// Its description, which others read.
pub const DESCRIPTION: &str = "\
interface test.regen.Machine
method Look() -> (uid: int)
method Change() -> ()
method Count(to: int) -> (number: int)
method Wait() -> (begun: ?bool)
method Files() -> (first: int, second: int)
method Flood() -> (text: string)
method Swallow(text: string) -> (length: int)
error TooFar (limit: int)
";

/// The interface.
#[derive(Debug, Default, Clone)]
struct Machine {
    ended: Arc<AtomicUsize>,
}

impl Interface for Machine {
    fn name(&self) -> &'static str {
        "test.regen.Machine"
    }

    fn description(&self) -> &'static str {
        DESCRIPTION
    }

    fn access(&self, method: &str) -> Option<Access> {
        match method {
            "Look" | "Count" | "Files" => Some(Access::Read),
            "Change" | "Wait" | "Flood" | "Swallow" => Some(Access::All),
            _ => None,
        }
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        match call.method() {
            "Look" => Answer::new(&json!({"uid": call.peer().uid()})),
            "Count" => {
                let to = call.parameters::<Value>()?["to"].as_u64().unwrap();
                if to > 1000 {
                    return Err(Fault::Own { name: "TooFar", parameters: json!({"limit": 1000}) });
                }
                (1..to).try_for_each(|number| call.send(&json!({"number": number})))?;
                Answer::new(&json!({"number": to}))
            }
            "Wait" => {
                call.expect_more()?;
                call.send(&json!({"begun": true}))?;
                let never = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
                let outcome = call.wait(&never, Some(Duration::from_secs(60)));
                if matches!(outcome, Err(Fault::Gone)) {
                    self.ended.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(outcome?, Wake::TimedOut);
                Answer::new(&json!({}))
            }
            "Files" => {
                let file = |content: &str| OwnedFd::from(memory_file("test", content.as_bytes()).unwrap());
                let answer = Answer::new(&json!({"first": 0, "second": 1}))?;
                Ok(answer.with_descriptor(file("one")).with_descriptor(file("two")))
            }
            "Flood" => loop {
                let outcome = call.send(&json!({"text": "x".repeat(100_000)}));
                if outcome.is_err() {
                    self.ended.fetch_add(1, Ordering::Relaxed);
                    outcome?;
                }
            },
            "Swallow" => {
                let text = call.parameters::<Value>()?["text"].as_str().unwrap().len();
                Answer::new(&json!({"length": text}))
            }
            _ => Answer::new(&json!({})),
        }
    }
}

/// The server; it ends with the test.
#[derive(Debug)]
pub struct Local {
    directory: TempDir,
    gauge: Gauge,
    machine: Machine,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Local {
    pub fn start(limits: Limits) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let listener = StreamListener::replace(open_path(directory.path()).unwrap(), SOCKET, 0o666).unwrap();
        let (gauge, machine) = (Gauge::new(limits), Machine::default());
        let catalog = Catalog::new(vec![Box::new(machine.clone())]);
        let mut server = Server::new(listener, catalog, &gauge).unwrap();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let woken = Arc::clone(&wake);
        let thread = std::thread::spawn(move || {
            server.serve(&woken).unwrap();
            server.stop(Duration::from_secs(60)).unwrap();
        });
        Self { directory, gauge, machine, wake, thread: Some(thread) }
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn connect(&self) -> Caller {
        Caller::connect(self.root())
    }

    pub fn connections(&self) -> usize {
        self.gauge.connections()
    }

    /// How many of the methods that wait have come to their end.
    pub fn ended(&self) -> usize {
        self.machine.ended.load(Ordering::Relaxed)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        std::fs::File::from(self.wake.try_clone().unwrap()).write_all(&1_u64.to_ne_bytes()).unwrap();
        let outcome = self.thread.take().unwrap().join();
        assert!(outcome.is_ok() || std::thread::panicking(), "the server panicked");
    }
}
