//! Instances whose keeper is gone while their first process lives. They go on to serve, unwatched: nobody keeps their log or
//! drains them. A successor comes up beside one, and only once that serves it is ended.

use std::sync::Arc;
use std::time::Instant;

use super::book::Book;
use super::core::Core;
use super::record::Key;
use crate::error::{Kind, Result};
use crate::ids::ContainerId;
use crate::ops::{keep, save};
use crate::runtime::{self, Status};
use crate::service::policy::{Decision, Ending};
use crate::service::roster::Member;
use crate::sys::process::Identity;

impl Core {
    /// The first process of an instance that has no keeper, if it serves without; its end is heard of from now on.
    /// A program that was adopted has no container, and is nobody's.
    pub(super) fn find_orphan(&self, instance: &ContainerId) -> Option<Identity> {
        let found = self.running(instance).and_then(|identity| {
            let Some(process) = identity.as_ref().map(Identity::open).transpose()?.flatten() else { return Ok(None) };
            self.watch.add_orphan(instance, process)?;
            Ok(identity)
        });
        found.unwrap_or_else(|error| {
            tracing::error!("{error}");
            None
        })
    }

    fn running(&self, instance: &ContainerId) -> Result<Option<Identity>> {
        match runtime::state(&self.place.root, instance) {
            Ok(state) => Ok(match state.status {
                Status::Running | Status::Paused => state.init,
                Status::Creating | Status::Created | Status::Stopped => None,
            }),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether an instance may write what a ring is to keep: then it has to end before the next one starts from that.
    pub(super) fn may_be_in_ring(&self, instance: &ContainerId) -> bool {
        let attached = save::attachment(&self.place, instance);
        attached.map_or(true, |attachment| attachment.is_some_and(|attachment| attachment.ring.is_some()))
    }

    /// An instance that should serve does so without a keeper: it gets a successor if the policy gives it one, and else
    /// stays as it is. Clients are sent there either way.
    pub(super) fn keep_orphan(self: &Arc<Self>, book: &mut Book, key: &Key) {
        let since = book.current(key).and_then(|seen| seen.status.as_ref()?.serving_since);
        let served = since.and_then(|since| (chrono::Utc::now() - since).to_std().ok()).unwrap_or_default();
        let Some(service) = book.services.get_mut(key) else { return };
        let Some(instance) = service.record.instance.clone() else { return };
        if self.roster.snapshot().members().all(|member| member.instance != instance) {
            let (name, version) = (key.name.clone(), key.version.clone());
            let listen = service.record.listen.clone();
            self.roster.add(Member { name, version, instance: instance.clone(), listen });
        }
        let definition = &service.record.definition;
        let told = service.failure.is_some();
        match service.backoff.decide(definition.restart, Ending { exit_code: None, served }) {
            Decision::After(wait) => {
                let how = format!("instance '{instance}': its keeper is gone, and it serves until its successor does");
                tracing::warn!("service '{key}': {how}; that is started in {} ms", wait.as_millis());
                service.failure = Some(how);
                service.retry = Some(Instant::now() + wait);
                self.watch.ring();
            }
            Decision::Stay if told => {}
            Decision::Stay => {
                let how = format!("instance '{instance}': its keeper is gone, and it serves without one");
                tracing::warn!("service '{key}': {how}; 'regen service restart {key}' gives it one");
                service.failure = Some(format!("{how}: 'regen service restart {key}' gives it one"));
            }
        }
    }

    /// Ends one that nobody needs any more: as it is told to, or else by [`Core::clear`].
    pub(super) fn end_orphan(&self, instance: &ContainerId) -> Result<()> {
        match self.running(instance)?.map(|identity| identity.open()).transpose()?.flatten() {
            Some(process) => keep::stop(&self.place.root, instance, &process),
            None => Ok(()),
        }
    }
}
