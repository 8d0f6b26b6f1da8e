//! The registry of many machines over real etcds: alone, as three members that fail, encrypted, with users.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "etcd")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::World;
use harness::certificate::Authority;
use harness::etcd::Etcd as Server;
use regen::config::Cluster;
use regen::error::Kind;
use regen::registry::etcd::Settings;
use regen::registry::{
    Applied, Compare, Entry, Etcd, Event, Failure, Lease, Put, Registry, Renewed, Transaction, Watch,
};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

fn open(server: &Server) -> Etcd {
    open_with(server, &Cluster::default())
}

fn open_with(server: &Server, cluster: &Cluster) -> Etcd {
    Etcd::open(Settings::new(&server.url(), cluster).unwrap()).unwrap()
}

fn put(registry: &Etcd, key: &str, value: &[u8]) -> u64 {
    let puts = vec![Put::new(key, value.to_vec())];
    committed(registry.apply(&Transaction { puts, ..Transaction::default() }).unwrap())
}

fn committed(applied: Applied) -> u64 {
    match applied {
        Applied::Committed(revision) => revision,
        Applied::Refused => panic!("it was refused"),
    }
}

/// Events until there are so many.
fn hear(watch: &mut dyn Watch, count: usize) -> Vec<Event> {
    let deadline = Instant::now() + LONG;
    let mut heard = Vec::new();
    while heard.len() < count {
        assert!(Instant::now() < deadline, "heard only {heard:?}");
        heard.extend(watch.next(Some(Duration::from_millis(100))).unwrap());
    }
    heard
}

#[test]
fn a_key_is_there_as_it_was_written() {
    let world = World::new("etcd");
    let server = Server::start(&world);
    let registry = open(&server);
    assert_eq!(registry.get("a").unwrap(), None);
    let first = put(&registry, "a", b"one");
    let second = put(&registry, "a", b"two");
    let entry = Entry { key: "a".to_owned(), value: b"two".to_vec(), created: first, modified: second };
    assert_eq!(registry.get("a").unwrap(), Some(entry.clone()));
    assert_eq!(server.ctl(&["get", "--print-value-only", "regen/a"]).trim_end(), "two", "below the prefix");
    put(&registry, "b", b"");
    let listing = registry.list("a").unwrap();
    assert_eq!(listing.entries, [entry]);
    assert_eq!(listing.revision, second + 1);
    let moved = Transaction::replace("a", first, b"three".to_vec());
    assert_eq!(registry.apply(&moved).unwrap(), Applied::Refused);
    let other = open_with(&server, &Cluster { prefix: "other".to_owned(), ..Cluster::default() });
    assert_eq!(other.list("").unwrap().entries, []);
    assert_eq!(registry.identity().unwrap(), other.identity().unwrap());
}

#[test]
fn a_long_listing_is_of_one_revision() {
    let world = World::new("etcd-list");
    let server = Server::start(&world);
    let registry = open(&server);
    for chunk in 0..10 {
        let puts = (0..100).map(|index| Put::new(format!("k/{chunk}/{index:03}"), vec![7; 10])).collect();
        committed(registry.apply(&Transaction { puts, ..Transaction::default() }).unwrap());
    }
    let listing = registry.list("k/").unwrap();
    assert_eq!(listing.entries.len(), 1000);
    assert!(listing.entries.is_sorted_by_key(|entry| entry.key.clone()));
    assert_eq!(listing.entries[999].modified, listing.revision);
}

#[test]
fn keys_go_with_their_lease() {
    let world = World::new("etcd-lease");
    let server = Server::start(&world);
    let registry = open(&server);
    let lease = registry.grant(LONG).unwrap();
    let puts = vec![Put::leased("leased", Vec::new(), lease)];
    let revision = committed(registry.apply(&Transaction { puts, ..Transaction::default() }).unwrap());
    assert_eq!(registry.renew(lease).unwrap(), Renewed::Yes);
    let mut watch = registry.watch("", revision).unwrap();
    registry.revoke(lease).unwrap();
    registry.revoke(lease).unwrap();
    assert_eq!(registry.renew(lease).unwrap(), Renewed::Gone);
    let heard = hear(&mut *watch, 1);
    assert_eq!(heard, [Event { key: "leased".to_owned(), entry: None, revision: revision + 1 }]);
    let puts = vec![Put::leased("leased", Vec::new(), lease)];
    match registry.apply(&Transaction { puts, ..Transaction::default() }) {
        Err(Failure::Refused(error)) => assert_eq!(error.kind(), Kind::NotFound),
        other => panic!("{other:?}"),
    }
    let short = registry.grant(Duration::from_millis(1)).unwrap();
    let puts = vec![Put::leased("short", Vec::new(), short)];
    let revision = committed(registry.apply(&Transaction { puts, ..Transaction::default() }).unwrap());
    let mut watch = registry.watch("short", revision).unwrap();
    assert_eq!(hear(&mut *watch, 1)[0].entry, None, "nobody renewed it");
}

