//! Hearing of changes.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use regen::registry::{CHANGES_MAX, Event, Failure, Put, Transaction, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Subject, commit, delete, put, puts};

/// So many changes of keys, as they come.
#[track_caller]
pub fn hear(watch: &mut dyn Watch, count: usize) -> Vec<Event> {
    let (mut heard, deadline) = (Vec::new(), Instant::now() + super::LIMIT);
    while heard.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "only {} of {count} came: {heard:?}", heard.len());
        heard.extend(watch.next(Some(left)).unwrap());
    }
    assert_eq!(heard.len(), count, "more came: {heard:?}");
    heard
}

fn told(event: &Event) -> (u64, &str, Option<&str>) {
    let value = event.entry.as_ref().map(|entry| {
        assert_eq!((&entry.key, entry.modified), (&event.key, event.revision));
        std::str::from_utf8(&entry.value).unwrap()
    });
    (event.revision, &event.key, value)
}

/// Whether something can be read from it soon.
fn rings(bell: BorrowedFd<'_>, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs().try_into().unwrap(), tv_nsec: limit.subsec_nanos().into() };
    poll(&mut [PollFd::from_borrowed_fd(bell, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

pub fn changes_come_in_order_once_and_with_the_value_of_then(subject: &dyn Subject) {
    let registry = subject.open();
    put(&*registry, "before", "x");
    let start = registry.list("").unwrap().revision;
    let mut watch = registry.watch("", start).unwrap();
    let created = put(&*registry, "a", "1");
    let changed = put(&*registry, "a", "2");
    let gone = delete(&*registry, "a");
    let back = put(&*registry, "a", "3");
    let last = put(&*registry, "before", "4");
    let expected = [
        (created, "a", Some("1")),
        (changed, "a", Some("2")),
        (gone, "a", None),
        (back, "a", Some("3")),
        (last, "before", Some("4")),
    ];
    let heard = hear(&mut *watch, expected.len());
    assert_eq!(heard.iter().map(told).collect::<Vec<_>>(), expected);
    let creations: Vec<_> = heard.iter().filter_map(|event| Some(event.entry.as_ref()?.created)).collect();
    assert_eq!(creations[..3], [created, created, back]);
    // Another one, afterwards, hears the same.
    let mut late = subject.open().watch("", start).unwrap();
    assert_eq!(hear(&mut *late, expected.len()), heard);
    assert_eq!(hear(&mut *registry.watch("", changed).unwrap(), 3), heard[2..]);
}

pub fn only_changes_of_the_prefix_come(subject: &dyn Subject) {
    let registry = subject.open();
    let start = registry.list("").unwrap().revision;
    let mut watch = registry.watch("a/", start).unwrap();
    let mut both = puts(&[("a/1", "x"), ("b/1", "x")]);
    both.deletes = vec!["a/none".to_owned()];
    let first = commit(&*registry, &both);
    put(&*registry, "a", "x");
    put(&*registry, "ab", "x");
    let last = put(&*registry, "a/2", "x");
    let heard = hear(&mut *watch, 2);
    assert_eq!(heard.iter().map(told).collect::<Vec<_>>(), [(first, "a/1", Some("x")), (last, "a/2", Some("x"))]);
}

pub fn changes_of_one_revision_come_together(subject: &dyn Subject) {
    let (registry, other) = (subject.open(), subject.open());
    let start = registry.list("").unwrap().revision;
    let (rounds, long) = (24, "x".repeat(3000));
    let all = |round: usize| {
        let puts = (0..CHANGES_MAX).map(|key| Put::new(format!("key/{key:03}"), format!("{round}{long}").into_bytes()));
        Transaction { puts: puts.collect(), ..Transaction::default() }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| (0..rounds).for_each(|round| _ = commit(&*other, &all(round))));
        let mut watch = registry.watch("", start).unwrap();
        let (mut heard, mut last, begin) = (0, start, Instant::now());
        while heard < rounds {
            let events = watch.next(Some(Duration::from_secs(1))).unwrap();
            for whole in events.chunk_by(|a, b| a.revision == b.revision) {
                assert_eq!(whole.len(), CHANGES_MAX, "torn");
                assert!(whole[0].revision > last, "{} after {last}", whole[0].revision);
                last = whole[0].revision;
                heard += 1;
            }
            assert!(begin.elapsed() < super::LIMIT);
        }
    });
}

pub fn what_goes_is_told_also_when_it_goes_with_a_lease(subject: &dyn Subject) {
    let registry = subject.open();
    let start = registry.list("").unwrap().revision;
    let mut watch = subject.open().watch("", start).unwrap();
    let ended = registry.grant(Duration::from_secs(3600)).unwrap();
    let over = registry.grant(subject.shortest_lease()).unwrap();
    let leased = |lease, key: &str| Put::leased(key, b"x".to_vec(), lease);
    let all = vec![leased(ended, "a"), leased(ended, "b"), leased(over, "c"), leased(over, "d")];
    commit(&*registry, &Transaction { puts: all, ..Transaction::default() });
    assert_eq!(hear(&mut *watch, 4).len(), 4);
    registry.revoke(ended).unwrap();
    // Nobody touches the registry any more: what is over is over by itself.
    let heard = hear(&mut *watch, 4);
    let gone: Vec<_> = heard.iter().map(|event| (&*event.key, event.entry.is_none())).collect();
    let mut sorted = gone.clone();
    sorted[..2].sort_unstable();
    sorted[2..].sort_unstable();
    assert_eq!(sorted, [("a", true), ("b", true), ("c", true), ("d", true)]);
    assert_eq!(heard[0].revision, heard[1].revision);
    assert!(heard[1].revision < heard[2].revision);
    assert_eq!(registry.get("c").unwrap(), None);
}

pub fn a_watch_after_a_listing_misses_nothing(subject: &dyn Subject) {
    let (registry, other) = (subject.open(), subject.open());
    std::thread::scope(|scope| {
        scope.spawn(|| (1..=200).for_each(|number| _ = put(&*other, "count", &number.to_string())));
        for _ in 0..10 {
            let listing = registry.list("count").unwrap();
            let seen = listing.entries.first().map_or(0, |entry| parse(&entry.value));
            let mut watch = registry.watch("count", listing.revision).unwrap();
            if seen == 200 {
                break;
            }
            let first = hear_first(&mut *watch);
            assert_eq!(parse(&first.entry.as_ref().unwrap().value), seen + 1);
        }
    });
}

fn hear_first(watch: &mut dyn Watch) -> Event {
    let begin = Instant::now();
    loop {
        if let Some(first) = watch.next(Some(super::LIMIT)).unwrap().into_iter().next() {
            return first;
        }
        assert!(begin.elapsed() < super::LIMIT, "nothing came");
    }
}

fn parse(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

pub fn a_watch_goes_on_after_what_was_heard(subject: &dyn Subject) {
    let (registry, other) = (subject.open(), subject.open());
    let (mut after, mut next) = (registry.list("").unwrap().revision, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| (1..=100).for_each(|number| _ = put(&*other, "count", &number.to_string())));
        while next <= 100 {
            // Each hears but a part.
            let mut watch = registry.watch("", after).unwrap();
            for event in watch.next(Some(super::LIMIT)).unwrap() {
                assert_eq!(parse(&event.entry.unwrap().value), next);
                (next, after) = (next + 1, event.revision);
            }
        }
    });
}

pub fn a_watch_that_is_too_late_is_told_so(subject: &dyn Subject) {
    let registry = subject.open();
    let first = put(&*registry, "a", "1");
    let mut old = registry.watch("a", first).unwrap();
    let last = put(&*registry, "a", "2");
    subject.forget(last);
    let late = registry.watch("a", first).and_then(|mut watch| watch.next(Some(super::LIMIT)));
    assert!(matches!(late, Err(Failure::Compacted)), "{late:?}");
    // One that was there before may have heard of it in time.
    match old.next(Some(super::LIMIT)) {
        Ok(heard) => assert_eq!(heard.iter().map(told).collect::<Vec<_>>(), [(last, "a", Some("2"))]),
        Err(Failure::Compacted) => {}
        Err(other) => panic!("{other:?}"),
    }
    let listing = registry.list("").unwrap();
    let mut watch = registry.watch("a", listing.revision).unwrap();
    let next = put(&*registry, "a", "3");
    assert_eq!(hear(&mut *watch, 1).iter().map(told).collect::<Vec<_>>(), [(next, "a", Some("3"))]);
}

pub fn nothing_comes_when_nothing_happens(subject: &dyn Subject) {
    let registry = subject.open();
    put(&*registry, "a", "1");
    let mut watch = registry.watch("", registry.list("").unwrap().revision).unwrap();
    let (begin, limit) = (Instant::now(), Duration::from_millis(300));
    assert_eq!(watch.next(Some(limit)).unwrap(), []);
    assert!(begin.elapsed() >= limit, "it waits");
    assert_eq!(watch.next(Some(Duration::ZERO)).unwrap(), []);
    let next = put(&*registry, "a", "2");
    assert_eq!(hear(&mut *watch, 1)[0].revision, next);
}

pub fn the_bell_rings_for_what_others_do(subject: &dyn Subject) {
    let (registry, other) = (subject.open(), subject.open());
    let mut watch = registry.watch("", registry.list("").unwrap().revision).unwrap();
    for number in 0..20 {
        assert_eq!(watch.next(Some(Duration::ZERO)).unwrap(), [], "all was heard");
        let revision = put(&*other, "a", &number.to_string());
        let mut heard = Vec::new();
        while heard.is_empty() {
            assert!(rings(watch.bell(), super::LIMIT), "the bell is silent");
            heard = watch.next(Some(Duration::ZERO)).unwrap();
        }
        assert_eq!((heard.len(), heard[0].revision), (1, revision));
    }
}

pub fn who_waits_hears_of_each_change_although_no_other_follows(subject: &dyn Subject) {
    let (registry, other) = (subject.open(), subject.open());
    let mut watch = registry.watch("", registry.list("").unwrap().revision).unwrap();
    let (next, orders) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in orders {
                // It waits by now, mostly.
                std::thread::sleep(Duration::from_millis(2));
                put(&*other, "a", &format!("{number}"));
            }
        });
        for number in 0..50 {
            next.send(number).unwrap();
            let heard = watch.next(Some(super::LIMIT)).unwrap();
            let values: Vec<_> = heard.iter().map(|event| parse(&event.entry.as_ref().unwrap().value)).collect();
            assert_eq!(values, [number]);
        }
        drop(next);
    });
}

