//! The thread that tells of this node.
//!
//! ```text
//!            ┌─ the name is another's: Refused ─┐
//!  Beginning ┴─> join: lease, node/NAME ──> Joined: renew, tell what changed
//!      ▲                                      │ the lease or the record is gone, or nobody knows what was written
//!      └──────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::offer::{Correction, Told, plan_corrections, plan_members};
use super::{Census, LEASE, Pauses, RENEWAL, Shared, Standing};
use crate::error::{Context, Error, Kind, Result};
use crate::node::{Counts, Node, State, member_prefix, node_key};
use crate::registry::{Answer, Applied, Compare, Entry, Failure, Lease, Put, Renewed, Transaction};
use crate::service::roster::Subscription;

/// So many keys are told of in one transaction.
const AT_ONCE: usize = 100;

/// What the thread has.
#[derive(Debug)]
pub(super) struct Membership {
    shared: Arc<Shared>,
    changes: Subscription,
    held: Option<Held>,
    pauses: Pauses,
}

/// What is registered.
#[derive(Debug)]
struct Held {
    lease: Lease,
    renewed: Instant,
    /// The record, and the revision that it got by it.
    node: Vec<u8>,
    revision: u64,
    members: BTreeMap<String, Told>,
}

/// Why a node is not registered.
#[derive(Debug)]
enum Setback {
    /// The registry says so, or says nothing.
    Failed(Failure),
    /// Another host has the name.
    Taken(Error),
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Whose a record is that is found under our name.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    /// Nobody's.
    Free,
    /// Our own, which an earlier daemon left, with its revision.
    Own(u64),
    /// That of another host.
    Taken(Box<Node>),
    /// Nobody can read it.
    Unreadable,
}

impl Membership {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self> {
        let changes = shared.roster.subscribe()?;
        Ok(Self { shared, changes, held: None, pauses: Pauses::default() })
    }

    /// The first try, so that who starts a second node of a name, or may not write there, is told at once.
    pub(super) fn begin(&mut self) -> Result<()> {
        match self.step() {
            Err(Setback::Taken(error) | Setback::Failed(Failure::Refused(error))) => Err(error),
            outcome => {
                self.note(outcome);
                Ok(())
            }
        }
    }

    /// Until the end.
    pub(super) fn run(&mut self) {
        let mut limit = match *self.shared.standing() {
            Standing::Joined(_) => RENEWAL,
            Standing::Beginning | Standing::Failing(_) | Standing::Refused(_) => self.pauses.next(),
        };
        loop {
            self.wait(limit);
            if self.shared.is_ended() {
                return;
            }
            let outcome = self.step();
            limit = self.note(outcome);
        }
    }

    /// Waits for something to tell; while nothing can be told, for the time alone.
    fn wait(&self, limit: Duration) {
        let mut polled = vec![PollFd::new(&self.shared.membership, PollFlags::IN)];
        if self.held.is_some() {
            polled.push(PollFd::new(&self.changes, PollFlags::IN));
        }
        let limit = Timespec::try_from(limit).ok();
        // A signal, or a failure, makes the wait shorter.
        let _ = poll(&mut polled, limit.as_ref());
        if !self.shared.is_ended() {
            self.shared.membership.silence();
        }
    }

    /// Says how it stands, and gives how long to wait before the next step.
    fn note(&mut self, outcome: std::result::Result<(), Setback>) -> Duration {
        let (standing, is_heard) = match outcome {
            Ok(()) => match &self.held {
                Some(held) => (Standing::Joined(held.lease), true),
                None => (Standing::Beginning, true),
            },
            Err(Setback::Failed(failure)) => (Standing::Failing(failure.into()), false),
            Err(Setback::Taken(error)) => (Standing::Refused(error), true),
        };
        let pause = match &standing {
            Standing::Joined(_) => {
                self.pauses.reset();
                self.held.as_ref().map_or(RENEWAL, |held| RENEWAL.saturating_sub(held.renewed.elapsed()))
            }
            Standing::Beginning => self.pauses.next(),
            Standing::Failing(error) | Standing::Refused(error) => {
                let pause = self.pauses.next();
                tracing::warn!("this node is not told of, the next try is in {pause:?}: {error}");
                pause
            }
        };
        let was = std::mem::replace(&mut *self.shared.standing(), standing.clone());
        if let (Standing::Joined(_), false) = (&standing, matches!(was, Standing::Joined(_))) {
            tracing::info!(node = %self.shared.node().name, "registered");
        }
        self.shared.note(&self.shared.is_heard, is_heard);
        pause
    }

    /// Does what is due now.
    fn step(&mut self) -> std::result::Result<(), Setback> {
        self.renew()?;
        if self.held.is_none() {
            self.held = Some(self.join()?);
        }
        self.tell()
    }