#[test]
fn changes_of_one_revision_come_together_and_in_order() {
    let world = World::new("etcd-watch");
    let server = Server::start(&world);
    let registry = open(&server);
    let before = put(&registry, "old", b"");
    let mut watch = registry.watch("k/", before).unwrap();
    assert_eq!(watch.next(Some(Duration::ZERO)).unwrap(), []);
    let value = vec![1; 10_000];
    for round in 0..20 {
        let puts = (0..100).map(|index| Put::new(format!("k/{index:03}"), value.clone())).collect();
        committed(registry.apply(&Transaction { puts, ..Transaction::default() }).unwrap());
        put(&registry, "other", &[round]);
    }
    let mut revisions = Vec::new();
    while revisions.len() < 20 {
        let heard = watch.next(Some(LONG)).unwrap();
        assert_eq!(heard.len() % 100, 0, "a revision is torn apart");
        revisions.extend(heard.chunks(100).map(|chunk| {
            assert!(chunk.iter().all(|event| event.revision == chunk[0].revision && event.key.starts_with("k/")));
            chunk[0].revision
        }));
    }
    assert!(revisions.is_sorted());
    let listing = registry.list("").unwrap();
    let mut late = registry.watch("", before).unwrap();
    assert_eq!(hear(&mut *late, 2020).last().unwrap().revision, listing.revision, "what was before is heard too");
    let mut future = registry.watch("", listing.revision + 1).unwrap();
    put(&registry, "skipped", b"");
    put(&registry, "heard", b"");
    assert_eq!(hear(&mut *future, 1)[0].key, "heard");
}

#[test]
fn a_watch_that_is_too_late_is_told_so() {
    let world = World::new("etcd-compact");
    let server = Server::start(&world);
    let registry = open(&server);
    let before = put(&registry, "a", b"1");
    for value in 0..10 {
        put(&registry, "a", &[value]);
    }
    let revision = server.compact();
    assert!(matches!(registry.watch("", before), Err(Failure::Compacted)));
    assert_eq!(registry.list("").unwrap().entries.len(), 1);
    let mut watch = registry.watch("", revision).unwrap();
    let next = put(&registry, "b", b"");
    assert_eq!(hear(&mut *watch, 1)[0].revision, next);
}

#[test]
fn nobody_there_is_unavailable_and_said_in_one_line() {
    let port = harness::port::free_port("127.0.0.1");
    let settings = Settings::new(&format!("etcd://127.0.0.1:{port}"), &Cluster::default()).unwrap();
    let registry = Etcd::open(settings).unwrap();
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
fn an_etcd_that_comes_back_is_used_again() {
    let world = World::new("etcd-back");
    let mut server = Server::start(&world);
    let registry = open(&server);
    let revision = put(&registry, "a", b"1");
    let mut watch = registry.watch("", revision).unwrap();
    server.kill(0);
    assert!(matches!(watch.next(Some(LONG)), Err(Failure::Unavailable(_))), "the watch is told");
    assert!(matches!(watch.next(Some(LONG)), Err(Failure::Unavailable(_))), "and stays so");
    assert!(matches!(registry.get("a"), Err(Failure::Unavailable(_))));
    server.restart(0);
    assert_eq!(registry.get("a").unwrap().unwrap().modified, revision);
    let mut watch = registry.watch("", revision).unwrap();
    put(&registry, "a", b"2");
    assert_eq!(hear(&mut *watch, 1).len(), 1);
}

#[test]
fn a_paused_etcd_leaves_a_write_undecided() {
    let world = World::new("etcd-paused");
    let server = Server::start(&world);
    let registry = open_with(&server, &Cluster { timeout: 1, ..Cluster::default() });
    put(&registry, "a", b"1");
    server.pause(0);
    let written = registry.apply(&Transaction::replace("b", 0, Vec::new()));
    let Err(Failure::Indeterminate(error)) = written else { panic!("{written:?}") };
    assert!(error.to_string().contains("may have been done"), "{error}");
    let written = registry.apply(&Transaction::replace("b", 0, Vec::new()));
    assert!(matches!(written, Err(Failure::Unavailable(_))), "a new connection is not made: {written:?}");
    assert!(matches!(registry.get("a"), Err(Failure::Unavailable(_))));
    server.resume(0);
    assert!(registry.get("a").unwrap().is_some());
}

#[test]
fn three_members_count_on_while_their_leader_is_killed() {
    let world = World::new("etcd-kill");
    let mut server = Server::cluster(&world, 3);
    count_while(&server.url(), || {
        for _ in 0..3 {
            let leader = server.leader();
            server.kill(leader);
            std::thread::sleep(Duration::from_secs(1));
            server.restart(leader);
        }
    });
}

#[test]
fn three_members_count_on_while_their_leader_is_paused() {
    let world = World::new("etcd-pause");
    let server = Server::cluster(&world, 3);
    count_while(&server.url(), || {
        for _ in 0..2 {
            let leader = server.leader();
            server.pause(leader);
            std::thread::sleep(Duration::from_secs(3));
            server.resume(leader);
        }
    });
}

/// Counts a key up by compare and put while something is done to the members: no step is lost, none is done twice, and
/// who watches hears each of them.
fn count_while(url: &str, mut harm: impl FnMut()) {
    let registry = Arc::new(Etcd::open(Settings::new(url, &Cluster::default()).unwrap()).unwrap());
    put(&registry, "count", b"0");
    let stop = Arc::new(AtomicBool::new(false));
    let counters: Vec<_> = (0..4)
        .map(|_| {
            let (registry, stop) = (Arc::clone(&registry), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut sure, mut unsure) = (0_u64, 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    let Ok(Some(entry)) = registry.get("count") else { continue };
                    let next = String::from_utf8(entry.value).unwrap().parse::<u64>().unwrap() + 1;
                    match registry.apply(&Transaction::replace("count", entry.modified, next.to_string().into_bytes()))
                    {
                        Ok(Applied::Committed(_)) => sure += 1,
                        Ok(Applied::Refused) | Err(Failure::Unavailable(_)) => {}
                        Err(Failure::Indeterminate(_)) => unsure += 1,
                        Err(failure) => panic!("{failure:?}"),
                    }
                }
                (sure, unsure)
            })
        })
        .collect();
    harm();
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let (mut sure, mut unsure) = (0, 0);
    for counter in counters {
        let (more, maybe) = counter.join().unwrap();
        sure += more;
        unsure += maybe;
    }
    let entry = registry.get("count").unwrap().unwrap();
    let counted: u64 = String::from_utf8(entry.value).unwrap().parse().unwrap();
    assert!(sure > 0 && (sure..=sure + unsure).contains(&counted), "{sure} sure, {unsure} unsure, counted {counted}");
}

