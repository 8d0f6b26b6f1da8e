//! Markers: that an operation has a class of a resource, and nobody else. They are taken in the transaction that writes the
//! operation down, and go in the one that writes its end down, or with the lease of the daemon that took them.
//!
//! An operation with few of them is *narrow*: each is a key, and has to be absent. One with more than a transaction can have
//! is *wide*: it has one key with all its resources, so that its answer costs the same for any number of targets. Wide is also
//! what takes all versions of a service, since what overlaps that has other names.
//!
//! ```text
//! narrow   read `wide` and wide/* (remembered) ─ no conflict ─> put marker/…, compare them absent and `wide` unchanged
//! wide     read `wide` and wide/*              ─ no conflict ─> put wide/ID and `wide`, compare `wide` unchanged
//!          then read marker/*                  ─ no conflict ─> write the operation down; else take wide/ID back
//! ```
//!
//! A narrow one that comes after a wide one finds `wide` changed and looks anew; one that came before is found in marker/*. Of
//! two wide ones the later finds `wide` changed. So two that overlap never both pass.

mod held;
mod narrow;
mod wide;

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use held::Holder;

use held::{View, WideValue};

use super::class::class;
use super::{Kind, OperationId, Resource, key};
use crate::error::{Error, Kind as Fault, Result};
use crate::ids::NodeName;
use crate::registry::{Answer, Applied, Compare, Entry, Failure, Lease, Put, Registry, Transaction};

/// More (resource, class) pairs than this make an operation wide. A transaction has at most twice as many compares.
pub const NARROW: usize = 48;
/// What keys of narrow markers begin with.
pub(super) const MARKER: &str = "marker/";
/// What all wide operations change.
const WIDE: &str = "wide";
/// How often an admission is begun anew because others came between. Each time somebody else got on.
const ATTEMPTS: u32 = 64;

/// Who has something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The operation.
    pub operation: OperationId,
    /// What it does.
    pub kind: Kind,
    /// Whose daemon took it.
    pub node: NodeName,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// What is to be taken, and for whom.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Who takes it.
    pub marker: Marker,
    /// All its resources, each once.
    pub resources: &'a [Resource],
    /// The idempotency key that is taken with it.
    pub key: Option<&'a str>,
    /// What the markers go with.
    pub lease: Lease,
    /// The revision that changed the operation's head last; 0 for a new one.
    pub head: u64,
}

/// Markers that were taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The revision that made them: who has a higher one came later.
    pub token: u64,
    /// The keys, and the revisions that changed them last.
    keys: Vec<(String, u64)>,
    /// The revision that changed the operation's head last.
    pub head: u64,
}

/// What became of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The markers are there, and the operation is written down.
    Taken(Claim),
    /// Somebody else has one of them. Nothing was changed.
    Held(Box<Holder>),
    /// The idempotency key belongs to this operation. Nothing was changed.
    Duplicate(OperationId),
}

/// Writes an operation down: given the token where that is not the revision of this transaction, the puts.
pub type Write<'a> = &'a mut dyn FnMut(Option<u64>) -> Result<Vec<Put>>;

/// What one process knows of the markers of all.
#[derive(Debug, Default)]
pub struct Markers {
    view: Mutex<Option<Arc<View>>>,
    /// Wide markers that could not be taken back.
    litter: Mutex<Vec<String>>,
}

