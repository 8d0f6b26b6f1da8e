//! The suite over the registry of many machines, and what is true of that one only: members that fail, encryption, users.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use regen::config::Cluster;
use regen::error::{Error, Kind};
use regen::registry::etcd::Settings;
use regen::registry::{Answer, Etcd, Failure, Lease, Registry, Renewed, Transaction};

use tempfile::TempDir;

use crate::harness::certificate::Authority;
use crate::harness::etcd::Etcd as Server;
use crate::harness::port::free_port;
use crate::suite::watch::hear;
use crate::suite::{Subject, crowd, put, refused, value};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

/// Opens the etcd that a URL names.
pub fn open(url: &str, cluster: &Cluster) -> Arc<dyn Registry> {
    Arc::new(Etcd::open(Settings::new(url, cluster).unwrap()).unwrap())
}

/// One of one's own. The members end before their files go. No world: it would find processes of other tests.
#[derive(Debug)]
pub struct Own {
    server: Mutex<Server>,
    _base: TempDir,
}

fn own(count: usize) -> Own {
    let base = tempfile::tempdir().unwrap();
    Own { server: Mutex::new(Server::cluster(&base, count)), _base: base }
}

fn one() -> Own {
    own(1)
}

fn three() -> Own {
    own(3)
}

impl Own {
    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap()
    }
}

impl Subject for Own {
    fn open(&self) -> Arc<dyn Registry> {
        open(&self.server().url(), &Cluster::default())
    }

    fn address(&self) -> String {
        format!("etcd:{}", self.server().url())
    }

    fn shortest_lease(&self) -> Duration {
        // No lease is shorter than the time in which members choose a leader, and a half.
        Duration::from_secs(2)
    }

    fn forget(&self, _revision: u64) {
        self.server().compact();
    }
}

mod alone {
    conforms!(crate::etcd::one);
}

mod of_three {
    conforms!(crate::etcd::three);
}

/// Three members to whose leader something is done again and again.
#[derive(Debug)]
struct Harmed {
    url: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Harmed {
    fn new(mut harm: impl FnMut(&mut Server) + Send + 'static) -> Self {
        let own = three();
        let (url, stop) = (own.server().url(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                harm(&mut own.server());
                rounds += 1;
            }
            rounds
        });
        Self { url, stop, thread: Some(thread) }
    }

    fn killed() -> Self {
        Self::new(|server| {
            let leader = server.leader();
            server.kill(leader);
            std::thread::sleep(Duration::from_secs(1));
            server.restart(leader);
            std::thread::sleep(Duration::from_secs(1));
        })
    }

    fn paused() -> Self {
        Self::new(|server| {
            let leader = server.leader();
            server.pause(leader);
            // The others choose another one meanwhile.
            std::thread::sleep(Duration::from_secs(3));
            server.resume(leader);
            std::thread::sleep(Duration::from_secs(1));
        })
    }

