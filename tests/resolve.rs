//! `regen resolve` and the methods behind it, against the daemon's own server with a roster that the test fills in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
#[path = "../docs/examples/versions.rs"]
mod versions;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use harness::{Output, REGEN, Running, World, eventually};
use regen::control::{
    Access, Answer, Call, Catalog, Fault, Gauge, Interface, Limits, SERVICE, SOCKET, Server, version,
};
use regen::service::address::Listen;
use regen::service::roster::{Member, Roster};
use regen::sys::fs::open_path;
use regen::sys::stream::StreamListener;
use rustix::event::{EventfdFlags, eventfd};
use semver::VersionReq;
use serde_json::Value;

/// The methods of versions alone.
#[derive(Debug)]
struct Methods(Arc<Roster>);

impl Interface for Methods {
    fn name(&self) -> &'static str {
        SERVICE
    }

    fn description(&self) -> &'static str {
        ""
    }

    fn access(&self, method: &str) -> Option<Access> {
        version::access(method)
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        version::call((&self.0, None), call)
    }
}

/// The daemon's server for versions, at the root of a world.
struct Daemon {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(world: &World, roster: &Arc<Roster>) -> Self {
        let listener = StreamListener::replace(open_path(&world.root()).unwrap(), SOCKET, 0o600).unwrap();
        let catalog = Catalog::new(vec![Box::new(Methods(roster.clone()))]);
        let mut server = Server::new(listener, catalog, &Gauge::new(Limits::default())).unwrap();
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let wake = end.clone();
        let serve = move || {
            server.serve(&wake).unwrap();
            server.stop(Duration::from_secs(60)).unwrap();
        };
        Self { end, thread: Some(std::thread::spawn(serve)) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        rustix::io::write(&*self.end, &1_u64.to_ne_bytes()).unwrap();
        let _ = self.thread.take().unwrap().join();
    }
}

fn member(version: &str, addresses: &[&str]) -> Member {
    let name: regen::ids::Name = "orders".parse().unwrap();
    Member {
        instance: format!("orders-{version}-1").parse().unwrap(),
        version: version.parse().unwrap(),
        listen: addresses.iter().map(|address| Listen::parse(address, &name).unwrap()).collect(),
        name,
    }
}

/// A world with a daemon that knows these.
fn world(name: &str, members: &[Member]) -> (World, Arc<Roster>, Daemon) {
    let (world, roster) = (World::new(name), Roster::new());
    members.iter().for_each(|member| roster.add(member.clone()));
    let daemon = Daemon::start(&world, &roster);
    (world, roster, daemon)
}

fn resolve(world: &World, arguments: &[&str]) -> Output {
    world.regen(&[&["resolve"], arguments].concat())
}

fn withdraw(roster: &Roster, version: &str) {
    roster.withdraw(&format!("orders-{version}-1").parse().unwrap());
}

#[test]
fn the_address_of_the_newest_version_is_one_line() {
    let members =
        [member("1.2.0", &["tcp://0.0.0.0:80", "admin=unix:/run/admin"]), member("2.0.1", &["tcp://[::]:81"])];
    let (world, _roster, _daemon) = world("address", &members);
    assert_eq!(resolve(&world, &["orders"]).success().stdout(), "tcp://[::1]:81\n");
    assert_eq!(resolve(&world, &["orders@^1.1"]).success().stdout(), "tcp://127.0.0.1:80\n");
    assert_eq!(resolve(&world, &["orders@1", "--listen", "admin"]).success().stdout(), "unix:/run/admin\n");
    let json: Value = serde_json::from_str(resolve(&world, &["--json", "orders@1"]).success().stdout()).unwrap();
    let shown = ["name", "version", "instance", "address"].map(|key| json[key].as_str().unwrap().to_owned());
    assert_eq!(shown, ["orders", "1.2.0", "orders-1.2.0-1", "tcp://127.0.0.1:80"]);
    assert_eq!(json["addresses"][1]["name"], "admin");
}

#[test]
fn what_is_not_there_is_answered_with_what_is() {
    let (world, _roster, daemon) = world("nothing", &[member("1.2.0", &["auto"]), member("2.0.1", &["auto"])]);
    let lacks = "service 'orders' has no version that satisfies ^3: there are 1.2.0, 2.0.1";
    resolve(&world, &["orders@^3"]).fails_with(1, lacks);
    resolve(&world, &["ordesr"]).fails_with(1, "no version of service 'ordesr' is serving: did you mean 'orders'");
    resolve(&world, &["orders", "--listen", "web"]).fails_with(1, "has no address named 'web', only 'orders'");
    resolve(&world, &["orders@latest"]).fails_with(2, "give for example ^1.2");
    resolve(&world, &["orders", "--connect"]).fails_with(2, "required");
    resolve(&world, &["orders", "--", "true"]).fails_with(2, "--connect");
    drop(daemon);
    resolve(&world, &["orders"]).fails_with(1, "start 'regen serve'");
}

#[test]
fn equals_are_given_in_turn() {
    let (world, _roster, _daemon) =
        world("turn", &[member("1.0.0+a", &["tcp://127.0.0.1:1"]), member("1.0.0+b", &["tcp://127.0.0.1:2"])]);
    let turns: Vec<_> = (0..4).map(|_| resolve(&world, &["orders"]).success().stdout().to_owned()).collect();
    assert_eq!((&turns[0], &turns[1]), (&turns[2], &turns[3]));
    assert_ne!(turns[0], turns[1]);
}

#[test]
fn a_command_gets_the_connected_socket_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let (world, _roster, _daemon) = world("connect", &[member("1.2.0", &[&address])]);
    let server = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut question = [0; 7];
        connection.read_exact(&mut question).unwrap();
        connection.write_all(&[&question[..6], b"answer\n"].concat()).unwrap();
        drop(connection);
        drop(listener.accept().unwrap());
    });
    let run = |arguments: &[&str]| {
        // The caller's shell leaves descriptors open.
        let mut careless = Command::new("sh");
        careless.args(["-c", "exec 5</dev/null 7</dev/null; exec \"$@\"", "sh", REGEN, "--root"]).arg(world.root());
        careless.arg("--store").arg(world.store()).args(["resolve", "orders@1", "--connect", "--"]).args(arguments);
        careless.env("LISTEN_FDS", "9").env("LISTEN_PIDFDID", "1");
        world.finish(careless)
    };
    let output = run(&["sh", "-c", "echo $$ $LISTEN_PID $LISTEN_FDS $LISTEN_FDNAMES; echo ask-12 >&3; cat <&3"]);
    let (first, rest) = output.success().stdout().split_once('\n').unwrap();
    let words: Vec<_> = first.split(' ').collect();
    assert_eq!((words[0], &words[2..]), (words[1], ["1", "orders"].as_slice()));
    assert_eq!(rest, "ask-12answer\n");
    // The fourth is the directory that it reads.
    assert_eq!(run(&["ls", "/proc/self/fd"]).success().stdout(), "0\n1\n2\n3\n4\n");
    server.join().unwrap();
}

