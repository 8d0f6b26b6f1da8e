//! Services on a ring: what a new instance finds, and what becomes of what the old one still writes.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::daemon::Daemon;
use crate::harness::load::{Load, Plan, Protocol, Request, Target};
use crate::harness::{Directory, World, eventually};

/// Keeps what it is told in `/state`: `+WORD` on a connection appends, and `?` is answered with all words. A connection stays
/// until the client goes. `n` is answered with `hello` after a line that nobody else has is in `/lines`, and closes.
const SERVER: &str = "
import os, signal, socket, threading, uuid
mode = os.environ.get('MODE', 'serve')
def append(name, text):
    with open(name, 'a') as f:
        f.write(text + '\\n')
def words():
    return ' '.join(open('/state').read().split()) if os.path.exists('/state') else ''
if mode == 'crash' or mode == 'hang':
    append('/state', 'broken')
if mode == 'crash':
    raise SystemExit(1)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if mode == 'hang':
    signal.pause()
def answer(connection):
    try:
        while said := connection.recv(100).decode():
            if said[0] == '+':
                append('/state', said[1:])
                connection.sendall(b'ok')
            elif said[0] == '?':
                connection.sendall(words().encode() or b'-')
            else:
                append('/lines', uuid.uuid4().hex)
                connection.sendall(b'hello')
                break
        connection.close()
    except OSError:
        pass
listener = socket.socket(fileno=3)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ['NOTIFY_SOCKET'])
notify.send(b'READY=1')
while True:
    connection, _ = listener.accept()
    threading.Thread(target=answer, args=(connection,), daemon=True).start()
";

/// A service on a ring of its own name.
struct Site<'a> {
    world: &'a World,
    daemon: Daemon<'a>,
    name: String,
    port: u16,
    _bundle: Directory,
}

/// Somebody who stays connected to one instance.
struct Guest(TcpStream);

impl Guest {
    fn ask(&mut self, text: &str) -> String {
        self.0.write_all(text.as_bytes()).unwrap();
        let mut answer = [0; 1000];
        let count = self.0.read(&mut answer).unwrap();
        String::from_utf8(answer[..count].to_vec()).unwrap()
    }

    /// Has the instance write something.
    #[track_caller]
    fn write(&mut self, word: &str) {
        assert_eq!(self.ask(&format!("+{word}")), "ok");
    }

    fn words(&mut self) -> String {
        self.ask("?")
    }
}

fn bundle(world: &World) -> Directory {
    world.python(SERVER, |spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != "network");
    })
}

impl<'a> Site<'a> {
    fn new(world: &'a World, more: &[&str]) -> Self {
        let daemon = world.daemon();
        let name = daemon.name("web");
        let bundle = bundle(world);
        let arguments = ["add", &name, "--version", "1.0.0", "--listen", "auto", "--bundle", bundle.text()];
        let ring = ["--ring", &name, "--ready", "notify", "--restart", "always"];
        daemon.service(&[&arguments, &ring[..], more].concat()).success();
        let port = daemon.port(&name);
        Self { world, daemon, name, port, _bundle: bundle }
    }

    fn guest(&self) -> Guest {
        Guest(TcpStream::connect(("127.0.0.1", self.port)).unwrap())
    }

    fn instance(&self, generation: u64) -> String {
        format!("{}-1.0.0-{generation}", self.name)
    }

    fn restart(&self) {
        self.daemon.service(&["restart", &self.name]).success();
    }

    /// Who has the ring, and who goes on beside its main line.
    fn users(&self) -> (Value, Value) {
        let ring = &self.world.ring_json(&["ls"])[0];
        (ring["in_use_by"].clone(), ring["beside"].clone())
    }

    /// Removes the service, and waits until everything is packed.
    fn close(&self) {
        self.daemon.service(&["rm", &self.name]).success();
        self.world.pack();
        assert_eq!(self.world.ring(&["verify"]).success().stdout(), "");
    }

    /// A file as an entry has it.
    fn file(&self, entry: &Value, name: &str) -> String {
        let layers = entry["layers"].as_array().unwrap().iter().rev();
        let mut paths = layers.map(|layer| self.world.layer(layer.as_str().unwrap()).join(name));
        paths.find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
    }

    /// The reason of each entry, whether it is beside the main line, and the words in it, newest first.
    fn entries(&self) -> Vec<(String, bool, String)> {
        let words = |entry: &Value| self.file(entry, "state").split_whitespace().collect::<Vec<_>>().join(" ");
        let describe = |entry: &Value| {
            (entry["reason"].as_str().unwrap().to_owned(), entry["side"].as_bool().unwrap(), words(entry))
        };
        self.world.log(&self.name).iter().map(describe).collect()
    }
}

fn entry(reason: &str, beside: bool, words: &str) -> (String, bool, String) {
    (reason.to_owned(), beside, words.to_owned())
}

