//! What may have changed in a layer since it was looked at: a look at the status of every name, and at nothing else.
//!
//! This is what a container stands still for, so it is as short as it can be: directories are not read again unless their
//! own times say that names came or went, several threads look at once, for the container leaves the processors free, and
//! what they look at is open already ([`Outlook::open`]).

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};

use super::name;
use super::outlook::{Found, Outlook};

/// With fewer names, another thread costs more than it saves.
const WORTH_A_THREAD: usize = 2048;
/// More wait for each other rather than help.
const THREADS_MAX: usize = 4;

/// Names that have to be looked at closely: those that changed or may have, and the directories on the way to them.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// The directory itself changed: names may have come and gone.
    pub(super) itself: bool,
    /// Names in it, with what is suspected below each.
    pub(super) below: BTreeMap<Vec<u8>, Suspects>,
}

/// Compares what is known of a layer with what there is now.
///
/// What cannot be looked at is suspected: whoever looks closely finds out why.
pub(super) fn find(root: BorrowedFd<'_>, outlook: &Outlook) -> Suspects {
    let threads = available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    let threads = threads.min(1 + outlook.names() / WORTH_A_THREAD);
    let next = AtomicUsize::new(0);
    let look = || {
        let mut found = Vec::new();
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= outlook.parts() {
                return found;
            }
            outlook.look_at(root, part, &mut found);
        }
    };
    let found = scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(look)).collect();
        let mut found = look();
        for other in others {
            match other.join() {
                Ok(more) => found.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        found
    });
    let mut suspects = Suspects::default();
    for (path, itself) in &found {
        let mut at = &mut suspects;
        for component in name::components(path) {
            at = at.below.entry(component.to_vec()).or_default();
        }
        at.itself |= *itself == Found::Itself;
    }
    suspects
}
