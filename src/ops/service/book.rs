//! What the daemon knows while it runs: every service with what is written down of it, and every instance with what its
//! keeper said last. Nothing here does anything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use semver::Version;
use serde::{Deserialize, Serialize};

use super::farewell::Overdue;
use super::judge::Found;
use super::record::{Change, Key, Record};
use crate::error::{Error, Kind, Result};
use crate::ids::{ContainerId, Name};
use crate::service::address::Address;
use crate::service::definition::Definition;
use crate::service::keeper::Keeper;
use crate::service::message::{Phase, Status};
use crate::service::policy::Backoff;
use crate::sys::process::Identity;

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub services: BTreeMap<Key, Service>,
    pub instances: HashMap<ContainerId, Seen>,
    /// Instances that have a keeper, and that nothing is written down of.
    pub strangers: Vec<ContainerId>,
    /// Why some of what is written down cannot be read.
    pub damaged: Vec<String>,
    /// What keepers that do not answer are to be told.
    pub overdue: Vec<Overdue>,
}

/// A version of a service.
#[derive(Debug)]
pub(super) struct Service {
    pub record: Record,
    /// The revision of the record.
    pub modified: u64,
    pub running: Option<Running>,
    /// Whether it was decided what becomes of it, after a start of the daemon.
    pub judged: bool,
    pub backoff: Backoff,
    /// When an instance that has ended gets a successor.
    pub retry: Option<Instant>,
    /// Why nobody serves.
    pub failure: Option<String>,
    pub drained: Option<Drained>,
}

/// A change that is going on.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub change: Change,
    /// The version that it leads to, if that is another one.
    pub to: Option<Version>,
}

/// An instance that may be there.
#[derive(Debug)]
pub(super) struct Seen {
    /// Whose.
    pub key: Key,
    /// The connection to its keeper; none if it had none when the daemon started.
    pub keeper: Option<Arc<Keeper>>,
    /// What that said last.
    pub status: Option<Status>,
    /// Whether the keeper is gone.
    pub gone: bool,
    /// Its first process, if that lives though the keeper is gone.
    pub orphan: Option<Identity>,
    /// Whether what is left of it is being taken away.
    pub clearing: bool,
}

/// How the last old instance went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Which.
    pub instance: ContainerId,
    /// Connections that were still there when it was told to end.
    pub cut: u64,
    /// When it ended.
    pub ended: DateTime<Utc>,
}

impl Service {
    /// One that was just written down.
    pub(super) fn new(record: Record, modified: u64) -> Self {
        Self {
            record,
            modified,
            running: None,
            judged: true,
            backoff: Backoff::default(),
            retry: None,
            failure: None,
            drained: None,
        }
    }
}

impl Seen {
    /// Where it is in its life, as far as that is known.
    pub(super) fn phase(&self) -> Option<Phase> {
        self.status.as_ref().map(|status| status.phase)
    }

    /// As a daemon that starts finds it; `None` if it has not been heard of yet.
    pub(super) fn found(&self) -> Option<Found> {
        match (self.phase(), self.gone) {
            (_, true) => Some(Found::Gone),
            (phase, false) => phase.map(Found::Kept),
        }
    }

    /// Whether it may have sockets: it has a keeper, or goes on without one.
    pub(super) fn has_sockets(&self) -> bool {
        !self.gone || self.orphan.is_some()
    }

    /// Whether clients can be sent there, or it is on its way to that.
    pub(super) fn lives(&self) -> bool {
        !self.gone && self.phase() != Some(Phase::Ended)
    }
}

