//! Leases: keys that go when nobody renews them.

use std::time::{Duration, Instant};

use regen::error::Kind;
use regen::registry::{Compare, Lease, Put, Registry, Renewed, Transaction};

use super::{Subject, commit, eventually, keys, put, refused, value};

/// A lease that does not end while the test runs.
const LONG: Duration = Duration::from_secs(3600);

fn leased(lease: Lease, all: &[&str]) -> Transaction {
    let puts = all.iter().map(|key| Put::leased(*key, b"x".to_vec(), lease)).collect();
    Transaction { puts, ..Transaction::default() }
}

/// A lease whose time is over, and was not ended by anybody.
fn outlive(registry: &dyn Registry, time: Duration) -> Lease {
    let lease = registry.grant(time).unwrap();
    commit(registry, &leased(lease, &["outlived"]));
    eventually("its key goes", || registry.get("outlived").unwrap().is_none());
    lease
}

pub fn keys_go_when_the_time_of_their_lease_is_over_and_not_before(subject: &dyn Subject) {
    let (registry, other) = (subject.open(), subject.open());
    let (begin, time) = (Instant::now(), subject.shortest_lease());
    let lease = registry.grant(time).unwrap();
    commit(&*registry, &leased(lease, &["a", "b"]));
    put(&*registry, "stays", "x");
    loop {
        let found = keys(&*other, "");
        if found == ["stays"] {
            break;
        }
        assert_eq!(found, ["a", "b", "stays"], "they go together");
        assert!(begin.elapsed() < super::LIMIT, "they do not go");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begin.elapsed() >= time, "they went after {:?} of {time:?}", begin.elapsed());
    assert_eq!(registry.get("a").unwrap(), None);
}

pub fn a_lease_that_is_renewed_stays(subject: &dyn Subject) {
    let (registry, time) = (subject.open(), subject.shortest_lease());
    let (lease, lost) = (registry.grant(time).unwrap(), registry.grant(time).unwrap());
    assert_ne!(lease, lost);
    commit(&*registry, &leased(lease, &["kept"]));
    commit(&*registry, &leased(lost, &["lost"]));
    let begin = Instant::now();
    // What nobody renews goes meanwhile: it was granted later than the one that stays.
    while keys(&*registry, "") != ["kept"] || begin.elapsed() < time * 2 {
        let renewed = Instant::now();
        let answer = registry.renew(lease).unwrap();
        std::thread::sleep(time / 20);
        if answer == Renewed::Gone {
            panic!("it was renewed all the time");
        }
        if renewed.elapsed() > time / 2 {
            // Nobody who is stopped for so long can be sure of a lease.
            return a_lease_that_is_renewed_stays(subject);
        }
        assert!(registry.get("kept").unwrap().is_some());
        assert!(begin.elapsed() < super::LIMIT);
    }
}

pub fn a_lease_that_is_gone_is_not_renewed_and_its_end_is_no_error(subject: &dyn Subject) {
    let registry = subject.open();
    let over = outlive(&*registry, subject.shortest_lease());
    assert_eq!(registry.renew(over).unwrap(), Renewed::Gone);
    registry.revoke(over).unwrap();
    let ended = registry.grant(LONG).unwrap();
    assert_eq!(registry.renew(ended).unwrap(), Renewed::Yes);
    registry.revoke(ended).unwrap();
    registry.revoke(ended).unwrap();
    assert_eq!(registry.renew(ended).unwrap(), Renewed::Gone);
    assert_eq!(registry.renew(Lease(0x7fff_0000_0000_0001)).unwrap(), Renewed::Gone, "there never was one");
}

pub fn a_put_with_a_lease_that_is_gone_is_refused_as_a_whole(subject: &dyn Subject) {
    let registry = subject.open();
    let ended = registry.grant(LONG).unwrap();
    registry.revoke(ended).unwrap();
    for lease in [ended, outlive(&*registry, subject.shortest_lease())] {
        let mut transaction = super::puts(&[("other", "x")]);
        transaction.puts.extend(leased(lease, &["a"]).puts);
        refused(registry.apply(&transaction), Kind::NotFound);
        assert_eq!(keys(&*registry, ""), Vec::<String>::new());
    }
}

pub fn an_end_takes_all_keys_of_a_lease_and_no_others(subject: &dyn Subject) {
    let registry = subject.open();
    let (one, other) = (registry.grant(LONG).unwrap(), registry.grant(LONG).unwrap());
    commit(&*registry, &leased(one, &["a/1", "b/1"]));
    commit(&*registry, &leased(one, &["c/1"]));
    commit(&*registry, &leased(other, &["a/2"]));
    put(&*registry, "a/3", "x");
    subject.open().revoke(one).unwrap();
    assert_eq!(keys(&*registry, ""), ["a/2", "a/3"]);
    assert_eq!(registry.renew(other).unwrap(), Renewed::Yes);
}

pub fn a_key_hangs_on_what_it_was_put_with_last(subject: &dyn Subject) {
    let registry = subject.open();
    let (one, other) = (registry.grant(LONG).unwrap(), registry.grant(LONG).unwrap());
    commit(&*registry, &leased(one, &["freed", "moved", "stays"]));
    put(&*registry, "freed", "now without");
    commit(&*registry, &leased(other, &["moved"]));
    registry.revoke(one).unwrap();
    assert_eq!(keys(&*registry, ""), ["freed", "moved"]);
    registry.revoke(other).unwrap();
    assert_eq!(keys(&*registry, ""), ["freed"]);
    assert_eq!(value(&*registry, "freed").unwrap(), "now without");
}

pub fn anybody_may_renew_a_lease(subject: &dyn Subject) {
    let lease = subject.open().grant(LONG).unwrap();
    let other = subject.open();
    assert_eq!(other.renew(lease).unwrap(), Renewed::Yes, "it does not end with the handle that asked for it");
    commit(&*other, &leased(lease, &["a"]));
    assert_eq!(keys(&*subject.open(), ""), ["a"]);
}

pub fn who_comes_after_a_lease_is_over_gets_the_key_with_a_higher_number(subject: &dyn Subject) {
    let (one, other) = (subject.open(), subject.open());
    let lease = one.grant(subject.shortest_lease()).unwrap();
    let mut take = leased(lease, &["marker"]);
    take.compares.push(Compare::absent("marker"));
    let first = commit(&*one, &take);
    let lease = other.grant(LONG).unwrap();
    let mut take = leased(lease, &["marker"]);
    take.compares.push(Compare::absent("marker"));
    let mut second = 0;
    eventually("it is free", || match other.apply(&take).unwrap() {
        regen::registry::Applied::Committed(revision) => {
            second = revision;
            true
        }
        regen::registry::Applied::Refused => false,
    });
    let entry = one.get("marker").unwrap().unwrap();
    assert_eq!((entry.created, second > first), (second, true));
}