#[test]
fn an_encrypted_etcd_is_used_with_certificates() {
    let world = World::new("etcd-tls");
    let server = Server::encrypted(&world);
    let security = server.security();
    let good = Cluster {
        ca: Some(security.authority.certificate()),
        certificate: Some(security.client.certificate.clone()),
        key: Some(security.client.key.clone()),
        ..Cluster::default()
    };
    let registry = open_with(&server, &good);
    put(&registry, "a", b"1");
    assert!(registry.get("a").unwrap().is_some());
    let others = Authority::new(&world.base().join("others"));
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
        let registry = open_with(&server, &cluster);
        let answer = registry.apply(&Transaction::replace("b", 0, Vec::new()));
        // What a member says of a certificate may be lost with the connection.
        let Err(Failure::Refused(error) | Failure::Unavailable(error)) = answer else { panic!("{words}: {answer:?}") };
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(registry.get("b").unwrap(), None);
}

#[test]
fn users_are_who_they_say() {
    let world = World::new("etcd-user");
    let mut server = Server::start(&world);
    let password = world.base().join("password");
    std::fs::write(&password, "word\n").unwrap();
    let good = Cluster { user: Some("regen".to_owned()), password_file: Some(password.clone()), ..Cluster::default() };
    let refused = |server: &Server, cluster: &Cluster, words: &str| {
        let answer = open_with(server, cluster).apply(&Transaction::replace("b", 0, Vec::new()));
        let Err(Failure::Refused(error)) = answer else { panic!("{words}: {answer:?}") };
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&server, &good, "auth enable");
    let before = open(&server);
    put(&before, "a", b"1");
    server.enable_users("regen", "word", "regen/");
    let Err(Failure::Refused(error)) = before.get("a") else { panic!("it asks for no user") };
    assert!(error.to_string().contains("cluster.user"), "{error}");
    let registry = open_with(&server, &good);
    let revision = put(&registry, "a", b"2");
    assert_eq!(hear(&mut *registry.watch("", revision - 1).unwrap(), 1).len(), 1);
    let lease = registry.grant(LONG).unwrap();
    assert_eq!(registry.renew(lease).unwrap(), Renewed::Yes);
    refused(&server, &Cluster { prefix: "other/".to_owned(), ..good.clone() }, "grant-permission");
    let wrong = world.base().join("wrong");
    std::fs::write(&wrong, "mistaken\n").unwrap();
    refused(&server, &Cluster { password_file: Some(wrong), ..good.clone() }, "password-file");
    // The tokens of a member are gone with it, and old ones with each change of the users.
    server.kill(0);
    server.restart(0);
    put(&registry, "a", b"3");
    server.ctl(&["user", "add", "another:word"]);
    put(&registry, "a", b"4");
    assert!(registry.get("a").unwrap().is_some());
}

#[test]
fn compares_decide_between_threads() {
    let world = World::new("etcd-threads");
    let server = Server::start(&world);
    let registry = Arc::new(open(&server));
    let winners: Vec<_> = (0..8)
        .map(|_| {
            let registry = Arc::clone(&registry);
            std::thread::spawn(move || {
                let compares = vec![Compare::absent("lock")];
                let puts = vec![Put::new("lock", Vec::new())];
                let taken = registry.apply(&Transaction { compares, puts, deletes: Vec::new() }).unwrap();
                usize::from(matches!(taken, Applied::Committed(_)))
            })
        })
        .collect();
    assert_eq!(winners.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 1);
}