#[test]
fn a_new_instance_has_what_the_old_one_had_and_what_that_still_writes_is_beside() {
    let world = World::new("svc-ring");
    let site = Site::new(&world, &[]);
    let mut old = site.guest();
    old.write("one");
    site.restart();
    let mut new = site.guest();
    assert_eq!(new.words(), "one");
    assert_eq!(site.users(), (json!(site.instance(2)), json!([site.instance(1)])));
    old.write("late");
    new.write("two");
    assert_eq!((old.words(), new.words()), ("one late".to_owned(), "one two".to_owned()));
    drop(old);
    site.daemon.await_rest(&site.name);
    let logs = site.daemon.service(&["logs", &site.name]);
    let words = format!("its successor does not have what it wrote last: that is 'root/{}@2'", site.name);
    assert!(logs.success().stdout().contains(&words), "{}", logs.stdout());
    drop(new);
    // The next one starts from the main line again, and there is nothing to write beside it.
    site.restart();
    assert_eq!(site.guest().words(), "one two");
    site.daemon.await_rest(&site.name);
    site.guest().write("three");
    site.close();
    let expected = [
        entry("exit", false, "one two three"),
        entry("snapshot", false, "one two"),
        entry("exit", true, "one late"),
        entry("snapshot", false, "one"),
    ];
    assert_eq!(site.entries(), expected);
}

#[test]
fn nothing_that_was_answered_is_lost_in_restarts_under_load() {
    let world = World::new("svc-ringload");
    let site = Site::new(&world, &[]);
    world.ring(&["set", &site.name, "--depth", "32"]).success();
    let target = Target::Tcp(([127, 0, 0, 1], site.port).into());
    let requests = vec![Request { bytes: b"n".to_vec(), answers: vec![b"hello".to_vec()] }];
    let load = Load::start(Plan { protocol: Protocol::Bytes, requests, ..Plan::http(target, "/", b"") });
    for count in 1..=8 {
        load.wait_for(150 * count);
        site.restart();
    }
    load.wait_for(1500);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    site.daemon.await_rest(&site.name);
    site.close();
    let log = world.log(&site.name);
    let kept = log.iter().filter(|entry| entry["side"] == true || entry["next"] == true);
    let mut lines: Vec<String> = kept.flat_map(|one| lines_of(&site.file(one, "lines"))).collect();
    lines.sort_unstable();
    lines.dedup();
    assert!(lines.len() as u64 >= outcome.requests, "{} of {}: {:?}", lines.len(), outcome.requests, site.entries());
    let main = log.iter().find(|entry| entry["next"] == true).unwrap();
    assert!(lines_of(&site.file(main, "lines")).len() > 600, "the main line has what was written before each restart");
}