    fn renew(&mut self) -> Answer<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        if !self.shared.is_missed.swap(false, Ordering::AcqRel) && held.renewed.elapsed() < RENEWAL {
            return Ok(());
        }
        let asked = Instant::now();
        match self.shared.registry.renew(held.lease)? {
            Renewed::Yes => held.renewed = asked,
            Renewed::Gone => {
                tracing::warn!("this node's lease has run out; it is registered anew");
                self.held = None;
            }
        }
        Ok(())
    }

    /// Takes the name.
    fn join(&self) -> std::result::Result<Held, Setback> {
        let registry = &self.shared.registry;
        let node = self.shared.node().clone();
        let (key, value) = (node_key(&node.name), write(&node)?);
        let compare = match read_claim(registry.get(&key)?.as_ref(), &node) {
            Claim::Free => Compare::absent(&key),
            Claim::Own(revision) => Compare::unchanged(&key, revision),
            Claim::Taken(other) => return Err(Setback::Taken(refuse(&node, &other))),
            Claim::Unreadable => {
                let operation = format!("register node '{}'", node.name);
                let cause = format!("nobody can read what is registered under '{key}'");
                return Err(Setback::Taken(
                    Error::new(Kind::Damaged, operation, cause).next("remove it, or update this node"),
                ));
            }
        };
        let left = registry.list(&member_prefix(&node.name))?;
        let renewed = Instant::now();
        let lease = registry.grant(LEASE)?;
        let transaction = Transaction {
            compares: vec![compare],
            puts: vec![Put::leased(&key, value.clone(), lease)],
            deletes: Vec::new(),
        };
        match registry.apply(&transaction) {
            Ok(Applied::Committed(revision)) => {
                let members = left.entries.into_iter().map(|entry| (entry.key, Told::Left)).collect();
                Ok(Held { lease, renewed, node: value, revision, members })
            }
            Ok(Applied::Refused) => {
                // It runs out by itself, too.
                let _ = registry.revoke(lease);
                let error =
                    Error::new(Kind::Busy, format!("register node '{}'", node.name), "somebody else does just now");
                Err(Setback::Failed(Failure::Unavailable(error)))
            }
            Err(failure) => {
                let _ = registry.revoke(lease);
                Err(failure.into())
            }
        }
    }

    /// Makes the registry say what is so.
    fn tell(&mut self) -> std::result::Result<(), Setback> {
        // What comes from here on rings it again.
        drop(self.changes.hear());
        let now = self.shared.roster.snapshot();
        let counted = self.shared.census.get().map(Census::count);
        let node = {
            let mut node = self.shared.node();
            node.counts = counted.unwrap_or(Counts { services: now.members().count() as u64, ..node.counts });
            node.clone()
        };
        let Some(held) = &mut self.held else { return Ok(()) };
        // Clients of other nodes are not sent to one that is drained.
        let wanted = match node.state {
            State::Ready => plan_members(&now, &node.name, node.address).map_err(Failure::Refused)?,
            State::Drained => BTreeMap::new(),
        };
        let mut corrections = plan_corrections(&held.members, &wanted);
        let (key, value) = (node_key(&node.name), write(&node)?);
        if held.node != value {
            corrections.push((key.clone(), Some(value)));
        }
        for some in corrections.chunks(AT_ONCE) {
            let applied = self.shared.registry.apply(&plan_transaction(&key, held, some));
            match applied {
                Ok(Applied::Committed(revision)) => held.note(&key, some, revision),
                // The record is gone or another's, or the lease is gone, or nobody knows what was written. All of that is
                // found out by beginning anew.
                Ok(Applied::Refused) => {
                    self.held = None;
                    let error = Error::new(Kind::State, "tell of this node", "its record is not as it was");
                    return Err(Setback::Failed(Failure::Unavailable(error)));
                }
                Err(failure @ (Failure::Refused(_) | Failure::Indeterminate(_) | Failure::Compacted)) => {
                    self.held = None;
                    return Err(failure.into());
                }
                Err(failure @ Failure::Unavailable(_)) => return Err(failure.into()),
            }
        }
        Ok(())
    }
}

impl Held {
    /// What was written.
    fn note(&mut self, own: &str, corrections: &[Correction], revision: u64) {
        for (key, value) in corrections {
            match value {
                Some(value) if key == own => (self.node, self.revision) = (value.clone(), revision),
                Some(value) => drop(self.members.insert(key.clone(), Told::Value(value.clone()))),
                None => drop(self.members.remove(key)),
            }
        }
    }
}

/// Changes that are made only as long as the name is ours.
fn plan_transaction(own: &str, held: &Held, corrections: &[Correction]) -> Transaction {
    let mut transaction =
        Transaction { compares: vec![Compare::unchanged(own, held.revision)], ..Transaction::default() };
    for (key, value) in corrections {
        match value {
            Some(value) => transaction.puts.push(Put::leased(key, value.clone(), held.lease)),
            None => transaction.deletes.push(key.clone()),
        }
    }
    transaction
}

fn read_claim(found: Option<&Entry>, own: &Node) -> Claim {
    let Some(entry) = found else { return Claim::Free };
    match serde_json::from_slice::<Node>(&entry.value) {
        Ok(node) if node.identity == own.identity => Claim::Own(entry.modified),
        Ok(node) => Claim::Taken(Box::new(node)),
        Err(_) => Claim::Unreadable,
    }
}

fn refuse(own: &Node, other: &Node) -> Error {
    let at = other.address.map(|address| format!(" at {address}")).unwrap_or_default();
    let cause = format!("another host{at} has that name since {}", other.started.format("%Y-%m-%dT%H:%M:%SZ"));
    let next = format!("give another --node, or wait {} s if that host is gone", LEASE.as_secs());
    Error::new(Kind::Exists, format!("register node '{}'", own.name), cause).next(next)
}

fn write(node: &Node) -> Answer<Vec<u8>> {
    serde_json::to_vec(node).context(|| "write the record of this node").map_err(Failure::Refused)
}
