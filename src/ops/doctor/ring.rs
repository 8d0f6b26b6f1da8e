//! Rings: who has them, and what is not yet safe in them.

use std::path::Path;

use super::Finding;
use crate::error::{Error, Result};
use crate::ids::{ContainerId, LayerId};
use crate::ops::{Place, worker};
use crate::ring::Ring;
use crate::ring::state::RingState;
use crate::store::{Run, Store};
use crate::sys::fs::read_capped;
use crate::sys::process::boot_id;

/// Who has a ring, or goes on beside its main line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum User {
    /// Nobody.
    Nobody,
    /// A container, by the process that answers for it.
    Living(ContainerId, i32),
    /// A container that ended without its state being saved.
    Dead(ContainerId),
}

/// Whether a worker is at it: what it has still to do is then no finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    Busy,
    Idle,
}

pub(super) fn examine(place: &Place) -> Vec<Finding> {
    let store = match Store::open_existing(&place.store) {
        Ok(Some(store)) => store,
        Ok(None) => return vec![Finding::ok("rings", "there are none yet")],
        // The finding about the store says why.
        Err(_) => return Vec::new(),
    };
    match (look_worker(&store), Ring::each(&store, look)) {
        (Err(error), _) | (_, Err(error)) => vec![Finding::unseen("rings", &error)],
        (Ok(worker), Ok(rings)) => {
            let boot = boot_id().unwrap_or_default();
            let (mut findings, mut waiting) = (Vec::new(), 0);
            for (ring, found) in rings {
                match found {
                    Ok((state, user, beside)) => {
                        waiting += unpacked(&state);
                        let name = ring.name().to_string();
                        findings.extend(judge(&name, &state, &user, (worker, &boot)));
                        findings.extend(beside.iter().filter_map(|user| judge_beside(&name, user)));
                    }
                    Err(error) => findings.push(refuse(&ring, &error)),
                }
            }
            findings.insert(0, judge_worker(worker, waiting, look_note(store.directory()).as_deref()));
            findings
        }
    }
}

fn look_worker(store: &Store) -> Result<Worker> {
    Ok(if worker::is_busy(store)? { Worker::Busy } else { Worker::Idle })
}

/// What the last worker that failed left.
fn look_note(store: &Path) -> Option<String> {
    let bytes = read_capped(&store.join("worker.log"), 64 * 1024).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|note| !note.is_empty())
}

fn look(ring: &Ring) -> Result<(RingState, User, Vec<User>)> {
    let state = ring.read()?;
    let user = state.run.as_ref().map_or(Ok(User::Nobody), |id| look_at_run(ring, id))?;
    let beside = state.sides.iter().map(|side| look_at_run(ring, &side.run)).collect::<Result<_>>()?;
    Ok((state, user, beside))
}

fn look_at_run(ring: &Ring, id: &LayerId) -> Result<User> {
    let Some(run) = Run::load(ring.store(), id)? else { return Ok(User::Nobody) };
    Ok(match run.record.living_holder()? {
        Some(holder) => User::Living(run.record.container.clone(), holder.pid),
        None => User::Dead(run.record.container),
    })
}

/// What a container beside the main line has to be told of: that one goes on is as it should be.
fn judge_beside(name: &str, user: &User) -> Option<Finding> {
    match user {
        User::Nobody | User::Living(..) => None,
        User::Dead(container) => {
            let text = format!("what container '{container}' left beside the main line is not saved yet");
            Some(Finding::warn(format!("ring {name}"), text, "regen ring recover"))
        }
    }
}

fn refuse(ring: &Ring, error: &Error) -> Finding {
    let mend = error.next_step().map_or_else(|| format!("regen ring verify {}", ring.name()), str::to_owned);
    Finding::fail(format!("ring {}", ring.name()), error.without_next_step(), mend)
}

fn unpacked(state: &RingState) -> usize {
    state.entries.iter().filter(|entry| entry.manifest.is_none()).count()
}

fn judge_worker(worker: Worker, waiting: usize, note: Option<&str>) -> Finding {
    let subject = "worker";
    match (worker, waiting, note) {
        (Worker::Busy, _, _) => Finding::ok(subject, "at work"),
        (Worker::Idle, 0, _) => Finding::ok(subject, "nothing to do"),
        (Worker::Idle, _, None) => {
            Finding::warn(subject, format!("none is at work, and {waiting} entries are not packed"), "regen ring pack")
        }
        (Worker::Idle, _, Some(note)) => {
            let text = format!("none is at work, {waiting} entries are not packed, and the last one failed: {note}");
            Finding::warn(subject, text, "regen ring pack")
        }
    }
}

/// A line for the ring, and one for each thing about it that should not stay so.
fn judge(name: &str, state: &RingState, user: &User, (worker, boot): (Worker, &str)) -> Vec<Finding> {
    let subject = format!("ring {name}");
    let count = format!("{} of at most {} entries", state.entries.len(), state.depth);
    let mut findings = vec![match user {
        User::Nobody => Finding::ok(&subject, format!("{count}, not in use")),
        User::Living(container, pid) => {
            Finding::ok(&subject, format!("{count}, in use by container '{container}' (process {pid})"))
        }
        User::Dead(container) => {
            let text = format!("{count}, and what container '{container}' left is not saved yet");
            Finding::warn(&subject, text, "regen ring recover")
        }
    }];
    if state.journal.is_some() && !matches!(user, User::Living(..)) {
        findings.push(Finding::warn(&subject, "the saving of an entry was cut short", "regen ring recover"));
    }
    let numbers = |numbers: Vec<u64>| numbers.iter().map(|seq| format!("@{seq}")).collect::<Vec<_>>().join(" ");
    let sealed: Vec<_> = state.entries.iter().filter(|entry| entry.manifest.is_none()).map(|entry| entry.seq).collect();
    if !sealed.is_empty() && worker == Worker::Idle {
        let text = format!("not packed: {}", numbers(sealed));
        findings.push(Finding::warn(&subject, text, format!("regen ring pack {name}")));
    }
    let (ours, torn): (Vec<_>, Vec<_>) =
        state.entries.iter().filter(|entry| !entry.synced).partition(|entry| entry.boot_id == boot);
    let seqs = |entries: Vec<&crate::ring::entry::Entry>| numbers(entries.iter().map(|entry| entry.seq).collect());
    if !torn.is_empty() {
        let before = state
            .entries
            .iter()
            .rev()
            .find(|entry| entry.synced && !entry.side)
            .map_or("base".into(), |e| e.seq.to_string());
        let text = format!("the machine went down before they were known to be on disk: {}", seqs(torn));
        findings.push(Finding::warn(&subject, text, format!("regen ring rollback {name} --to @{before}")));
    }
    if !ours.is_empty() && worker == Worker::Idle {
        let text = format!("not known to be on disk: {}", seqs(ours));
        findings.push(Finding::warn(&subject, text, format!("regen ring pack {name}")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::doctor::Status;

    #[test]
    fn what_is_not_packed_is_no_finding_while_a_worker_is_at_it() {
        assert_eq!(judge_worker(Worker::Busy, 3, Some("note")).status, Status::Ok);
        assert_eq!(judge_worker(Worker::Idle, 0, Some("an old note")).status, Status::Ok);
        assert_eq!(judge_worker(Worker::Idle, 3, None).status, Status::Warn);
        assert!(judge_worker(Worker::Idle, 3, Some("disk full")).text.contains("disk full"));
    }
}