#[test]
fn a_unix_socket_is_handed_over_too() {
    let (world, roster) = (World::new("unix"), Roster::new());
    let path = world.base().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    roster.add(member("1.0.0", &[&format!("unix:{}", path.display())]));
    let _daemon = Daemon::start(&world, &roster);
    std::thread::scope(|scope| {
        scope.spawn(|| listener.accept().unwrap().0.write_all(b"hello\n").unwrap());
        let output = resolve(&world, &["orders", "--connect", "--", "sh", "-c", "cat <&3"]);
        assert_eq!(output.success().stdout(), "hello\n");
    });
}

#[test]
fn a_command_that_cannot_be_executed_ends_as_with_a_shell() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let (world, _roster, _daemon) = world("command", &[member("1.2.0", &[&address])]);
    let file = world.base().join("file");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    let run = |command: &str| resolve(&world, &["orders", "--connect", "--", command]);
    run("no-such-program").fails_with(127, "executable file not found in $PATH");
    run("/no/such/program").fails_with(127, "no such file or directory");
    run(file.to_str().unwrap()).fails_with(126, "permission denied");
    run("/").fails_with(126, "permission denied");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    run(file.to_str().unwrap()).success();
    let link = world.base().join("link");
    symlink(&file, &link).unwrap();
    run(link.to_str().unwrap()).success();
    resolve(&world, &["orders", "--connect", "--", "sh", "-c", "exit 7"]).code(7);
}

