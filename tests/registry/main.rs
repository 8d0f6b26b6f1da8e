//! Registries: one suite says what every one of them has to do, and runs over each.
//!
//! A registry that is to be tested is a [`suite::Subject`]; `conforms!(make)` makes a test of each function of the suite,
//! where `make` gives a subject of its own to each. What other processes do is done by this program, executed again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

#[macro_use]
mod suite;

mod child;
mod crash;
#[cfg(feature = "etcd")]
mod etcd;
mod faulty;
mod sqlite;

/// The revision of every change after one, as a watch that is new tells it.
#[track_caller]
fn watch_all(registry: &dyn regen::registry::Registry, after: u64) -> Vec<u64> {
    let (mut watch, mut heard) = (registry.watch("", after).unwrap(), Vec::new());
    loop {
        let events = watch.next(Some(std::time::Duration::ZERO)).unwrap();
        if events.is_empty() {
            return heard;
        }
        heard.extend(events.iter().map(|event| event.revision));
    }
}
