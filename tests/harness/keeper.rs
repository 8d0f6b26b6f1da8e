//! Keepers of instances, as the daemon has them: an order, a channel, commands.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use regen::sys::channel::Channel;
use regen::sys::fs::open_path;
use serde_json::{Value, json};

use super::{REGEN, World, eventually};

/// A server on descriptor 3 that tells its name to everybody who connects, and `bye` when it is told to end.
pub const GREETER: &str = "
import os, signal, socket, sys
def bye(*_):
    print('bye', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
listener = socket.socket(fileno=3)
print('up', os.environ['LISTEN_FDNAMES'], flush=True)
while True:
    connection, _ = listener.accept()
    try:
        connection.sendall(os.environ['GREETING'].encode())
        connection.recv(100)
    except OSError:
        pass
    connection.close()
";

/// A keeper that was started.
#[derive(Debug)]
pub struct Kept {
    /// The process.
    pub child: Child,
    /// Its instance.
    pub instance: String,
    root: PathBuf,
}

impl World {
    /// An order for an instance that runs the host's python with this script, at a free port.
    pub fn order(&self, name: &str, script: &str) -> Value {
        let log = self.store().join("services/web@1.0.0");
        std::fs::create_dir_all(&log).unwrap();
        let bundle = self.python(script, |spec| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|namespace| namespace["type"] != "network");
            spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("GREETING={name}")));
        });
        json!({
            "protocol": 1,
            "instance": self.id(name),
            "definition": {
                "name": "web", "version": "1.0.0", "listen": [{"name": "web", "address": "auto"}],
                "source": {"bundle": bundle.text()}, "ring": null, "command": [], "env": [], "workdir": null, "user": null,
                "handover": "listen-fds", "ready": "tcp", "ready_timeout_ms": 30_000, "drain_timeout_ms": 30_000,
                "stop_signal": "TERM", "restart": "no",
            },
            "listen": [{"name": "web", "address": "auto"}],
            "inherited": [], "beside": null, "adopt": null, "ring_entry": null,
            "root": self.root(), "store": self.store(), "config": null, "cgroup_manager": "cgroupfs", "log": log,
        })
    }

    /// A bundle with the host's python, which runs this.
    pub fn python(&self, script: &str, change: impl FnOnce(&mut Value)) -> super::Directory {
        self.bundle(|spec| {
            spec["process"]["args"] = json!(["/usr/bin/python3", "-c", script]);
            let mounts = spec["mounts"].as_array_mut().unwrap();
            for host in ["/usr", "/lib", "/lib64"].into_iter().filter(|host| std::path::Path::new(host).exists()) {
                mounts.push(json!({"destination": host, "source": std::fs::canonicalize(host).unwrap(),
                    "type": "bind", "options": ["rbind", "ro"]}));
            }
            change(spec);
        })
    }

    /// An order for an instance that runs this script of shell over the world's root file system.
    pub fn order_of_rootfs(&self, name: &str, script: &str) -> Value {
        let mut order = self.order(name, "");
        order["definition"]["source"] = json!({"rootfs": self.rootfs()});
        order["definition"]["command"] = json!(["sh", "-c", script]);
        order["definition"]["ready"] = json!("none");
        order
    }

    /// Starts a keeper, and waits for what comes of its order.
    pub fn keep(&self, order: &Value, sockets: &[BorrowedFd<'_>]) -> (Kept, Value) {
        let mut command = Command::new(REGEN);
        command.env_clear();
        self.keep_by(command, order, sockets)
    }

    /// The same with a program of one's own choice, which may be another user's.
    pub fn keep_by(&self, mut command: Command, order: &Value, sockets: &[BorrowedFd<'_>]) -> (Kept, Value) {
        let (ours, theirs) = Channel::pair().unwrap();
        let instance = order["instance"].as_str().unwrap().to_owned();
        ours.send(order.to_string().as_bytes(), sockets).unwrap();
        let child = command
            .args(["keeper", &instance])
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let reply = ours.receive().unwrap().map_or(Value::Null, |said| serde_json::from_slice(&said.bytes).unwrap());
        (Kept { child, instance, root: self.root() }, reply)
    }

    /// The same, where the instance has to run.
    #[track_caller]
    pub fn keep_running(&self, order: &Value) -> Kept {
        let (kept, reply) = self.keep(order, &[]);
        assert_eq!(reply["reply"], "status", "{reply}");
        kept
    }
}

impl Kept {
    /// Its directory.
    pub fn home(&self) -> PathBuf {
        self.root.join("@keepers").join(&self.instance)
    }

    /// A connection to it.
    pub fn connect(&self) -> Channel {
        Channel::connect(open_path(&self.home()).unwrap(), "control").unwrap()
    }

    /// Asks it something; the answer, and the sockets that come along.
    #[track_caller]
    pub fn ask_for_sockets(&self, command: &Value) -> (Value, Vec<OwnedFd>) {
        let channel = self.connect();
        channel.send(command.to_string().as_bytes(), &[]).unwrap();
        let said = channel.receive().unwrap().expect("no answer");
        (serde_json::from_slice(&said.bytes).unwrap(), said.descriptors)
    }

    /// Asks it something.
    #[track_caller]
    pub fn ask(&self, command: &str) -> Value {
        self.ask_for_sockets(&json!({"command": command})).0
    }

    /// Asks for something that has to be done.
    #[track_caller]
    pub fn tell(&self, command: &str) {
        assert_eq!(self.ask(command), json!({"reply": "done"}), "{command}");
    }

    /// Waits until it is in this phase; its state then.
    #[track_caller]
    pub fn await_phase(&self, phase: &str) -> Value {
        let mut status = Value::Null;
        eventually(phase, || {
            status = self.ask("status");
            assert!(phase == "ended" || status["phase"] != "ended", "waited for {phase}: {status:#}");
            status["phase"] == phase
        });
        status
    }

    /// The port of its first address.
    pub fn port(&self) -> u16 {
        let status = self.ask("status");
        let address = status["listen"][0]["address"].as_str().unwrap();
        address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub fn gone(mut self) {
        eventually("the keeper has ended", || self.child.try_wait().unwrap().is_some());
        assert!(!self.home().exists());
    }

    /// Stops the instance, and lets go of what is kept of it.
    #[track_caller]
    pub fn finish(self) -> Value {
        self.tell("stop");
        let status = self.await_phase("ended");
        self.tell("release");
        self.gone();
        status
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A test that failed; the world says what is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
