//! What a daemon does first: it reads what is written down, listens to every keeper, and goes on where the last one was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::book::{Book, Seen, Service};
use super::core::Core;
use super::judge::{Boot, Farewell, Found, Judgement, Next, judge};
use super::record::{Key, PREFIX, Record};
use super::ring;
use crate::error::{Kind, Result};
use crate::ids::ContainerId;
use crate::service::keeper;
use crate::service::message::Command;
use crate::service::roster::Member;

/// How long to wait for what keepers say first. Who takes longer is heard later.
const FIRST_WORDS: Duration = Duration::from_secs(2);

impl Core {
    /// Reads the registry and connects to the keepers.
    ///
    /// # Errors
    /// Those of the registry as a whole: a single record that cannot be read is told of and left alone.
    pub(super) fn load(&self) -> Result<()> {
        let mut known = Vec::new();
        let mut book = self.lock();
        for entry in self.registry.list(PREFIX)?.entries {
            match Record::read(&entry) {
                Ok(record) => {
                    let key = Key::of(&record.definition);
                    let boot = if record.boot == self.boot { Boot::Same } else { Boot::Another };
                    known.extend(record.instances().map(|instance| (key.clone(), instance.clone(), boot)));
                    let service = Service { judged: false, ..Service::new(record, entry.modified) };
                    book.services.insert(key, service);
                }
                Err(error) => {
                    tracing::error!("{error}");
                    book.damaged.push(error.to_string());
                }
            }
        }
        drop(book);
        for (key, instance, boot) in &known {
            let followed = match boot {
                Boot::Same => self.follow(key, instance),
                Boot::Another => Ok(false),
            };
            if let Err(error) = &followed {
                tracing::error!("{error}");
            }
            if *boot == Boot::Another || followed.is_err() {
                // One that is stuck keeps an instance that may well serve: that is left alone.
                let stuck = followed.is_err_and(|error| error.kind() == Kind::Busy);
                let (key, gone) = (key.clone(), !stuck);
                let gone = Seen { key, keeper: None, status: None, gone, orphan: None, clearing: false };
                self.lock().instances.insert(instance.clone(), gone);
            }
        }
        self.look_for_strangers()
    }

    /// Instances that have a keeper and belong to nothing here: they are told of and left alone.
    fn look_for_strangers(&self) -> Result<()> {
        let mut strangers = keeper::list(self.place.root.path())?;
        let mut book = self.lock();
        strangers.retain(|instance| !book.instances.contains_key(instance));
        for instance in &strangers {
            tracing::warn!(
                "instance '{instance}' has a keeper and belongs to no service: 'regen delete --force {instance}'"
            );
        }
        book.strangers = strangers;
        Ok(())
    }

    /// Decides about every service, as soon as its instances were heard; waits a moment for that.
    pub(super) fn go_on(self: &Arc<Self>) {
        let mut book = self.lock();
        let keys: Vec<Key> = book.services.keys().cloned().collect();
        for key in keys {
            self.judge_if_heard(&mut book, &key);
        }
        drop(book);
        self.wait_for(FIRST_WORDS, |book| book.services.values().all(|service| service.judged).then_some(()));
    }

    /// Decides about a service once all its instances were heard.
    pub(super) fn judge_if_heard(self: &Arc<Self>, book: &mut Book, key: &Key) {
        let Some(service) = book.services.get(key).filter(|service| !service.judged) else { return };
        let found = |instance: &ContainerId| book.instances.get(instance).map_or(Some(Found::Gone), Seen::found);
        if service.record.instances().any(|instance| found(instance).is_none()) {
            return;
        }
        let boot = if service.record.boot == self.boot { Boot::Same } else { Boot::Another };
        let mut record = service.record.clone();
        if let Some(pending) = &mut record.pending {
            let status = book.instances.get(&pending.instance).and_then(|seen| seen.status.as_ref());
            let told = status.map(ring::told).transpose().unwrap_or_else(|error| {
                tracing::error!("{error}");
                None
            });
            pending.handover = pending.handover.take().or(told.flatten());
        }
        let mut judgement = judge(record, boot, |instance| found(instance).unwrap_or(Found::Gone));
        let listens = judgement.record.instance.as_ref().and_then(|instance| book.instances.get(instance));
        if let Some(status) = listens.and_then(|seen| seen.status.as_ref()) {
            judgement.record.listen.clone_from(&status.listen);
        }
        let changed = judgement.record != service.record;
        let new = Key::of(&judgement.record.definition);
        if changed {
            let record = judgement.record.clone();
            self.note(book, key, |old| *old = record);
        }
        // What could not be written down stays under its old name.
        let key = if book.services.contains_key(&new) { new } else { key.clone() };
        if let Some(service) = book.services.get_mut(&key) {
            service.judged = true;
        }
        self.act_on(book, &key, judgement);
    }

    fn act_on(self: &Arc<Self>, book: &mut Book, key: &Key, judgement: Judgement) {
        let Judgement { record, farewells, next } = judgement;
        let back = record.giving_back.is_some();
        if back {
            self.give_back_soon(key.clone());
        }
        for (instance, way) in farewells {
            match way {
                Farewell::Succeeded | Farewell::Withdrawn | Farewell::Stop => {
                    let (core, timeout) = (Arc::clone(self), record.definition.drain_timeout);
                    self.crew.submit(move || core.part(&instance, way, timeout));
                }
                Farewell::Release | Farewell::Clear | Farewell::Wait => self.look_after(book, &instance),
            }
        }
        match next {
            Next::Serve => self.enlist(book, key),
            Next::Steer => {
                let (core, key) = (Arc::clone(self), key.clone());
                self.crew.submit(move || core.steer(&key));
            }
            // Whoever gives the ring back looks after the service then.
            Next::Policy | Next::Start if back => {}
            Next::Policy => self.settle(book, key),
            Next::Start => {
                if let Some(service) = book.services.get_mut(key) {
                    service.retry = Some(Instant::now());
                    self.watch.ring();
                }
            }
            Next::Rest => {}
            Next::Remove => self.finish_removal(book, key),
        }
    }

    /// Clients are sent to the instance that serves.
    fn enlist(&self, book: &Book, key: &Key) {
        if let Some(status) = book.current(key).and_then(|seen| seen.status.as_ref()) {
            self.roster.add(Member::from(status));
        }
    }

    /// An instance that could serve does.
    fn steer(&self, key: &Key) {
        let Some(instance) = self.lock().services.get(key).and_then(|service| service.record.instance.clone()) else {
            return;
        };
        match self.ask(&instance, &Command::Serve) {
            Ok(()) => self.enlist(&self.lock(), key),
            Err(error) => tracing::error!("{error}"),
        }
    }
}