    /// How often something was done.
    fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Harmed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Subject for Harmed {
    fn open(&self) -> Arc<dyn Registry> {
        open(&self.url, &Cluster::default())
    }

    fn address(&self) -> String {
        format!("etcd:{}", self.url)
    }

    fn shortest_lease(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn forget(&self, _revision: u64) {}
}

/// What callers who look before they ask again do, until something was done to the leader so often.
fn endure(harmed: impl Fn() -> Harmed, test: fn(&dyn Subject)) {
    // Members of several clusters at once would be so slow that they find no leader.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rounds = 0;
    while rounds < 3 {
        let subject = harmed();
        test(&subject);
        rounds += subject.end();
    }
}

#[test]
fn threads_count_to_the_exact_sum_while_the_leader_is_killed() {
    endure(Harmed::killed, crowd::threads_count_to_the_exact_sum);
}

#[test]
fn processes_count_to_the_exact_sum_while_the_leader_is_killed() {
    endure(Harmed::killed, crowd::processes_count_to_the_exact_sum);
}

#[test]
fn a_marker_has_one_holder_at_a_time_while_the_leader_is_killed() {
    endure(Harmed::killed, crowd::a_key_has_one_holder_at_a_time);
}

#[test]
fn a_copy_becomes_the_same_while_the_leader_is_killed() {
    endure(Harmed::killed, crowd::a_copy_that_is_fed_by_a_watch_becomes_the_same);
}

#[test]
fn threads_count_to_the_exact_sum_while_the_leader_is_paused() {
    endure(Harmed::paused, crowd::threads_count_to_the_exact_sum);
}

#[test]
fn a_marker_has_one_holder_at_a_time_while_the_leader_is_paused() {
    endure(Harmed::paused, crowd::a_key_has_one_holder_at_a_time);
}

#[test]
fn keys_lie_below_the_prefix_and_others_are_not_seen() {
    let subject = one();
    let (registry, server) = (subject.open(), subject.server());
    put(&*registry, "a", "one");
    assert_eq!(server.ctl(&["get", "--print-value-only", "regen/a"]).trim_end(), "one");
    server.ctl(&["put", "regenerate", "x"]);
    server.ctl(&["put", "other/a", "x"]);
    assert_eq!(registry.list("").unwrap().entries.len(), 1);
    let other = open(&server.url(), &Cluster { prefix: "other".to_owned(), ..Cluster::default() });
    assert_eq!(value(&*other, "a").unwrap(), "x");
    assert_eq!(registry.identity().unwrap(), other.identity().unwrap(), "their revisions are the same ones");
}

#[test]
fn nobody_there_is_unavailable_and_said_in_one_line() {
    let registry = open(&format!("etcd://127.0.0.1:{}", free_port("127.0.0.1")), &Cluster::default());
    for answer in [
        registry.get("a").map(|_| ()),
        registry.identity().map(|_| ()),
        registry.apply(&Transaction::replace("a", 0, Vec::new())).map(|_| ()),
        registry.grant(LONG).map(|_| ()),
        registry.renew(Lease(1)).map(|_| ()),
        registry.watch("", 1).map(|_| ()),
    ] {
        let Err(Failure::Unavailable(error)) = answer else { panic!("{answer:?}") };
        let line = error.to_string();
        assert!(line.contains("connection refused") && line.contains("cluster.registry"), "{line}");
    }
}

#[test]
fn one_that_comes_back_is_used_again() {
    let subject = one();
    let registry = subject.open();
    let revision = put(&*registry, "a", "1");
    let mut watch = registry.watch("", revision).unwrap();
    subject.server().kill(0);
    assert!(matches!(watch.next(Some(LONG)), Err(Failure::Unavailable(_))), "who watches is told");
    assert!(matches!(watch.next(Some(LONG)), Err(Failure::Unavailable(_))), "and it stays so");
    assert!(matches!(registry.get("a"), Err(Failure::Unavailable(_))));
    subject.server().restart(0);
    assert_eq!(registry.get("a").unwrap().unwrap().modified, revision);
    let mut watch = registry.watch("", revision).unwrap();
    put(&*registry, "a", "2");
    assert_eq!(hear(&mut *watch, 1).len(), 1);
}

#[test]
fn one_that_was_made_anew_is_another() {
    let base = tempfile::tempdir().unwrap();
    let mut server = Server::start(&base);
    let registry = open(&server.url(), &Cluster::default());
    put(&*registry, "a", "1");
    server.make_anew();
    let error = refused(registry.get("a"), Kind::State);
    assert!(error.to_string().contains("was there before"), "{error}");
}

#[test]
fn a_paused_one_leaves_a_write_undecided() {
    let subject = one();
    let registry = open(&subject.server().url(), &Cluster { timeout: 1, ..Cluster::default() });
    put(&*registry, "a", "1");
    subject.server().pause(0);
    let written = registry.apply(&Transaction::replace("b", 0, Vec::new()));
    let Err(Failure::Indeterminate(error)) = written else { panic!("{written:?}") };
    assert!(error.to_string().contains("may have been done"), "{error}");
    let written = registry.apply(&Transaction::replace("b", 0, Vec::new()));
    assert!(matches!(written, Err(Failure::Unavailable(_))), "no new connection is made: {written:?}");
    assert!(matches!(registry.get("a"), Err(Failure::Unavailable(_))));
    subject.server().resume(0);
    assert_eq!(value(&*registry, "a").unwrap(), "1");
}

/// What a member says of a certificate may be lost with the connection.
fn turned_away<T: std::fmt::Debug>(answer: Answer<T>) -> Error {
    match answer {
        Err(Failure::Refused(error) | Failure::Unavailable(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_encrypted_one_is_used_with_certificates() {
    let base = tempfile::tempdir().unwrap();
    let server = Server::encrypted(&base);
    let security = server.security();
    let good = Cluster {
        ca: Some(security.authority.certificate()),
        certificate: Some(security.client.certificate.clone()),
        key: Some(security.client.key.clone()),
        ..Cluster::default()
    };
    let registry = open(&server.url(), &good);
    let revision = put(&*registry, "a", "1");
    assert_eq!(hear(&mut *registry.watch("", revision - 1).unwrap(), 1).len(), 1);
    let others = Authority::new(&base.path().join("others"));
    let stranger = others.issue("stranger", "IP:127.0.0.1", 10);
    let expired = security.authority.issue("expired", "IP:127.0.0.1", -1);
    for (cluster, words) in [
        (Cluster { ca: Some(others.certificate()), ..good.clone() }, "another authority"),
        (Cluster { certificate: None, key: None, ..good.clone() }, "asks for a certificate"),
        (
            Cluster { certificate: Some(stranger.certificate), key: Some(stranger.key), ..good.clone() },
            "does not accept this machine's certificate",
        ),
        (
            Cluster { certificate: Some(expired.certificate), key: Some(expired.key), ..good.clone() },
            "does not accept this machine's certificate",
        ),
        (Cluster::default(), "encryption"),
    ] {
        let other = open(&server.url(), &cluster);
        let error = turned_away(other.apply(&Transaction::replace("b", 0, Vec::new())));
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(registry.get("b").unwrap(), None);
}

#[test]
fn certificates_of_members_are_checked() {
    for (host, days, words) in [("IP:127.0.0.1", -1, "has expired"), ("DNS:etcd.example", 10, "is for another host")] {
        let base = tempfile::tempdir().unwrap();
        let server = Server::encrypted_as(&base, host, days);
        let security = server.security();
        let cluster = Cluster {
            ca: Some(security.authority.certificate()),
            certificate: Some(security.client.certificate.clone()),
            key: Some(security.client.key.clone()),
            ..Cluster::default()
        };
        let error = refused(open(&server.url(), &cluster).get("a"), Kind::Invalid);
        assert!(error.to_string().contains(words), "{error}");
    }
    let base = tempfile::tempdir().unwrap();
    let server = Server::start(&base);
    let authority = Authority::new(&base.path().join("authority"));
    let cluster = Cluster { ca: Some(authority.certificate()), ..Cluster::default() };
    let error = turned_away(open(&server.url(), &cluster).get("a"));
    // If it closes before it has read everything, the kernel says that instead.
    let words = ["not speak TLS", "connection reset by peer"];
    assert!(words.iter().any(|words| error.to_string().contains(words)), "{error}");
}

#[test]
fn users_are_who_they_say() {
    let base = tempfile::tempdir().unwrap();
    let mut server = Server::start(&base);
    let (password, wrong) = (base.path().join("password"), base.path().join("wrong"));
    std::fs::write(&password, "word\n").unwrap();
    std::fs::write(&wrong, "mistaken\n").unwrap();
    let good = Cluster { user: Some("regen".to_owned()), password_file: Some(password), ..Cluster::default() };
    let told = |server: &Server, cluster: &Cluster| {
        let answer = open(&server.url(), cluster).apply(&Transaction::replace("b", 0, Vec::new()));
        refused(answer, Kind::Invalid).to_string()
    };
    assert!(told(&server, &good).contains("auth enable"));
    let nobody = open(&server.url(), &Cluster::default());
    put(&*nobody, "a", "1");
    server.enable_users("regen", "word", "regen/");
    assert!(refused(nobody.get("a"), Kind::Invalid).to_string().contains("cluster.user"));
    let registry = open(&server.url(), &good);
    let revision = put(&*registry, "a", "2");
    assert_eq!(hear(&mut *registry.watch("", revision - 1).unwrap(), 1).len(), 1);
    let lease = registry.grant(LONG).unwrap();
    assert_eq!(registry.renew(lease).unwrap(), Renewed::Yes);
    assert!(told(&server, &Cluster { prefix: "other/".to_owned(), ..good.clone() }).contains("grant-permission"));
    assert!(told(&server, &Cluster { password_file: Some(wrong), ..good.clone() }).contains("password-file"));
    // The tokens of a member are gone with it, and old ones with each change of the users.
    server.kill(0);
    server.restart(0);
    put(&*registry, "a", "3");
    server.ctl(&["user", "add", "another:word"]);
    put(&*registry, "a", "4");
    assert_eq!(value(&*registry, "a").unwrap(), "4");
}