fn watch(world: &World, arguments: &[&str]) -> Running {
    let mut command = world.command(&[&["resolve", "--watch"], arguments].concat());
    command.stdin(Stdio::null());
    world.spawn(command)
}

fn end(mut watcher: Running) {
    watcher.child.kill().unwrap();
    watcher.child.wait().unwrap();
}

#[test]
fn versions_that_come_and_go_are_told_line_by_line() {
    let (world, roster, _daemon) =
        world("watch", &[member("1.2.0", &["tcp://127.0.0.1:80"]), member("2.0.0", &["auto"])]);
    let mut lines = watch(&world, &["orders@1"]);
    let mut objects = watch(&world, &["orders@^1", "--json"]);
    let mut admins = watch(&world, &["orders", "--listen", "admin"]);
    lines.wait_for("+ orders 1.2.0 tcp://127.0.0.1:80\n");
    objects.wait_for("}\n");
    roster.add(member("1.3.0", &["tcp://127.0.0.1:81", "admin=unix:/run/admin"]));
    roster.add(member("2.1.0", &["tcp://127.0.0.1:82"]));
    withdraw(&roster, "1.2.0");
    lines.wait_for("- orders 1.2.0");
    objects.wait_for("withdrawn");
    admins.wait_for("+ orders 1.3.0 unix:/run/admin\n");
    assert_eq!(admins.so_far().lines().count(), 1, "of those that have such an address");
    assert_eq!(
        lines.so_far(),
        "+ orders 1.2.0 tcp://127.0.0.1:80\n+ orders 1.3.0 tcp://127.0.0.1:81\n- orders 1.2.0 tcp://127.0.0.1:80\n"
    );
    let parsed: Vec<Value> = objects.so_far().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> = parsed.iter().map(|line| (line["change"].as_str(), line["version"].as_str())).collect();
    let change = |change, version| (Some(change), Some(version));
    assert_eq!(shown, [change("added", "1.2.0"), change("added", "1.3.0"), change("withdrawn", "1.2.0")]);
    end(lines);
    end(objects);
    end(admins);
}

#[test]
fn another_instance_of_a_version_at_its_address_is_no_line_and_an_object() {
    let (world, roster, _daemon) = world("again", &[member("1.2.0", &["tcp://127.0.0.1:80"])]);
    let (mut lines, mut objects) = (watch(&world, &["orders"]), watch(&world, &["orders", "--json"]));
    lines.wait_for("+ orders 1.2.0 tcp://127.0.0.1:80\n");
    objects.wait_for("orders-1.2.0-1");
    let instance = "orders-1.2.0-2".parse().unwrap();
    roster.add(Member { instance, ..member("1.2.0", &["tcp://127.0.0.1:80"]) });
    roster.add(member("1.2.0", &["tcp://127.0.0.1:81"]));
    lines.wait_for(":81\n");
    objects.wait_for("tcp://127.0.0.1:81");
    assert_eq!(lines.so_far(), "+ orders 1.2.0 tcp://127.0.0.1:80\n+ orders 1.2.0 tcp://127.0.0.1:81\n");
    assert_eq!(objects.so_far().matches("orders-1.2.0-2").count(), 1);
    end(lines);
    end(objects);
}

#[test]
fn a_watcher_outlives_the_daemon_and_learns_what_it_missed() {
    let (world, roster, daemon) = world("again", &[member("1.2.0", &["tcp://127.0.0.1:80"])]);
    roster.add(member("2.0.0", &["tcp://127.0.0.1:90"]));
    let mut watcher = watch(&world, &["orders"]);
    watcher.wait_for("+ orders 2.0.0");
    drop(daemon);
    withdraw(&roster, "1.2.0");
    roster.add(member("1.3.0", &["tcp://127.0.0.1:81"]));
    let _daemon = Daemon::start(&world, &roster);
    watcher.wait_for("- orders 1.2.0");
    let expected = ["+ orders 1.2.0", "+ orders 2.0.0", "+ orders 1.3.0", "- orders 1.2.0"];
    let told: Vec<_> = watcher.so_far().lines().map(|line| line[..14].to_owned()).collect();
    assert_eq!(told, expected, "what did not change is told once");
    end(watcher);
}

