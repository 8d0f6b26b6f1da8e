//! The ring of a service: it passes to a new instance as the keeper makes that, and goes back if the instance is not to serve.
//!
//! ```text
//! keeper: hand over, claim, create ──> Status::handover ──> Pending::handover     the new instance has the ring
//!    committed ──> nothing has to be done: what the old one still writes stands beside the main line
//!    undone    ──> Record::giving_back ──> the ring is the old one's again ──> crossed out
//! ```
//!
//! That a ring has to go back is written down with the end of the change, and whoever changes the service next does it
//! first if it is not crossed out: so no hand-over is ever undone after a later one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::record::{Change, ChangeKind, Key, Pending};
use crate::error::{Context, Result};
use crate::ids::ContainerId;
use crate::ops::handover::{self, HandOver};
use crate::service::definition::{Definition, Source};
use crate::service::message::Status;

/// A ring that has to go back to the instance before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum GiveBack {
    /// As the keeper told that took it.
    Told(HandOver),
    /// The keeper was gone before it could tell: back to this instance, if it does not have it.
    To(ContainerId),
}

impl GiveBack {
    /// What has to go back if this change is not to be, and `old` is the instance before. Pure.
    pub(super) fn of(pending: &Pending, old: Option<&ContainerId>) -> Option<Self> {
        match &pending.handover {
            Some(handover) => Some(Self::Told(handover.clone())),
            None => old.filter(|_| may_have_ring(&pending.to)).cloned().map(Self::To),
        }
    }
}

/// A bundle may name a ring by itself.
fn may_have_ring(definition: &Definition) -> bool {
    match &definition.source {
        Some(Source::Bundle(_)) => true,
        Some(Source::Rootfs(_) | Source::Image(_)) | None => definition.ring.is_some(),
    }
}

/// What a keeper told of the ring that it took.
///
/// # Errors
/// That it can't be understood.
pub(super) fn told(status: &Status) -> Result<Option<HandOver>> {
    let Some(told) = status.handover.clone() else { return Ok(None) };
    let operation = || format!("read whose ring instance '{}' has", status.instance);
    serde_json::from_value(told).map(Some).context(operation)
}

impl Core {
    /// Writes down what a new instance took, so that it can go back whoever dies.
    pub(super) fn note_handover(&self, key: &Key, status: Option<&Status>) -> Result<()> {
        let Some(handover) = status.map(told).transpose()?.flatten() else { return Ok(()) };
        self.save(&mut self.lock(), key, |record| {
            if let Some(pending) = &mut record.pending {
                pending.handover = Some(handover);
            }
        })
    }

    /// Gives the ring of a service back, if that has to be done. The caller has the right to change it.
    ///
    /// # Errors
    /// Those of reading and writing the ring; it is tried again before the next change.
    pub(super) fn give_back(&self, key: &Key, what: Option<GiveBack>) -> Result<()> {
        match what {
            None => return Ok(()),
            Some(GiveBack::Told(handover)) => handover::undo(&self.place, &handover)?,
            Some(GiveBack::To(old)) => handover::recall(&self.place, &old)?,
        }
        self.note(&mut self.lock(), key, |record| record.giving_back = None);
        Ok(())
    }

    /// As [`Core::give_back`], what is written down.
    pub(super) fn give_back_what_is_left(&self, key: &Key) -> Result<()> {
        let what = self.lock().get(key)?.record.giving_back.clone();
        self.give_back(key, what)
    }

    /// The same by the crew, unless somebody else changes the service, who does it first.
    pub(super) fn give_back_soon(self: &Arc<Self>, key: Key) {
        let core = Arc::clone(self);
        self.crew.submit(move || {
            let change = Change::begin(ChangeKind::Recover);
            let claim = change.and_then(|change| core.claim(&mut core.lock(), &key, change, "give the ring back"));
            if let Ok(_claim) = claim
                && let Err(error) = core.give_back_what_is_left(&key)
            {
                tracing::error!("{error}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{handover, instance, pending};
    use super::*;

    #[test]
    fn what_a_keeper_told_goes_back_and_else_whatever_the_ring_says_of_the_old_instance() {
        let mut change = pending(ChangeKind::Restart, 2);
        assert_eq!(GiveBack::of(&change, Some(&instance(1))), None, "a root without a ring has none");
        change.to.ring = Some("web".into());
        assert_eq!(GiveBack::of(&change, Some(&instance(1))), Some(GiveBack::To(instance(1))));
        assert_eq!(GiveBack::of(&change, None), None);
        change.handover = Some(handover());
        assert_eq!(GiveBack::of(&change, Some(&instance(1))), Some(GiveBack::Told(handover())));
        change.to.source = Some(Source::Bundle("/b".into()));
        (change.to.ring, change.handover) = (None, None);
        assert!(GiveBack::of(&change, Some(&instance(1))).is_some());
    }
}
