//! Versions side by side, as clients see them: a real daemon, real instances, and clients that ask all the while.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
#[path = "../docs/examples/versions.rs"]
mod local_copy;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use harness::{Output, Running, World, eventually};
use local_copy::Versions;
use regen::control::SOCKET;
use regen::control::client::Client;
use regen::control::version::{Connected, Member, Question, method};
use semver::{Version, VersionReq};

/// Says its version to whoever sends a line, a thread for each; it knows nothing of stopping gracefully.
const PROGRAM: &str = r#"
use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;

fn main() {
    let version = std::env::args().nth(1).unwrap();
    // SAFETY: the daemon passes it (LISTEN_FDS).
    let listener = unsafe { std::net::TcpListener::from_raw_fd(3) };
    for connection in listener.incoming() {
        let (mut connection, version) = (connection.unwrap(), version.clone());
        std::thread::spawn(move || {
            let mut line = String::new();
            if BufReader::new(connection.try_clone().unwrap()).read_line(&mut line).is_ok_and(|count| count > 0) {
                let _ = writeln!(connection, "{version}");
            }
        });
    }
}
"#;

/// The program, linked statically, so that it runs in any root file system.
fn program() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let (source, built) = (directory.join("versions.rs"), directory.join("says-version"));
        std::fs::write(&source, PROGRAM).unwrap();
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2024", "-C", "target-feature=+crt-static", "-o"]).arg(&built).arg(&source);
        assert!(rustc.stdin(Stdio::null()).status().unwrap().success());
        built
    })
}

/// A daemon, and a service whose instances say their version. Its name is on the whole machine nobody else's: instances
/// have cgroups that are named after it.
struct Site {
    world: World,
    name: String,
    daemon: Option<Running>,
}

impl Site {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        std::fs::copy(program(), world.rootfs().join("bin/says-version")).unwrap();
        let name = world.id("orders");
        let mut site = Self { world, name, daemon: None };
        site.start();
        site
    }

    fn start(&mut self) {
        let mut command = self.world.command(&["serve"]);
        command.stdin(Stdio::null());
        self.daemon = Some(self.world.spawn(command));
        eventually("the daemon answers", || self.try_service(&["ls"]).code == 0);
    }

    fn stop(&mut self) {
        let daemon = self.daemon.take().unwrap();
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        daemon.finish().success();
    }

    fn try_service(&self, arguments: &[&str]) -> Output {
        self.world.regen(&[&["service"], arguments].concat())
    }

    /// `NAME@REQ`
    fn of(&self, requirement: &str) -> String {
        format!("{}@{requirement}", self.name)
    }

    fn service(&self, arguments: &[&str]) {
        self.try_service(arguments).success();
    }

    /// One more version, at an address of its own.
    fn add(&self, version: &str) {
        let rootfs = self.world.rootfs();
        let source = ["--rootfs", rootfs.to_str().unwrap(), "--", "says-version", version];
        let flags = ["add", &self.name, "--version", version, "--listen", "auto", "--handover", "listen-fds"];
        self.service(&[flags.as_slice(), &source].concat());
    }

    fn upgrade(&self, old: &str, new: &str) {
        self.service(&["upgrade", &self.of(old), "--to", new, "--", "says-version", new]);
    }

    fn restart(&self, version: &str) {
        self.service(&["restart", &self.of(version)]);
    }

    fn remove(&self, version: &str) {
        self.service(&["rm", &self.of(version)]);
    }

    fn resolve(&self, requirement: &str, arguments: &[&str]) -> Output {
        self.world.regen(&[&["resolve", &self.of(requirement)], arguments].concat())
    }

    fn control(&self) -> PathBuf {
        self.world.root().join(SOCKET)
    }

    fn client(&self) -> Client {
        Client::connect(&self.world.root()).unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // What a test that panics leaves would be told of in place of its message.
        if self.daemon.is_some() {
            let _ = self.try_service(&["rm", &self.name]);
            self.stop();
        }
    }
}

/// Asks who is at the other end.
fn ask(mut connection: TcpStream) -> Result<Version, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut answer = String::new();
    connection.set_read_timeout(Some(Duration::from_secs(30))).map_err(text)?;
    connection.write_all(b"who\n").map_err(text)?;
    connection.read_to_string(&mut answer).map_err(text)?;
    answer.trim().parse().map_err(|error| format!("{answer:?}: {error}"))
}

