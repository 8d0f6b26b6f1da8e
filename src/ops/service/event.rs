//! What happens by itself: keepers say something, instances end, times come.
//!
//! One thread sleeps over all of it, and does nothing itself that takes time: successors are started by the crew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::book::{Book, Drained, Seen};
use super::change::{Goal, carry_out};
use super::core::{Core, describe_end};
use super::judge::Found;
use super::record::{Change, ChangeKind, Key, Wanted};
use super::watch::{Heard, News};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::metrics;
use crate::ops::{keep, save};
use crate::service::message::{Command, Outcome, Phase};
use crate::service::policy::{Decision, Ending};

/// Clients of a service that comes back within this time are let wait for it; later they are sent elsewhere, or told.
const SOON: Duration = Duration::from_secs(1);
/// What cannot be waited for is tried again after this.
const PAUSE: Duration = Duration::from_secs(1);

impl Core {
    /// The life of the thread that watches.
    pub(super) fn attend(self: &Arc<Self>) {
        loop {
            let until = self.lock().next_retry();
            match self.watch.wait(until) {
                Ok(news) => news.into_iter().for_each(|news| self.hear(news)),
                Err(error) => {
                    tracing::error!("{error}");
                    std::thread::sleep(PAUSE);
                }
            }
            let now = Instant::now();
            self.start_due(now);
            self.part_again(now);
        }
    }

    fn hear(self: &Arc<Self>, News { instance, heard }: News) {
        let mut book = self.lock();
        let Some(seen) = book.instances.get_mut(&instance) else { return };
        let span = tracing::info_span!("instance", container = %instance, service = %seen.key);
        let _within = span.enter();
        match heard {
            Heard::Status(status) => seen.status = Some(*status),
            Heard::Gone => {
                seen.gone = true;
                if seen.phase() != Some(Phase::Ended) {
                    seen.orphan = self.find_orphan(&instance);
                }
            }
            Heard::Ended => seen.orphan = None,
        }
        self.look_after(&mut book, &instance);
        drop(book);
        self.news.notify_all();
    }

    /// Does what the state of an instance asks for, if nobody else does.
    pub(super) fn look_after(self: &Arc<Self>, book: &mut Book, instance: &ContainerId) {
        let Some(Seen { key, .. }) = book.instances.get(instance) else { return };
        let key = key.clone();
        let Some(service) = book.services.get(&key) else {
            // Nobody wants it.
            self.release(book, instance);
            return;
        };
        if !service.judged {
            self.judge_if_heard(book, &key);
        } else if service.record.leaving.contains(instance) {
            self.see_off(book, &key, instance);
        } else if service.record.instance.as_ref() == Some(instance) {
            self.settle(book, &key);
        }
    }

    /// An instance that is to go: once it has, its keeper may go, and then nothing is left of it.
    fn see_off(self: &Arc<Self>, book: &mut Book, key: &Key, instance: &ContainerId) {
        let Some(seen) = book.instances.get(instance) else { return };
        let outcome = seen.status.as_ref().and_then(|status| status.outcome.as_ref());
        let drained = outcome.filter(|outcome| outcome.requested).map(|outcome| Drained {
            instance: instance.clone(),
            cut: outcome.cut,
            ended: outcome.ended,
        });
        match seen.found() {
            Some(Found::Kept(Phase::Ended)) => {
                self.release(book, instance);
                if let (Some(drained), Some(service)) = (drained, book.services.get_mut(key)) {
                    if service.drained.as_ref().is_none_or(|before| before.instance != drained.instance) {
                        metrics::connections_cut(key.name.as_str(), drained.cut);
                    }
                    service.drained = Some(drained);
                }
            }
            Some(Found::Gone) => {
                if seen.phase() == Some(Phase::Ended) {
                    self.cross_out(book, key, instance);
                } else {
                    self.clear_soon(book, key.clone(), instance.clone());
                }
            }
            Some(Found::Kept(_)) | None => {}
        }
    }

    fn release(&self, book: &Book, instance: &ContainerId) {
        let keeper = book.instances.get(instance).and_then(|seen| seen.keeper.as_ref());
        if let Some(Err(error)) = keeper.map(|keeper| keeper.tell(&Command::Release)) {
            tracing::warn!("{error}");
        }
    }

    /// Nothing is left of an instance.
    fn cross_out(&self, book: &mut Book, key: &Key, instance: &ContainerId) {
        book.instances.remove(instance);
        self.note(book, key, |record| record.leaving.retain(|other| other != instance));
        self.finish_removal(book, key);
    }