impl Book {
    /// A service that is there.
    pub(super) fn get(&mut self, key: &Key) -> Result<&mut Service> {
        self.services.get_mut(key).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("find service '{key}'"), "there is none").next("see 'regen service ls'")
        })
    }

    /// The versions of a service, oldest first.
    pub(super) fn versions(&self, name: &Name) -> Vec<Key> {
        self.services.keys().filter(|key| key.name == *name).cloned().collect()
    }

    /// The one version that is meant.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none; [`Kind::Usage`] if several are there, and none was named.
    pub(super) fn select(&self, operation: &str, name: &Name, version: Option<&Version>) -> Result<Key> {
        let versions = self.versions(name);
        let list = || versions.iter().map(|key| key.version.to_string()).collect::<Vec<_>>().join(", ");
        let found = match (version, versions.as_slice()) {
            (_, []) => {
                return Err(Error::new(Kind::NotFound, operation, format!("there is no service '{name}'"))
                    .next("see 'regen service ls'"));
            }
            (Some(version), _) => versions.iter().find(|key| key.version == *version),
            (None, [only]) => Some(only),
            (None, _) => {
                let cause = format!("there are several versions of it: {}", list());
                return Err(Error::new(Kind::Usage, operation, cause).next(format!("name one: {name}@VERSION")));
            }
        };
        found.cloned().ok_or_else(|| {
            Error::new(Kind::NotFound, operation, format!("service '{name}' has no such version: there is {}", list()))
        })
    }

    /// Refuses a second change of one service.
    pub(super) fn check_idle(&self, key: &Key, operation: &str) -> Result<()> {
        let target = |running: &&Running| running.to.as_ref() == Some(&key.version);
        let of_name = self.services.iter().filter(|(other, _)| other.name == key.name);
        let running = of_name.filter_map(|(other, service)| Some((other, service.running.as_ref()?)));
        let mut held = running.filter(|(other, running)| *other == key || target(running));
        let Some((other, Running { change, .. })) = held.next() else { return Ok(()) };
        let age = (Utc::now() - change.since).num_milliseconds().max(0);
        let (verb, id) = (change.kind.verb(), &change.id);
        let cause =
            format!("{verb} of '{other}' is going on, change {id}, for {}.{:01} s", age / 1000, age % 1000 / 100);
        Err(Error::new(Kind::Busy, operation, cause).next("wait until it is done, see 'regen service show'"))
    }

    /// Refuses a new service whose place is taken: its version, or an address.
    pub(super) fn check_free(&self, definition: &Definition, operation: &str) -> Result<()> {
        let key = Key::of(definition);
        self.check_idle(&key, operation)?;
        if self.services.contains_key(&key) {
            let next = format!("replace its instance: 'regen service restart {key}', or add another version");
            return Err(Error::new(Kind::Exists, operation, "there is one already").next(next));
        }
        for listen in &definition.listen {
            if let Some(holder) = self.holder_of(&listen.address) {
                let cause = format!("address {} belongs to service '{holder}'", listen.address);
                let next =
                    format!("choose another address, or replace it: 'regen service upgrade {holder} --to VERSION'");
                return Err(Error::new(Kind::Exists, operation, cause).next(next));
            }
        }
        Ok(())
    }

    fn holder_of(&self, address: &Address) -> Option<&Key> {
        let has = |service: &Service| service.record.listen.iter().any(|listen| listen.address.overlaps(address));
        self.services.iter().find(|(_, service)| has(service)).map(|(key, _)| key)
    }

    /// What is known of the instance that serves, or served last.
    pub(super) fn current(&self, key: &Key) -> Option<&Seen> {
        self.instances.get(self.services.get(key)?.record.instance.as_ref()?)
    }

    /// The next time at which something is to be done.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let overdue = self.overdue.iter().map(|overdue| overdue.at);
        self.services.values().filter_map(|service| service.retry).chain(overdue).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::ChangeKind;
    use super::super::record::tests::record;
    use super::*;

    fn book(versions: &[&str]) -> Book {
        let mut book = Book::default();
        for version in versions {
            let mut record = record();
            record.definition.version = version.parse().unwrap();
            record.listen[0].address = format!("unix:/run/{version}").parse().unwrap();
            book.services.insert(Key::of(&record.definition), Service::new(record, 1));
        }
        book
    }

    #[test]
    fn a_name_alone_is_enough_where_only_one_version_is_there() {
        let name: Name = "web".parse().unwrap();
        let select = |versions: &[&str], version: Option<&str>| {
            let version = version.map(|version| version.parse().unwrap());
            book(versions).select("restart service 'web'", &name, version.as_ref()).map(|key| key.to_string())
        };
        assert_eq!(select(&["1.0.0"], None).unwrap(), "web@1.0.0");
        assert_eq!(select(&["1.0.0", "2.0.0"], Some("2.0.0")).unwrap(), "web@2.0.0");
        let several = select(&["1.0.0", "2.0.0"], None).unwrap_err();
        assert_eq!(
            several.to_string(),
            "restart service 'web': there are several versions of it: 1.0.0, 2.0.0: name one: web@VERSION"
        );
        let other = select(&["1.0.0"], Some("3.0.0")).unwrap_err().to_string();
        assert!(other.contains("no such version: there is 1.0.0"), "{other}");
        assert!(select(&[], None).unwrap_err().to_string().contains("there is no service 'web'"));
    }

    #[test]
    fn a_second_change_is_refused_with_the_name_of_the_first() {
        let mut book = book(&["1.0.0", "2.0.0"]);
        let key = |version: &str| Key { name: "web".parse().unwrap(), version: version.parse().unwrap() };
        let change = Change::begin(ChangeKind::Upgrade).unwrap();
        let running = Running { change: change.clone(), to: Some("3.0.0".parse().unwrap()) };
        book.get(&key("1.0.0")).unwrap().running = Some(running);
        for held in ["1.0.0", "3.0.0"] {
            let error = book.check_idle(&key(held), "restart").unwrap_err();
            assert_eq!(error.kind(), Kind::Busy);
            let line = error.to_string();
            assert!(line.contains(&format!("upgrade of 'web@1.0.0' is going on, change {}", change.id)), "{line}");
        }
        book.check_idle(&key("2.0.0"), "restart").unwrap();
    }

    #[test]
    fn a_place_that_is_taken_is_refused() {
        let book = book(&["1.0.0"]);
        let mut definition = record().definition;
        definition.version = "1.0.0".parse().unwrap();
        assert_eq!(book.check_free(&definition, "add").unwrap_err().kind(), Kind::Exists);
        definition.version = "2.0.0".parse().unwrap();
        book.check_free(&definition, "add").unwrap();
        definition.listen[0].address = "unix:/run/1.0.0".parse().unwrap();
        let line = book.check_free(&definition, "add").unwrap_err().to_string();
        assert!(line.contains("address unix:/run/1.0.0 belongs to service 'web@1.0.0'"), "{line}");
    }
}
