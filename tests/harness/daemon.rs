//! The real daemon with services, for one test.

use std::io::Write;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Directory, Output, Running, World, eventually, process_status};

/// A server on descriptor 3 that tells its name to everybody who connects and waits until they go, and `bye` when it is told
/// to end. What it is called with decides how it behaves: see [`World::server`].
const SERVER: &str = "
import os, signal, socket, sys, time
mode = sys.argv[1] if len(sys.argv) > 1 else 'serve'
if mode.startswith('exit'):
    print('going', flush=True)
    print('it cannot work', file=sys.stderr, flush=True)
    sys.exit(int(mode[4:]))
if mode == 'hang':
    signal.pause()
leaving = False
def bye(*_):
    global leaving
    leaving = True
    print('bye', flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
listener = socket.socket(fileno=3)
print('up', os.environ['LISTEN_FDNAMES'], flush=True)
if mode.startswith('crash'):
    time.sleep(float(mode[5:]))
    os._exit(1)
import threading
def answer(connection):
    try:
        if connection.recv(100):
            connection.sendall(os.environ.get('GREETING', 'hello').encode())
        connection.close()
    except OSError:
        pass
while True:
    connection, _ = listener.accept()
    threading.Thread(target=answer, args=(connection,), daemon=True).start()
";

/// It and its services end with the test.
#[derive(Debug)]
pub struct Daemon<'a> {
    world: &'a World,
    running: Option<Running>,
}

impl World {
    /// Starts a daemon for the root of this world, and waits until it answers.
    pub fn daemon(&self) -> Daemon<'_> {
        let mut daemon = Daemon { world: self, running: None };
        daemon.start();
        daemon
    }

    /// A bundle with a server that takes its sockets as descriptors, on the host's network.
    pub fn server(&self) -> Directory {
        self.python(SERVER, |spec| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|namespace| namespace["type"] != "network");
        })
    }
}

impl Daemon<'_> {
    /// Starts one after the last has ended.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_as(self.world.command(&["serve"]));
    }

    /// Starts one in a way of its own.
    #[track_caller]
    pub fn start_as(&mut self, command: Command) {
        assert!(self.running.is_none(), "there is one");
        self.running = Some(self.world.spawn(command));
        eventually("the daemon answers", || {
            let running = self.running.as_mut().unwrap();
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", running.complaints());
            }
            self.world.regen(&["service", "ls"]).code == 0
        });
    }

    /// Starts one whose registry cannot be used: all that it does for services is to send clients to them.
    #[track_caller]
    pub fn start_without_registry(&mut self) {
        assert!(self.running.is_none(), "there is one");
        self.running = Some(self.world.spawn(self.world.command(&["serve"])));
        eventually("the daemon answers", || {
            let running = self.running.as_mut().unwrap();
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", running.complaints());
            }
            self.world.regen(&["call", "run.regen.Control.GetStatus"]).code == 0
        });
    }

    /// Where it is.
    pub fn world(&self) -> &World {
        self.world
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.running.as_ref().unwrap().pid()
    }

    /// Whether it has ended; nobody has waited for it yet.
    pub fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.running.as_ref().unwrap().complaints()
    }

    /// A field of its `/proc/PID/status` that is a number.
    pub fn number(&self, field: &str) -> u64 {
        process_status(self.pid(), field).split(' ').next().unwrap().parse().unwrap()
    }

    /// Ends it by a signal, and waits for that.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) -> Output {
        let running = self.running.take().unwrap();
        running.signal(signal);
        running.finish()
    }

    /// Kills it, and starts the next.
    #[track_caller]
    pub fn crash(&mut self) {
        assert_eq!(self.end(Signal::SIGKILL).code, 1009);
        self.start();
    }

    /// `service …`
    pub fn service(&self, arguments: &[&str]) -> Output {
        self.world.regen(&[&["service"], arguments].concat())
    }

    /// A name that no other test has.
    pub fn name(&self, name: &str) -> String {
        self.world.id(name)
    }

    /// Adds a service at a free port, which runs the server of [`World::server`].
    #[track_caller]
    pub fn add(&self, name: &str, version: &str, more: &[&str]) -> Value {
        let server = self.world.server();
        let arguments = ["add", name, "--version", version, "--listen", "auto", "--bundle", server.text(), "--json"];
        let output = self.service(&[&arguments, more].concat());
        serde_json::from_str(output.success().stdout()).unwrap()
    }

    /// `service ls`, parsed.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(self.service(&["ls", "--json"]).success().stdout()).unwrap();
        list.as_array().unwrap().clone()
    }

    /// `service show`, parsed.
    #[track_caller]
    pub fn show(&self, service: &str) -> Value {
        serde_json::from_str(self.service(&["show", service, "--json"]).success().stdout()).unwrap()
    }

    /// The port of its first address.
    #[track_caller]
    pub fn port(&self, service: &str) -> u16 {
        let show = self.show(service);
        show["addresses"][0].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Its instance's first process.
    #[track_caller]
    pub fn instance_pid(&self, service: &str) -> i32 {
        i32::try_from(self.show(service)["pid"].as_i64().expect("it has no process")).unwrap()
    }

    /// Waits until it is so; its state then.
    #[track_caller]
    pub fn await_state(&self, service: &str, state: &str) -> Value {
        let mut show = Value::Null;
        eventually(state, || {
            show = self.show(service);
            show["state"] == state
        });
        show
    }

    /// Waits until an instance of it is all there is.
    #[track_caller]
    pub fn await_rest(&self, service: &str) {
        eventually("one instance is left", || {
            let show = self.show(service);
            show["state"] == "serving" && show["instances"].as_array().unwrap().len() == 1 && show["change"].is_null()
        });
    }

    /// The keepers' directories, each of which has a keeper.
    pub fn keepers(&self) -> Vec<String> {
        super::ring::names(&self.world.root().join("@keepers"))
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if self.running.is_none() && !failed && (!self.keepers().is_empty() || self.has_templates()) {
            self.start();
        }
        let Some(running) = self.running.take() else { return };
        let listed = self.world.regen(&["service", "ls", "--json"]);
        let services: Value = serde_json::from_str(listed.stdout()).unwrap_or(json!([]));
        let mut names: Vec<_> = services.as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
        names.dedup();
        for name in names {
            let _ = self.world.regen(&["service", "rm", "--force", name]);
        }
        for template in self.templates() {
            let _ = self.world.regen(&["template", "rm", "--force", template["name"].as_str().unwrap()]);
        }
        if failed {
            let _ = writeln!(std::io::stderr(), "the daemon's log:\n{}", running.complaints());
        }
        let _ = kill(Pid::from_raw(running.pid()), Signal::SIGTERM);
        let output = running.finish();
        if !failed {
            output.success();
        }
    }
}