pub fn the_bell_rings_for_what_was_before(subject: &dyn Subject) {
    let registry = subject.open();
    let start = registry.list("").unwrap().revision;
    for number in 0..3000 / CHANGES_MAX {
        let puts = (0..CHANGES_MAX).map(|key| Put::new(format!("{number}/{key}"), b"x".to_vec())).collect();
        commit(&*registry, &Transaction { puts, ..Transaction::default() });
    }
    let mut watch = registry.watch("", start).unwrap();
    let mut heard = 0;
    while heard < 3000 / CHANGES_MAX * CHANGES_MAX {
        assert!(rings(watch.bell(), super::LIMIT), "{heard} were heard, and the bell is silent");
        heard += watch.next(Some(Duration::ZERO)).unwrap().len();
    }
}

pub fn several_watches_hear_the_same(subject: &dyn Subject) {
    let registry = subject.open();
    let start = registry.list("").unwrap().revision;
    let (mut one, mut other) = (registry.watch("", start).unwrap(), subject.open().watch("", start).unwrap());
    (0..20).for_each(|number| _ = put(&*registry, "a", &number.to_string()));
    assert_eq!(hear(&mut *one, 20), hear(&mut *other, 20));
    drop(one);
    put(&*registry, "a", "still there");
    assert_eq!(hear(&mut *other, 1).len(), 1);
}
