//! Many at once: threads, handles, processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use regen::registry::{Registry, Transaction};

use super::caller::{self, Copy, add_one, settle};
use super::{Subject, puts};
use crate::child::Child;

const THREADS: usize = 8;
const TIMES: usize = 40;

pub fn threads_count_to_the_exact_sum(subject: &dyn Subject) {
    let (one, other) = (subject.open(), subject.open());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let registry = if thread % 2 == 0 { &*one } else { &*other };
            scope.spawn(move || (0..TIMES).for_each(|number| add_one(registry, &thread.to_string(), number)));
        }
    });
    assert_eq!(caller::number(&*one, "count"), (THREADS * TIMES) as u64);
}

pub fn processes_count_to_the_exact_sum(subject: &dyn Subject) {
    let children: Vec<_> =
        (0..3).map(|child| Child::start("count", &subject.address(), &[&format!("p{child}"), "40"])).collect();
    let registry = subject.open();
    (0..40).for_each(|number| add_one(&*registry, "own", number));
    children.into_iter().for_each(Child::finish);
    assert_eq!(caller::number(&*registry, "count"), 160);
}

/// Of those who take a marker one after the other, nobody holds it together with another, and each has a higher token than
/// all before. What they do under it is not guarded by anything else.
pub fn a_key_has_one_holder_at_a_time(subject: &dyn Subject) {
    let (inside, highest, sum) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let registry = subject.open();
            let (inside, highest, sum) = (&inside, &highest, &sum);
            scope.spawn(move || {
                for _ in 0..10 {
                    let holder = thread.to_string();
                    let (token, lease) = caller::take(&*registry, &holder, Duration::from_secs(600));
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                    let before = highest.swap(token, Ordering::SeqCst);
                    assert!(token > before, "{token} after {before}");
                    sum.store(sum.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
                    assert!(caller::is_held(&*registry, lease));
                    inside.fetch_sub(1, Ordering::SeqCst);
                    settle(|| registry.revoke(lease));
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 40);
}

pub fn a_copy_that_is_fed_by_a_watch_becomes_the_same(subject: &dyn Subject) {
    let registry = subject.open();
    let children: Vec<_> =
        (0..2).map(|child| Child::start("stir", &subject.address(), &[&format!("p{child}"), "150"])).collect();
    let theirs = subject.open();
    std::thread::scope(|scope| {
        scope.spawn(|| stir(&*theirs, "own", 150));
        follow_to_the_end(&registry, 3);
    });
    children.into_iter().for_each(Child::finish);
}

/// Follows until so many have written that they have ended, and compares with a listing then.
pub fn follow_to_the_end(registry: &Arc<dyn Registry>, writers: usize) {
    let (mut copy, begin) = (Copy::new(&**registry, "stir/"), Instant::now());
    let ended = |copy: &Copy<'_>| copy.entries.keys().filter(|key| key.starts_with("stir/end/")).count();
    while ended(&copy) < writers {
        copy.follow(Duration::from_millis(500));
        assert!(begin.elapsed() < super::LIMIT, "{} of {writers} have ended", ended(&copy));
    }
    let there = settle(|| registry.list("stir/")).entries;
    let told: Vec<_> = copy.entries.into_values().collect();
    assert_eq!(told, there);
}

/// Puts and deletes some keys again and again, several at once, which all writers share.
pub fn stir(registry: &dyn Registry, writer: &str, times: usize) {
    for number in 0..times {
        let text = format!("{writer}-{number}");
        let key = |number: usize| format!("stir/{}", number % 7);
        let mut changes = puts(&[(&key(number), &text), (&key(number + 1), &text)]);
        changes.deletes.push(key(number + 2));
        if number + 1 == times {
            changes = puts(&[(&format!("stir/end/{writer}"), "x")]);
        }
        caller::apply(registry, &changes, &witness(writer, number));
    }
}

fn witness(writer: &str, number: usize) -> regen::registry::Put {
    regen::registry::Put::new(format!("done/{writer}"), number.to_string().into_bytes())
}

/// Writes batches for ever, each a number in so many keys, all the same.
pub fn write_for_ever(registry: &dyn Registry, writer: &str) {
    for number in 1.. {
        let keys: Vec<_> = (0..5).map(|key| format!("batch/{writer}/{key}")).collect();
        let text = format!("{number:0>300}");
        let pairs: Vec<_> = keys.iter().map(|key| (&**key, &*text)).collect();
        let changes: Transaction = puts(&pairs);
        caller::apply(registry, &changes, &witness(writer, number));
    }
}