fn question(wanted: &str) -> Question {
    Question::new(wanted.parse().unwrap(), None)
}

/// A way in which a client comes to a version.
#[derive(Debug, Clone, Copy)]
enum Way {
    Resolve,
    Connect,
    Copy,
}

/// What a client of one major version does, once.
fn visitor(site: &Site, way: Way, major: u64) -> Box<dyn FnMut() -> Result<Version, String> + Send + '_> {
    let wanted = question(&site.of(&format!("^{major}")));
    let text = |error: regen::error::Error| error.to_string();
    match way {
        Way::Resolve => {
            let mut client = site.client();
            Box::new(move || {
                let (member, _) = client.call::<Member>(method::RESOLVE, &wanted).map_err(text)?;
                let address = member.address.to_string();
                let stream = TcpStream::connect(address.trim_start_matches("tcp://"));
                ask(stream.map_err(|error| format!("{} at {address}: {error}", member.version))?)
            })
        }
        Way::Connect => {
            let mut client = site.client();
            Box::new(move || {
                let (connected, mut files) = client.call::<Connected>(method::CONNECT, &wanted).map_err(text)?;
                ask(files.remove(connected.fd_index).into())
            })
        }
        Way::Copy => {
            let versions = Versions::watch(&site.control(), &site.name).unwrap();
            let requirement = VersionReq::parse(&format!("^{major}")).unwrap();
            Box::new(move || {
                let (_, stream) = versions.connect(&requirement).map_err(|error| error.to_string())?;
                ask(stream)
            })
        }
    }
}

/// What clients were answered: how often by which version, and what went wrong.
#[derive(Debug, Default)]
struct Answers {
    versions: BTreeMap<Version, u64>,
    failures: Vec<String>,
}

/// Asks again and again until it is over.
fn keep_asking(site: &Site, way: Way, major: u64, (asked, over): (&AtomicU64, &AtomicBool)) -> Answers {
    let (mut answers, mut visit) = (Answers::default(), visitor(site, way, major));
    while !over.load(Ordering::Relaxed) {
        match visit() {
            Ok(version) if version.major == major => *answers.versions.entry(version).or_default() += 1,
            Ok(version) => answers.failures.push(format!("{way:?} ^{major}: answered by {version}")),
            Err(error) => answers.failures.push(format!("{way:?} ^{major}: {error}")),
        }
        asked.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2));
    }
    answers
}