#[test]
fn a_watcher_ends_when_nobody_reads_it() {
    let (world, roster, _daemon) = world("pipe", &[member("1.2.0", &["auto"])]);
    let mut command = world.command(&["resolve", "--watch", "orders"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 14];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"+ orders 1.2.0");
    roster.add(member("1.3.0", &["auto"]));
    eventually("the watcher ends", || child.try_wait().unwrap().is_some());
    assert!(child.wait().unwrap().success());
}

/// A server that says who it is, and its address.
fn says(text: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok((mut connection, _)) = listener.accept() {
            let _ = connection.write_all(text.as_bytes());
        }
    });
    address
}

fn hear(mut connection: impl Read) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_rust_example_connects_to_what_it_heard_of() {
    let (world, roster, daemon) =
        world("rust", &[member("1.2.0", &[&says("1.2.0")]), member("2.0.0", &[&says("2.0.0")])]);
    let control = world.root().join(SOCKET);
    let versions = versions::Versions::watch(&control, "orders").unwrap();
    let connect = |requirement: &str| versions.connect(&VersionReq::parse(requirement).unwrap());
    let heard = |requirement: &str| hear(connect(requirement).unwrap().1);
    assert_eq!((heard("^1"), heard("*")), ("1.2.0".into(), "2.0.0".into()));
    assert_eq!(connect("^3").unwrap_err().to_string(), "no version satisfies ^3");
    roster.add(member("1.3.0", &[&says("1.3.0")]));
    withdraw(&roster, "1.2.0");
    eventually("the new version is heard of", || heard("^1") == "1.3.0");
    drop(daemon);
    assert_eq!(heard("^1"), "1.3.0", "a copy is good without the daemon");
    withdraw(&roster, "2.0.0");
    let _daemon = Daemon::start(&world, &roster);
    eventually("what was missed is made up for", || heard("*") == "1.3.0");
}

#[test]
fn the_python_example_resolves_connects_and_keeps_a_copy() {
    let ten = member("1.10.0", &[&says("1.10.0")]);
    let (world, roster, _daemon) = world("python", &[member("1.9.0", &[&says("1.9.0")]), ten]);
    let script = r#"
import sys, time, versions
path = sys.argv[1]
daemon = versions.Daemon(path)
print(daemon.resolve("orders", "^1")["version"])
connection, version = daemon.connect("orders", "=1.9.0")
print(version, connection.recv(99).decode())
try:
    daemon.resolve("orders", "^3")
except LookupError as error:
    print(error)
copy = versions.Copy("orders", "^1", path)
connection, version = copy.connect()
print(version, connection.recv(99).decode(), flush=True)
sys.stdin.readline()
while copy.newest()[0] != "1.9.0":
    time.sleep(0.01)
connection, version = copy.connect()
print(version, connection.recv(99).decode())
pre = ["1.0.0-rc.1", "1.0.0-rc.2", "1.0.0-rc.10", "1.0.0-rc.x", "1.0.0", "1.0.1"]
print(sorted(reversed(pre), key=versions.precedence) == pre)
"#;
    let mut command = Command::new("python3");
    command.args(["-B", "-c", script]).arg(world.root().join(SOCKET));
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = || lines.next().unwrap();
    assert_eq!(next(), "1.10.0");
    assert_eq!(next(), "1.9.0 1.9.0");
    assert!(next().ends_with("no version that satisfies ^3: there are 1.9.0, 1.10.0"));
    assert_eq!(next(), "1.10.0 1.10.0");
    withdraw(&roster, "1.10.0");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!((next(), next()), ("1.9.0 1.9.0".to_owned(), "True".to_owned()));
    assert!(child.wait().unwrap().success());
}