fn lines_of(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_new_instance_that_does_not_come_up_leaves_ring_and_old_instance_as_they_were() {
    for (mode, words) in [("crash", "it ended with status 1"), ("hang", "it was not ready within 0.5 s")] {
        let world = World::new(&format!("svc-ring{mode}"));
        let site = Site::new(&world, &[]);
        let (mut old, pid) = (site.guest(), site.daemon.instance_pid(&site.name));
        old.write("one");
        let env = format!("MODE={mode}");
        let upgrade = ["upgrade", &site.name, "--to", "1.1.0", "--env", &env, "--ready-timeout", "500ms"];
        site.daemon.service(&upgrade).fails_with(1, words);
        assert_eq!(site.users(), (json!(site.instance(1)), json!([])));
        let other = ["upgrade", &site.name, "--to", "1.1.0", "--", "/no/such/program"];
        site.daemon.service(&other).fails_with(1, "/no/such/program");
        assert_eq!(site.users(), (json!(site.instance(1)), json!([])));
        assert_eq!((site.daemon.instance_pid(&site.name), old.words()), (pid, "one".to_owned()));
        old.write("two");
        drop(old);
        // What failed stands in nobody's way.
        site.restart();
        assert_eq!(site.guest().words(), "one two");
        site.daemon.await_rest(&site.name);
        site.close();
        let entries = site.entries();
        assert_eq!(entries.iter().filter(|one| one.1).collect::<Vec<_>>(), [&entry("exit", true, "one broken")]);
        let main: Vec<_> = entries.iter().filter(|one| !one.1).collect();
        assert_eq!(*main[0], entry("snapshot", false, "one two"), "{entries:?}");
    }
}

#[test]
fn an_old_instance_that_dies_while_its_successor_fails_is_what_the_next_one_starts_from() {
    let world = World::new("svc-ringboth");
    let site = Site::new(&world, &[]);
    let mut old = site.guest();
    old.write("one");
    let slow = ["service", "upgrade", &site.name, "--to", "1.1.0", "--env", "MODE=hang", "--ready-timeout", "1h"];
    let upgrade = world.spawn(world.command(&slow));
    let candidate = format!("{}-1.1.0-2", site.name);
    eventually("the new one has the ring", || site.users() == (json!(candidate), json!([site.instance(1)])));
    old.write("late");
    kill(Pid::from_raw(site.daemon.instance_pid(&site.name)), Signal::SIGKILL).unwrap();
    eventually("it is saved", || site.users() == (json!(candidate), json!([])));
    world.delete(&candidate);
    assert_eq!(upgrade.finish().code, 1);
    eventually("another one serves", || site.daemon.show(&site.name)["state"] == "serving");
    assert_eq!(site.guest().words(), "one late");
    site.daemon.await_rest(&site.name);
    site.close();
}

#[test]
fn a_daemon_that_is_killed_in_a_restart_leaves_the_ring_to_the_instance_that_serves() {
    let world = World::new("svc-ringkill");
    let mut site = Site::new(&world, &[]);
    let mut written = Vec::new();
    // From before anything is done to after everything is.
    for (round, pause) in [0, 4, 8, 12, 16, 20, 30, 40, 60, 80, 100, 140].into_iter().enumerate() {
        site.guest().write(&format!("w{round}"));
        written.push(format!("w{round}"));
        let restart = world.spawn(world.command(&["service", "restart", &site.name]));
        std::thread::sleep(std::time::Duration::from_millis(pause));
        site.daemon.end(Signal::SIGKILL);
        restart.finish();
        site.daemon.start();
        site.daemon.await_rest(&site.name);
        let instance = site.daemon.show(&site.name)["instance"].clone();
        eventually("it has the ring, alone", || site.users() == (instance.clone(), json!([])));
        assert_eq!(site.guest().words(), written.join(" "));
    }
    site.close();
    assert_eq!(site.entries().iter().find(|one| !one.1).unwrap().2, written.join(" "));
}

#[test]
fn a_successor_that_waits_for_nobody_any_more_gives_the_ring_back_to_the_old_instance() {
    // The daemon alone is killed; and the new instance's keeper with it.
    for keeper in [false, true] {
        let world = World::new(&format!("svc-ringgone{keeper}"));
        let mut site = Site::new(&world, &[]);
        let mut old = site.guest();
        old.write("one");
        let slow = ["service", "upgrade", &site.name, "--to", "1.1.0", "--env", "MODE=hang", "--ready-timeout", "1h"];
        let upgrade = world.spawn(world.command(&slow));
        let candidate = format!("{}-1.1.0-2", site.name);
        let mut pid = None;
        eventually("the new one is known", || {
            let instances = site.daemon.show(&site.name)["instances"].clone();
            let new = instances.as_array().unwrap().iter().find(|one| one["id"] == candidate && !one["pid"].is_null());
            pid = new.and_then(|one| one["keeper"].as_i64());
            pid.is_some() && site.users().0 == candidate
        });
        site.daemon.end(Signal::SIGKILL);
        upgrade.finish();
        if keeper {
            kill(Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()), Signal::SIGKILL).unwrap();
        }
        old.write("two");
        site.daemon.start();
        eventually("the old one has the ring", || site.users() == (json!(site.instance(1)), json!([])));
        site.daemon.await_rest(&site.name);
        assert_eq!(old.words(), "one two");
        drop(old);
        site.close();
        let entries = site.entries();
        assert_eq!(entries.iter().find(|one| !one.1).unwrap(), &entry("exit", false, "one two"), "{entries:?}");
    }
}

#[test]
fn an_upgrade_to_another_ring_leaves_the_old_one_its_own() {
    let world = World::new("svc-ringother");
    let site = Site::new(&world, &[]);
    let (mut old, other) = (site.guest(), site.daemon.name("other"));
    old.write("one");
    site.daemon.service(&["upgrade", &site.name, "--to", "2.0.0", "--ring", &other]).success();
    assert_eq!(site.guest().words(), "-");
    old.write("two");
    drop(old);
    site.daemon.await_rest(&site.name);
    assert_eq!(site.entries(), [entry("exit", false, "one two")]);
    site.close();
}

#[test]
fn an_upgrade_to_another_root_takes_the_state_along_only_if_that_is_said() {
    let world = World::new("svc-ringroot");
    let site = Site::new(&world, &[]);
    let mut old = site.guest();
    old.write("one");
    let root = world.base().join("other-root");
    let copied = std::process::Command::new("cp").arg("-a").args([&world.rootfs(), &root]).status();
    assert!(copied.unwrap().success());
    let bundle = world.python(SERVER, |spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != "network");
        spec["root"]["path"] = json!(root);
    });
    let upgrade = ["upgrade", &site.name, "--to", "2.0.0", "--bundle", bundle.text()];
    site.daemon.service(&upgrade).fails_with(1, "'--rebase'");
    assert_eq!(site.users(), (json!(site.instance(1)), json!([])));
    site.daemon.service(&[&upgrade[..], &["--rebase"]].concat()).success();
    assert_eq!(site.guest().words(), "one");
    drop(old);
    site.daemon.await_rest(&site.name);
    // It need not be said again, whether or not there is an entry over the new root by now.
    kill(Pid::from_raw(site.daemon.instance_pid(&site.name)), Signal::SIGKILL).unwrap();
    eventually("another one serves", || site.daemon.show(&site.name)["restarts"] == 1);
    site.daemon.await_rest(&site.name);
    site.guest().write("two");
    site.restart();
    assert_eq!(site.guest().words(), "one two");
    site.daemon.await_rest(&site.name);
    site.close();
}
