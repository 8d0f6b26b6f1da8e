//! The process that keeps an instance of a service, asked as the daemon asks it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod handover;
mod intercept;

use std::fs;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use harness::keeper::{GREETER, Kept};
use harness::ring::names;
use harness::user::{Person, Subordinates};
use harness::{REGEN, World, eventually};
use regen::service::log::{Reader, Source};
use regen::sys::channel::Channel;
use serde_json::{Value, json};

/// Connects, and says what the other side says.
fn greeting(port: u16) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

/// An instance serves, and then another one in its place, which greet by their names.
fn replaced(world: &World, order: &dyn Fn(&str) -> Value, greeting: &dyn Fn() -> String) {
    let first = world.keep_running(&order("first"));
    first.await_phase("ready");
    first.tell("serve");
    assert_eq!(greeting(), "first");
    let mut next = order("second");
    next["beside"] = json!(first.instance);
    let second = world.keep_running(&next);
    second.await_phase("ready");
    assert_eq!(greeting(), "first");
    second.tell("serve");
    assert_eq!(greeting(), "second");
    first.finish();
    assert_eq!(greeting(), "second");
    second.finish();
}

/// What the instances of a world have printed.
fn printed(world: &World) -> Vec<String> {
    let mut reader = Reader::new(&world.store().join("services/web@1.0.0"));
    let mut found = Vec::new();
    loop {
        let lines = reader.read().unwrap();
        if lines.is_empty() {
            return found;
        }
        found.extend(lines.into_iter().filter(|line| line.source == Source::Line).map(|line| line.text));
    }
}

#[test]
fn an_instance_is_made_serves_and_ends_when_it_is_told() {
    let world = World::new("keeper");
    let kept = world.keep_running(&world.order("a", GREETER));
    assert_eq!(world.status(&kept.instance), "running");
    let status = kept.await_phase("ready");
    assert_eq!(status["init"]["pid"], world.pid(&kept.instance));
    assert_eq!(status["listen"][0]["name"], "web");
    assert_eq!(status["serving_since"], Value::Null);
    kept.tell("serve");
    assert_ne!(kept.await_phase("serving")["serving_since"], Value::Null);
    assert_eq!(greeting(kept.port()), "a");
    kept.tell("stop");
    let outcome = kept.await_phase("ended")["outcome"].clone();
    assert_eq!((&outcome["exit_code"], &outcome["requested"], &outcome["cut"]), (&json!(0), &json!(true), &json!(0)));
    assert_eq!(outcome["last_words"], json!(["up web", "bye"]));
    let written: Value = serde_json::from_slice(&fs::read(kept.home().join("outcome.json")).unwrap()).unwrap();
    assert_eq!(written, outcome);
    assert!(!world.state_directory(&kept.instance).exists(), "the container is deleted");
    kept.tell("release");
    kept.gone();
    assert_eq!(printed(&world), ["up web", "bye"]);
}