impl Wish<'_> {
    fn pairs(&self) -> usize {
        self.resources.len() * class(self.marker.kind).len()
    }

    fn is_wide(&self) -> bool {
        self.pairs() > NARROW || self.resources.iter().any(Resource::is_whole)
    }

    /// Its narrow markers.
    fn keys(&self) -> impl Iterator<Item = String> {
        let classes = class(self.marker.kind);
        self.resources.iter().flat_map(move |resource| classes.iter().map(move |c| format!("{MARKER}{resource}/{c}")))
    }

    /// All its markers, as they are named.
    fn names(&self) -> Vec<String> {
        if self.is_wide() { vec![self.wide_key()] } else { self.keys().collect() }
    }

    /// Whether a marker is its own.
    fn has(&self, entry: &Entry) -> bool {
        read(entry).is_some_and(|marker| marker.operation == self.marker.operation)
    }

    fn head_key(&self) -> String {
        key::head(&self.marker.operation)
    }

    fn wide_key(&self) -> String {
        format!("{WIDE}/{}", self.marker.operation)
    }

    /// The part of every transaction that makes the operation known: it is new, and so is its key.
    fn first_words(&self) -> Transaction {
        let mut transaction =
            Transaction { compares: vec![Compare::unchanged(self.head_key(), self.head)], ..Transaction::default() };
        if let Some(text) = self.key {
            let name = key::idempotency(text);
            transaction.compares.push(Compare::absent(&name));
            transaction.puts.push(Put::new(name, self.marker.operation.to_string().into_bytes()));
        }
        transaction
    }

    /// Whose idempotency key it is, if somebody has it.
    fn owner_of_key(&self, registry: &dyn Registry) -> Answer<Option<OperationId>> {
        let Some(text) = self.key else { return Ok(None) };
        let entry = registry.get(&key::idempotency(text))?;
        Ok(entry.as_ref().and_then(owner).filter(|id| *id != self.marker.operation))
    }
}

impl Claim {
    /// That of an operation which has none of its markers.
    #[must_use]
    pub fn bare(token: u64, head: u64) -> Self {
        Self { token, keys: Vec::new(), head }
    }

    /// Adds to the transaction that ends an operation that its markers go, if they are still its own.
    pub fn release(&self, transaction: &mut Transaction) {
        for (key, modified) in &self.keys {
            transaction.compares.push(Compare::unchanged(key, *modified));
            transaction.deletes.push(key.clone());
        }
    }

    /// The same without the markers that went with a lease and may be somebody else's by now.
    ///
    /// # Errors
    /// Those of reading the registry.
    pub fn reread(&mut self, registry: &dyn Registry, operation: &OperationId) -> Answer<()> {
        let mut left = Vec::new();
        for (key, _) in &self.keys {
            // Where nobody answers, all that is known so far stays.
            let entry = registry.get(key)?;
            let ours = entry.filter(|entry| read(entry).is_some_and(|marker| marker.operation == *operation));
            left.extend(ours.map(|entry| (key.clone(), entry.modified)));
        }
        self.keys = left;
        Ok(())
    }
}

impl Markers {
    /// Takes what is wished and writes the operation down, or does neither.
    ///
    /// # Errors
    /// [`Failure::Indeterminate`] if that may or may not have happened; [`Failure::Refused`] with [`Fault::NotFound`] if the
    /// lease is gone, else the registry's reason; [`Failure::Unavailable`].
    pub fn take(&self, registry: &dyn Registry, wish: &Wish<'_>, write: Write<'_>) -> Answer<Taken> {
        self.sweep(registry);
        if wish.is_wide() { self.take_wide(registry, wish, write) } else { self.take_narrow(registry, wish, write) }
    }