    /// Takes away what is left of an instance that has no keeper any more.
    pub(super) fn clear(&self, instance: &ContainerId) -> Result<()> {
        match save::delete(&self.place, instance, true, None) {
            Err(error) if error.kind() != Kind::NotFound => {
                return Err(error).context(|| format!("take away instance '{instance}', whose keeper is gone"));
            }
            Ok(_) | Err(_) => {}
        }
        keep::clear(self.place.root.path(), instance)
    }

    /// As [`Core::clear`], by the crew, for an instance that is to go.
    fn clear_soon(self: &Arc<Self>, book: &mut Book, key: Key, instance: ContainerId) {
        if let Some(seen) = book.instances.get_mut(&instance)
            && std::mem::replace(&mut seen.clearing, true)
        {
            return;
        }
        let core = Arc::clone(self);
        self.crew.submit(move || {
            if let Err(error) = core.end_orphan(&instance).and_then(|()| core.clear(&instance)) {
                tracing::error!("{error}");
            }
            let mut book = core.lock();
            let key = book.instances.get(&instance).map_or(key, |seen| seen.key.clone());
            core.cross_out(&mut book, &key, &instance);
            drop(book);
            core.news.notify_all();
        });
    }

    /// An instance has ended that should serve: whether it gets a successor, and when.
    pub(super) fn decide(self: &Arc<Self>, book: &mut Book, key: &Key, outcome: Option<Outcome>, served: Duration) {
        let Some(service) = book.services.get_mut(key) else { return };
        let Some(instance) = service.record.instance.clone() else { return };
        let how = describe_end(outcome.as_ref());
        service.failure = Some(format!("instance '{instance}': {how}"));
        let ending = Ending { exit_code: outcome.as_ref().and_then(|outcome| outcome.exit_code), served };
        let definition = &service.record.definition;
        let decision = match definition.source {
            Some(_) => service.backoff.decide(definition.restart, ending),
            // What was adopted cannot be started again.
            None => Decision::Stay,
        };
        match decision {
            Decision::After(wait) => {
                tracing::warn!("service '{key}': {how}; its successor is started in {} ms", wait.as_millis());
                service.retry = Some(Instant::now() + wait);
                if wait > SOON {
                    self.roster.withdraw(&instance);
                }
                self.watch.ring();
            }
            Decision::Stay => {
                tracing::warn!("service '{key}': {how}; it gets no successor");
                self.roster.withdraw(&instance);
                let outcome = outcome.unwrap_or_else(unknown_end);
                self.note(book, key, |record| {
                    record.instance = None;
                    record.leaving.push(instance.clone());
                    record.wanted = Wanted::Rest(Box::new(outcome));
                });
                self.see_off(book, key, &instance);
            }
        }
    }

    /// Starts successors whose time has come.
    fn start_due(self: &Arc<Self>, now: Instant) {
        let mut book = self.lock();
        for (key, service) in &mut book.services {
            if service.retry.is_some_and(|retry| retry <= now) {
                service.retry = None;
                let (core, key) = (Arc::clone(self), key.clone());
                self.crew.submit(move || core.revive(&key));
            }
        }
    }

    /// Starts an instance for a service that should have one.
    fn revive(self: &Arc<Self>, key: &Key) {
        let mut book = self.lock();
        let lives = book.current(key).is_some_and(Seen::lives);
        let Some(service) = book.services.get(key) else { return };
        if lives || service.record.wanted != Wanted::Running {
            return;
        }
        let goal = Goal { to: service.record.definition.clone(), adopt: None };
        // Whoever else changes it looks after it at the end.
        let change = Change::begin(ChangeKind::Recover);
        let claim = change.and_then(|change| self.claim(&mut book, key, change, "recover"));
        drop(book);
        let Ok(claim) = claim else { return };
        if let Err(error) = carry_out(claim, goal, &mut |_| {}) {
            tracing::error!("{error}");
        }
    }

    /// A successor did not come up: it is tried again later.
    pub(super) fn postpone(&self, book: &mut Book, key: &Key, error: &Error) {
        let Some(service) = book.services.get_mut(key) else { return };
        service.failure = Some(error.to_string());
        let wait = service.backoff.next_wait();
        service.retry = Some(Instant::now() + wait);
        if wait > SOON
            && let Some(instance) = &service.record.instance
            && book.instances.get(instance).is_none_or(|seen| seen.orphan.is_none())
        {
            self.roster.withdraw(instance);
        }
        self.watch.ring();
    }
}

/// The end of an instance whose keeper was gone before it could tell.
fn unknown_end() -> Outcome {
    Outcome {
        exit_code: None,
        requested: false,
        cut: 0,
        ended: chrono::Utc::now(),
        reason: None,
        last_words: Vec::new(),
    }
}