#[test]
fn clients_of_two_major_versions_live_through_ten_changes_without_a_failure() {
    let site = Site::new("changes");
    site.add("1.2.0");
    site.add("2.0.0");
    let (asked, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let each: Vec<(Way, u64)> =
        [Way::Resolve, Way::Connect, Way::Copy].into_iter().flat_map(|way| [(way, 1), (way, 2)]).collect();
    let answers: Vec<Answers> = std::thread::scope(|scope| {
        let (site, asked, over) = (&site, &asked, &over);
        let clients: Vec<_> = each
            .iter()
            .map(|(way, major)| scope.spawn(move || keep_asking(site, *way, *major, (asked, over))))
            .collect();
        // Every client comes by between two changes.
        let settle = || {
            let enough = asked.load(Ordering::Relaxed) + 300;
            eventually("clients are answered", || asked.load(Ordering::Relaxed) >= enough);
        };
        let changes: [&dyn Fn(); 12] = [
            &|| site.add("1.3.0"),
            &|| site.remove("1.2.0"),
            &|| site.add("2.1.0"),
            &|| site.restart("1.3.0"),
            &|| site.upgrade("2.0.0", "2.0.1"),
            &|| site.remove("2.1.0"),
            &|| site.add("1.4.0-rc.1"),
            &|| site.upgrade("1.3.0", "1.3.1"),
            &|| site.restart("2.0.1"),
            &|| site.add("3.0.0"),
            &|| site.add("1.3.1+again"),
            &|| site.remove("1.3.1"),
        ];
        settle();
        for change in changes {
            change();
            settle();
        }
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let failures: Vec<_> = answers.iter().flat_map(|answers| &answers.failures).collect();
    let count: u64 = answers.iter().flat_map(|answers| answers.versions.values()).sum();
    assert!(failures.is_empty(), "{} of {count} failed: {:#?}", failures.len(), &failures[..failures.len().min(10)]);
    for ((way, major), answers) in each.iter().zip(&answers) {
        let expected: &[&str] = match major {
            1 => &["1.2.0", "1.3.0", "1.3.1", "1.3.1+again"],
            _ => &["2.0.0", "2.0.1", "2.1.0"],
        };
        let met: Vec<_> = answers.versions.keys().map(ToString::to_string).collect();
        assert_eq!(met, expected, "{way:?} ^{major}");
    }
}

#[test]
fn equals_share_the_clients() {
    let site = Site::new("equals");
    for version in ["1.0.0+a", "1.0.0+b", "1.0.0+c"] {
        site.add(version);
    }
    for way in [Way::Resolve, Way::Connect, Way::Copy] {
        let mut visit = visitor(&site, way, 1);
        let mut met: BTreeMap<Version, u32> = BTreeMap::new();
        for _ in 0..9 {
            *met.entry(visit().unwrap()).or_default() += 1;
        }
        assert_eq!(met.values().collect::<Vec<_>>(), [&3, &3, &3], "{way:?}: {met:?}");
    }
    let one: BTreeSet<_> = (0..4).map(|_| site.resolve("=1.0.0+b", &[]).success().stdout().to_owned()).collect();
    assert_eq!(one.len(), 1);
}

#[test]
fn a_version_that_nobody_serves_is_answered_with_those_that_are_there() {
    let site = Site::new("none");
    site.resolve("*", &[]).fails_with(1, &format!("no version of service '{}' is serving", site.name));
    site.add("1.2.0");
    site.add("2.0.1");
    site.resolve("^3", &[]).fails_with(1, "has no version that satisfies ^3: there are 1.2.0, 2.0.1");
    let near = format!("did you mean '{}'", site.name);
    site.world.regen(&["resolve", &site.name[..site.name.len() - 1]]).fails_with(1, &near);
    site.remove("2.0.1");
    site.resolve("^2", &[]).fails_with(1, "there is 1.2.0");
}

#[test]
fn a_command_is_connected_to_the_version_that_it_wants() {
    let site = Site::new("command");
    site.add("1.2.0");
    site.add("2.0.1");
    let output = site.resolve("1", &["--connect", "--", "sh", "-c", "echo who >&3; cat <&3"]);
    assert_eq!(output.success().stdout(), "1.2.0\n");
}

#[test]
fn watchers_hear_of_a_withdrawal_while_the_version_still_accepts() {
    let site = Site::new("withdrawal");
    site.add("1.2.0");
    site.add("1.3.0");
    let address = site.resolve("=1.3.0", &[]).success().stdout().trim().to_owned();
    let mut watch = site.world.command(&["resolve", &site.name, "--watch"]);
    watch.stdin(Stdio::null());
    let mut watcher = site.world.spawn(watch);
    watcher.wait_for(&format!("+ {} 1.3.0", site.name));
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| site.remove("1.3.0"));
        watcher.wait_for(&format!("- {} 1.3.0", site.name));
        let late = TcpStream::connect(address.trim_start_matches("tcp://")).unwrap();
        assert_eq!(ask(late).unwrap().to_string(), "1.3.0");
        removal.join().unwrap();
    });
    let place = address.trim_start_matches("tcp://");
    eventually("nobody listens there any more", || TcpStream::connect(place).is_err());
    watcher.child.kill().unwrap();
    watcher.child.wait().unwrap();
}

#[test]
fn a_copy_serves_clients_over_a_restart_of_the_daemon() {
    let mut site = Site::new("daemon");
    site.add("1.2.0");
    site.add("2.0.0");
    let versions = Versions::watch(&site.control(), &site.name).unwrap();
    let requirement = VersionReq::parse("^1").unwrap();
    let met = || ask(versions.connect(&requirement).unwrap().1).unwrap().to_string();
    assert_eq!(met(), "1.2.0");
    site.stop();
    assert_eq!(met(), "1.2.0");
    site.start();
    assert_eq!(met(), "1.2.0");
    site.add("1.3.0");
    eventually("the copy is up to date again", || met() == "1.3.0");
}