    /// Takes over the markers that an operation of ours has from an earlier life of this daemon: they hang on the new lease from
    /// then on. `None` if they are not all there any more; then none is.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn take_over(&self, registry: &dyn Registry, wish: &Wish<'_>) -> Answer<Option<Claim>> {
        let names = wish.names();
        let mut transaction = Transaction::default();
        let mut token = u64::MAX;
        for name in &names {
            let Some(entry) = registry.get(name)?.filter(|entry| wish.has(entry)) else { continue };
            token = token.min(entry.created);
            transaction.compares.push(Compare::unchanged(name, entry.modified));
            transaction.puts.push(Put::leased(name, entry.value, wish.lease));
        }
        let whole = transaction.puts.len() == names.len();
        if !whole {
            transaction.deletes = transaction.puts.drain(..).map(|put| put.key).collect();
        }
        if transaction.compares.is_empty() {
            return Ok(None);
        }
        match registry.apply(&transaction)? {
            Applied::Committed(revision) if whole => {
                let keys = names.into_iter().map(|name| (name, revision)).collect();
                Ok(Some(Claim { token, keys, head: 0 }))
            }
            Applied::Committed(_) | Applied::Refused => Ok(None),
        }
    }

    /// Whether an operation has any of its markers.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn are_there(&self, registry: &dyn Registry, wish: &Wish<'_>) -> Answer<bool> {
        for name in wish.names() {
            if registry.get(&name)?.is_some_and(|entry| wish.has(&entry)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes away what an operation that did not come to be may have.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn forget(&self, registry: &dyn Registry, operation: &OperationId) -> Answer<()> {
        let deletes = vec![format!("{WIDE}/{operation}")];
        registry.apply(&Transaction { deletes, ..Transaction::default() }).map(drop)
    }

    /// Takes away the wide markers of a node's operations that never came to be, because its daemon ended just then. Only for
    /// that node's next daemon.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn clear(&self, registry: &dyn Registry, node: &NodeName) -> Answer<()> {
        for entry in registry.list(&format!("{WIDE}/"))?.entries {
            let Some(marker) = read(&entry).filter(|marker| marker.node == *node) else { continue };
            let head = key::head(&marker.operation);
            if registry.get(&head)?.is_none() {
                // If somebody is at it nevertheless, it finds its marker gone.
                let compares = vec![Compare::unchanged(&entry.key, entry.modified), Compare::absent(head)];
                registry.apply(&Transaction { compares, deletes: vec![entry.key], ..Transaction::default() })?;
            }
        }
        Ok(())
    }

    /// What is remembered of wide operations, read anew where that was asked for or nothing is.
    fn view(&self, registry: &dyn Registry, age: Age) -> Answer<Arc<View>> {
        if age == Age::Any
            && let Some(view) = &*self.view.lock().unwrap_or_else(PoisonError::into_inner)
        {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(View::read(&registry.list(WIDE)?));
        let mut kept = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|kept| kept.revision <= view.revision) {
            *kept = Some(Arc::clone(&view));
        }
        Ok(view)
    }

    /// Takes wide markers away that no operation has.
    fn sweep(&self, registry: &dyn Registry) {
        let keys = std::mem::take(&mut *self.litter.lock().unwrap_or_else(PoisonError::into_inner));
        for key in keys {
            self.take_back(registry, key);
        }
    }

    fn take_back(&self, registry: &dyn Registry, key: String) {
        let transaction = Transaction { deletes: vec![key.clone()], ..Transaction::default() };
        if registry.apply(&transaction).is_err() {
            self.litter.lock().unwrap_or_else(PoisonError::into_inner).push(key);
        }
    }
}

/// Whether what is remembered will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// It will.
    Any,
    /// It has to be as it is now.
    New,
}

/// The operation that an idempotency key belongs to.
#[must_use]
pub fn owner(entry: &Entry) -> Option<OperationId> {
    std::str::from_utf8(&entry.value).ok()?.parse().ok()
}

/// Reads a marker, narrow or wide.
fn read(entry: &Entry) -> Option<Marker> {
    serde_json::from_slice(&entry.value).ok()
}

fn write(operation: &OperationId, value: &impl Serialize) -> Answer<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| {
        Failure::Refused(Error::new(
            Fault::Invalid,
            format!("write the marker of operation {operation}"),
            error.to_string(),
        ))
    })
}

fn gave_up(operation: &OperationId) -> Failure {
    let cause = "others came between again and again";
    Failure::Unavailable(Error::new(Fault::Busy, format!("submit operation {operation}"), cause).next("try again"))
}

fn gone(operation: &OperationId) -> Failure {
    let cause = "the daemon's lease ended meanwhile";
    Failure::Unavailable(Error::new(Fault::Busy, format!("submit operation {operation}"), cause).next("try again"))
}
