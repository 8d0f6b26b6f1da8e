//! What came of a change that a daemon made for an operation before it ended.

use std::time::Duration;

use semver::Version;

use super::book::Book;
use super::change::ENDING;
use super::record::{ChangeId, Key, Wanted};
use super::{Manager, Report};
use crate::ids::Name;
use crate::operation::OperationId;

/// How long to wait for what keepers say of instances that were half made.
const JUDGEMENT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub enum Past {
    /// It was done.
    Done(Box<Report>),
    /// Everything is as if it had never been begun.
    Undone,
    /// There is no such service.
    Missing,
    /// It is not known yet, and takes too long.
    Unknown,
}

impl Manager {
    /// What came of a change to this version. Waits until it is judged, which the daemon does by itself.
    #[must_use]
    pub fn past(&self, operation: &OperationId, key: &Key) -> Past {
        let id = ChangeId::of(operation);
        let judged = |book: &mut Book| {
            let Some(service) = book.services.get(key) else { return Some(Past::Missing) };
            let record = &service.record;
            if !service.judged || record.pending.is_some() || service.running.is_some() {
                return None;
            }
            let instance = record.instance.clone().filter(|_| record.done.as_ref() == Some(&id));
            match (instance, &record.wanted) {
                (_, Wanted::Removed) => None,
                (None, _) => Some(Past::Undone),
                (Some(instance), _) => Some(Past::Done(Box::new(Report {
                    change: id.clone(),
                    name: key.name.clone(),
                    version: key.version.clone(),
                    instance,
                    addresses: record.listen.iter().map(|listen| listen.address.to_string()).collect(),
                    old: None,
                    drained: None,
                }))),
            }
        };
        self.0.wait_for(JUDGEMENT, judged).unwrap_or(Past::Unknown)
    }

    /// Waits for the end of what is being removed, and tells what is still there of what was meant.
    #[must_use]
    pub fn left_of_removal(&self, name: &Name, version: Option<&Version>) -> Vec<Key> {
        let meant = |book: &Book| {
            let mut keys = book.versions(name);
            keys.retain(|key| version.is_none_or(|version| key.version == *version));
            keys
        };
        let limit = {
            let book = self.0.lock();
            let timeouts = meant(&book)
                .iter()
                .filter_map(|key| book.services.get(key))
                .map(|service| service.record.definition.drain_timeout)
                .max();
            timeouts.unwrap_or_default() + ENDING
        };
        let over = |book: &mut Book| {
            let going = |key: &Key| book.services.get(key).is_some_and(|one| one.record.wanted == Wanted::Removed);
            (!meant(book).iter().any(going)).then_some(())
        };
        self.0.wait_for(limit, over);
        meant(&self.0.lock())
    }
}
