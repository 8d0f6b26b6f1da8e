//! What may have changed in a layer since it was looked at: a look at the status of every name, and at nothing else.
//!
//! This is what a container stands still for, so it is as short as it can be: directories are not read again unless their
//! own times say that names came or went, and several threads look at once, for the container leaves the processors free.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};

use rustix::fs::{AtFlags, fstat, statat};

use super::known::{Names, Node, What};
use super::name;
use super::seen::Seen;
use super::trail::open_beneath;

/// Names that one thread looks at before it asks for more.
const BATCH: usize = 512;
/// With fewer names, another thread costs more than it saves.
const WORTH_A_THREAD: usize = 4 * BATCH;
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

/// Names of one directory.
struct Batch<'a> {
    path: Vec<u8>,
    /// The directory's own status, in the first batch of each.
    itself: Option<&'a Seen>,
    names: Vec<(&'a [u8], &'a Node)>,
}

/// Compares what is known of a layer with what there is now; also how many names were looked at.
///
/// What cannot be looked at is suspected: whoever looks closely finds out why.
pub(super) fn find(root: BorrowedFd<'_>, known: &Node) -> (Suspects, u64) {
    let batches = divide(known);
    let names: usize = batches.iter().map(|batch| batch.names.len()).sum();
    let threads = available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    let threads = threads.min(1 + names / WORTH_A_THREAD);
    let next = AtomicUsize::new(0);
    let look = || {
        let mut found = Vec::new();
        while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            look_at(root, batch, &mut found);
        }
        found
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
    let directories = batches.iter().filter(|batch| batch.itself.is_some() && !batch.path.is_empty()).count();
    (suspects, (names + directories) as u64)
}

/// Which part of a path is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// What it leads to.
    Itself,
    /// A file that has to be looked at, whether it changed or not.
    Visit,
}

fn divide(known: &Node) -> Vec<Batch<'_>> {
    let mut batches = Vec::new();
    let mut left = vec![(Vec::new(), known)];
    while let Some((path, node)) = left.pop() {
        let Some(directory) = node.directory() else { continue };
        let mut batch = Batch { path: path.clone(), itself: Some(&node.seen), names: Vec::new() };
        for (name, child) in &directory.children {
            match child.kind {
                What::Directory(_) => {
                    let mut path = path.clone();
                    name::push(&mut path, name);
                    left.push((path, child));
                }
                What::File | What::Whiteout => batch.names.push((name, child)),
            }
            if batch.names.len() == BATCH {
                batches
                    .push(std::mem::replace(&mut batch, Batch { path: path.clone(), itself: None, names: Vec::new() }));
            }
        }
        if batch.itself.is_some() || !batch.names.is_empty() {
            batches.push(batch);
        }
    }
    batches
}

fn look_at(root: BorrowedFd<'_>, batch: &Batch<'_>, found: &mut Vec<(Vec<u8>, Found)>) {
    let Ok(directory) = open_beneath(root, &batch.path) else {
        found.push((batch.path.clone(), Found::Itself));
        return;
    };
    if let Some(seen) = batch.itself
        && fstat(&directory).map_or(true, |stat| seen.is_outdated_by(&stat))
    {
        found.push((batch.path.clone(), Found::Itself));
    }
    let mut suspect = |name: &[u8], what| {
        let mut path = batch.path.clone();
        name::push(&mut path, name);
        found.push((path, what));
    };
    for (name, node) in &batch.names {
        let stat = statat(&directory, *name, AtFlags::SYMLINK_NOFOLLOW);
        if stat.map_or(true, |stat| node.seen.is_outdated_by(&stat)) {
            suspect(name, Found::Itself);
        } else if node.names == Names::Several {
            // Only all names of a file together say which one is to be a link to which.
            suspect(name, Found::Visit);
        }
    }
}