#[test]
fn whoever_watches_hears_of_every_phase_and_others_are_answered_meanwhile() {
    let world = World::new("watch");
    let kept = world.keep_running(&world.order("a", GREETER));
    let channel = kept.connect();
    channel.send(br#"{"command":"watch"}"#, &[]).unwrap();
    let mut phases: Vec<String> = Vec::new();
    let mut hear = |until: &str| {
        while phases.last().is_none_or(|phase| phase != until) {
            let said: Value = serde_json::from_slice(&channel.receive().unwrap().unwrap().bytes).unwrap();
            let phase = said["phase"].as_str().unwrap().to_owned();
            if phases.last() != Some(&phase) {
                phases.push(phase);
            }
        }
    };
    hear("ready");
    kept.tell("serve");
    hear("serving");
    kept.tell("stop");
    hear("ended");
    kept.tell("release");
    assert!(channel.receive().unwrap().is_none(), "the end of the keeper");
    kept.gone();
    assert!(phases.ends_with(&["ready", "serving", "stopping", "ended"].map(str::to_owned)), "{phases:?}");
}

#[test]
fn what_cannot_be_done_now_is_refused_and_nonsense_harms_nobody() {
    let world = World::new("refuse");
    let mut order = world.order("a", GREETER);
    order["definition"]["ready"] = json!("notify");
    let kept = world.keep_running(&order);
    let refused = kept.ask("serve");
    assert_eq!(refused["error"]["cause"], "it is not ready", "{refused}");
    assert_eq!(kept.ask("release")["error"]["cause"], "it has not ended");
    assert_eq!(kept.ask("dance")["reply"], "failed");
    let channel = kept.connect();
    channel.send(&[0xff; 5000], &[channel.as_fd()]).unwrap();
    assert!(channel.receive().unwrap().is_some());
    kept.finish();
}

#[test]
fn a_program_that_cannot_be_started_leaves_nothing_and_its_error_is_told() {
    let world = World::new("nostart");
    let mut order = world.order("a", GREETER);
    order["definition"]["command"] = json!(["nobody-has-this"]);
    let (kept, reply) = world.keep(&order, &[]);
    assert_eq!((&reply["reply"], &reply["error"]["kind"]), (&json!("failed"), &json!("CommandNotFound")), "{reply}");
    kept.gone();
    assert!(!world.state_directory(&world.id("a")).exists());
}

#[test]
fn an_instance_that_is_not_ready_in_time_is_ended_and_what_was_missing_is_told() {
    let world = World::new("late");
    for (ready, script, missing) in [
        ("notify", "import time; time.sleep(1000)", "READY=1"),
        ("tcp", "import time; time.sleep(1000)", "it has not accepted a connection"),
        ("http:/up", GREETER, "GET /up: its answer is not HTTP"),
    ] {
        let mut order = world.order(ready.split(':').next().unwrap(), script);
        order["definition"]["ready"] = json!(ready);
        order["definition"]["ready_timeout_ms"] = json!(300);
        let kept = world.keep_running(&order);
        let status = kept.await_phase("ended");
        let reason = status["outcome"]["reason"].as_str().unwrap();
        assert!(reason.starts_with("it was not ready within 0.3 s: ") && reason.contains(missing), "{reason}");
        kept.tell("release");
        kept.gone();
    }
}

#[test]
fn a_program_says_itself_that_it_is_ready_also_as_an_ordinary_user() {
    let world = World::new("notify");
    let script = "
import os, socket, time
say = lambda text: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(text, os.environ['NOTIFY_SOCKET'])
say(b'STATUS=warming up')
while not os.path.exists('/tmp/go'): time.sleep(0.005)
say(b'READY=1\\nSTATUS=at your service')
time.sleep(1000)
";
    let mut order = world.order("a", script);
    order["definition"]["ready"] = json!("notify");
    let bundle = order["definition"]["source"]["bundle"].as_str().unwrap().to_owned() + "/config.json";
    let mut spec: Value = serde_json::from_slice(&fs::read(&bundle).unwrap()).unwrap();
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    fs::write(&bundle, spec.to_string()).unwrap();
    let kept = world.keep_running(&order);
    eventually("it says what it does", || kept.ask("status")["text"] == "warming up");
    assert_eq!(kept.ask("status")["phase"], "starting");
    fs::write(world.rootfs().join("tmp/go"), "").unwrap();
    assert_eq!(kept.await_phase("ready")["text"], "at your service");
    kept.finish();
    assert!(!world.rootfs().join("run/regen-notify").exists());
}

#[test]
fn a_web_server_is_ready_once_it_answers_well() {
    let world = World::new("http");
    let script = "
import http.server, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists('/tmp/go') else 503)
        self.end_headers()
server = http.server.HTTPServer(('', 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
server.serve_forever()
";
    let mut order = world.order("a", script);
    order["definition"]["ready"] = json!("http:/health?deep=1");
    let kept = world.keep_running(&order);
    eventually("it was asked", || {
        printed(&world).iter().any(|line| line.contains("GET /health?deep=1 HTTP/1.1\" 503"))
    });
    assert_eq!(kept.ask("status")["phase"], "starting");
    fs::write(world.rootfs().join("tmp/go"), "").unwrap();
    kept.await_phase("ready");
    kept.finish();
}

#[test]
fn a_keeper_whose_container_was_deleted_ends_unless_somebody_listens() {
    let world = World::new("deleted");
    let kept = world.keep_running(&world.order("a", GREETER));
    world.delete(&kept.instance);
    kept.gone();
    let kept = world.keep_running(&world.order("b", GREETER));
    let channel = kept.connect();
    world.delete(&kept.instance);
    assert_eq!(kept.await_phase("ended")["outcome"]["requested"], true);
    drop(channel);
    kept.gone();
}

#[test]
fn a_keeper_that_is_killed_leaves_a_container_that_can_be_deleted() {
    let world = World::new("killed");
    let mut kept = world.keep_running(&world.order("a", GREETER));
    kept.child.kill().unwrap();
    kept.child.wait().unwrap();
    world.delete(&kept.instance);
    regen::ops::keep::clear(&world.root(), &kept.instance.parse().unwrap()).unwrap();
    kept.gone();
}

#[test]
fn a_program_without_a_handler_ends_at_once_and_one_that_does_not_listen_is_killed() {
    let world = World::new("deaf");
    for (name, script, code) in [
        ("default", "import time; time.sleep(1000)", 137),
        (
            "ignores",
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(1000)",
            137,
        ),
    ] {
        let mut order = world.order(name, script);
        order["definition"]["ready"] = json!("none");
        let kept = world.keep_running(&order);
        eventually("it runs", || name == "default" || printed(&world) == ["1"]);
        assert_eq!(kept.finish()["outcome"]["exit_code"], code);
    }
}

#[test]
fn an_instance_in_a_ring_is_saved_at_its_end() {
    let world = World::new("saved");
    let mut order = world.order("a", "open('/etc/motd', 'w').write('hello'); import time; time.sleep(1000)");
    order["definition"]["ready"] = json!("none");
    order["definition"]["ring"] = json!("web");
    let kept = world.keep_running(&order);
    let path = |kept: &Kept| format!("/proc/{}/root/etc/motd", world.pid(&kept.instance));
    eventually("it has written", || fs::read_to_string(path(&kept)).is_ok_and(|text| text == "hello"));
    kept.finish();
    let entries = world.ring_json(&["log", "web"]);
    assert_eq!(entries.as_array().unwrap().len(), 1, "{entries:#}");
    assert_eq!(world.run_in("web", "cat /etc/motd").success().stdout(), "hello");
    world.pack();
}

#[test]
fn an_instance_of_a_directory_or_image_has_the_hosts_network_and_is_what_its_service_says() {
    let world = World::new("rootfs");
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES $COLOUR $(id -u) $(pwd); exec sleep 1000";
    let mut order = world.order_of_rootfs("a", script);
    order["definition"]["env"] = json!(["COLOUR=red"]);
    order["definition"]["user"] = json!("user");
    order["definition"]["workdir"] = json!("/tmp");
    let kept = world.keep_running(&order);
    eventually("it has printed", || printed(&world) == ["1 web red 1000 /tmp"]);
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(network(&world.pid(&kept.instance).to_string()), network("self"));
    kept.finish();
}

#[test]
fn an_ordinary_user_has_services_too() {
    let world = World::new("ordinary");
    let person = Person::new(&world, Subordinates::Some);
    let mut order = world.order_of_rootfs("a", "echo $(id -u); ls /sys/class/net >/dev/null && exec sleep 1000");
    order["cgroup_manager"] = json!("disabled");
    let mut own = std::process::Command::new("chown");
    own.arg("-R").arg(format!("{}:{}", person.user.uid, person.user.gid)).arg(world.store());
    world.finish(own).success();
    let keep = |order: &Value| {
        let (kept, reply) = world.keep_by(person.command("regen", &[]), order, &[]);
        assert_eq!(reply["reply"], "status", "{reply}");
        kept.await_phase("ready");
        kept
    };
    let first = keep(&order);
    first.tell("serve");
    eventually("it has printed", || printed(&world) == ["0"]);
    // Without a program in the kernel the order of sockets decides, which changes when one of them goes.
    let waiting = |kept: &Kept| {
        let (_, sockets) = kept.ask_for_sockets(&json!({"command": "sockets"}));
        regen::sys::socket::Socket::from(sockets.into_iter().next().unwrap()).queue().unwrap().waiting
    };
    let beside = |name: &str, before: &Kept| {
        let mut order = order.clone();
        order["instance"] = json!(world.id(name));
        order["listen"] = before.ask("status")["listen"].clone();
        order["beside"] = json!(before.instance);
        keep(&order)
    };
    let second = beside("b", &first);
    second.tell("serve");
    let port = second.port();
    first.finish();
    let third = beside("c", &second);
    let clients: Vec<_> = (0..10).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!((waiting(&second), waiting(&third)), (10, 0));
    drop(clients);
    second.finish();
    third.finish();
}

#[test]
fn an_address_that_somebody_else_has_is_refused_by_name() {
    let world = World::new("taken");
    let other = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut order = world.order("a", GREETER);
    let address = json!(format!("tcp://{}", other.local_addr().unwrap()));
    order["listen"][0]["address"] = address.clone();
    order["definition"]["listen"][0]["address"] = address;
    let (kept, reply) = world.keep(&order, &[]);
    assert_eq!(reply["error"]["kind"], "Busy", "{reply}");
    let cause = reply["error"]["cause"].as_str().unwrap();
    assert!(cause.contains(&std::process::id().to_string()), "{cause}");
    kept.gone();
}

#[test]
fn an_order_whose_giver_is_gone_makes_no_instance() {
    let world = World::new("orphan");
    let order = world.order("a", GREETER);
    let (ours, theirs) = Channel::pair().unwrap();
    ours.send(order.to_string().as_bytes(), &[]).unwrap();
    drop(ours);
    let mut command = Command::new(REGEN);
    command.args(["keeper", order["instance"].as_str().unwrap()]).env_clear();
    let mut keeper = command.stdin(OwnedFd::from(theirs)).spawn().unwrap();
    keeper.wait().unwrap();
    assert_eq!(world.regen(&["list", "--quiet"]).success().stdout(), "");
    assert_eq!(names(&world.root().join("@keepers")), [""; 0]);
    assert_eq!(names(&world.store().join("services/web@1.0.0")), [""; 0], "it has written a log");
}
