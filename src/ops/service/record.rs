//! What is remembered of a service over the death of the daemon: one value of the registry for each version.
//!
//! ```text
//! service/NAME/VERSION ──> Record
//! ```
//!
//! An instance is written down before it is started and crossed out after it has ended, so that a daemon that comes later
//! knows every one. What is half done is in `pending`.

use std::fmt;

use chrono::{DateTime, Utc};
use semver::Version;
use serde::{Deserialize, Serialize};

use super::ring::GiveBack;
use crate::error::{Context, Error, Result};
use crate::ids::{ContainerId, Name};
use crate::operation::OperationId;
use crate::ops::handover::HandOver;
use crate::registry::Entry;
use crate::service::address::Listen;
use crate::service::definition::Definition;
use crate::service::message::Outcome;
use crate::sys::fs::random_id;

/// What keys of services begin with.
pub(super) const PREFIX: &str = "service/";

/// Which version of which service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The service.
    pub name: Name,
    /// The version.
    pub version: Version,
}

impl Key {
    /// That of a definition.
    #[must_use]
    pub fn of(definition: &Definition) -> Self {
        Self { name: definition.name.clone(), version: definition.version.clone() }
    }

    /// In the registry.
    pub(super) fn path(&self) -> String {
        format!("{PREFIX}{}/{}", self.name, self.version)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// The id of a change: that of the operation that it is, else 32 hex digits that are drawn at random.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChangeId(String);

impl ChangeId {
    /// A new one.
    ///
    /// # Errors
    /// Those of getrandom(2).
    pub(super) fn draw() -> Result<Self> {
        Ok(Self(random_id()?.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// That of an operation's.
    pub(super) fn of(operation: &OperationId) -> Self {
        Self(operation.to_string())
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is being done to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It comes to be, by an instance of ours.
    Add,
    /// It comes to be, by a program that runs.
    Adopt,
    /// A new instance takes the place of the old one.
    Restart,
    /// … and is of another version.
    Upgrade,
    /// An instance that has ended, or is missing, gets a successor.
    Recover,
    /// It goes.
    Remove,
}

impl ChangeKind {
    /// As in "restart service 'web@1.0.0'".
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Adopt => "adopt",
            Self::Restart => "restart",
            Self::Upgrade => "upgrade",
            Self::Recover => "recover",
            Self::Remove => "remove",
        }
    }
}

/// A change that is going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its id.
    pub id: ChangeId,
    /// What it does.
    pub kind: ChangeKind,
    /// Since when.
    pub since: DateTime<Utc>,
}

impl Change {
    /// One that begins now.
    pub(super) fn begin(kind: ChangeKind) -> Result<Self> {
        Ok(Self { id: ChangeId::draw()?, kind, since: Utc::now() })
    }
}

/// A change that was begun and is not committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// Which.
    pub change: Change,
    /// What the service is to be then.
    pub to: Definition,
    /// The new instance.
    pub instance: ContainerId,
    /// What gives its ring back to the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<HandOver>,
}

/// What is to become of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wanted {
    /// It has an instance, and gets one if it has none.
    Running,
    /// Its instance ended like this, and policy gives it no successor.
    Rest(Box<Outcome>),
    /// It goes as soon as its instances are gone.
    Removed,
}

/// What the registry has of a version of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// What it is; of a service that is being added, what it is to be.
    pub definition: Definition,
    /// Its addresses, with ports that were chosen.
    pub listen: Vec<Listen>,
    /// The instance that serves, or served last.
    pub instance: Option<ContainerId>,
    /// How many instances were planned so far.
    pub generation: u64,
    /// What is half done.
    pub pending: Option<Pending>,
    /// The last change that led to `instance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<ChangeId>,
    /// A ring that has to go back to `instance`, after a change that was not to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub giving_back: Option<GiveBack>,
    /// Instances that are on their way out.
    pub leaving: Vec<ContainerId>,
    /// What is to become of it.
    pub wanted: Wanted,
    /// When it was added.
    pub added: DateTime<Utc>,
    /// How often an instance that had ended got a successor.
    pub restarts: u64,
    /// The directory of its log, below that of all services.
    pub log: String,
    /// The boot in which this was written: instances of another one are dead.
    pub boot: String,
}

impl Record {
    /// Reads a value of the registry.
    pub(super) fn read(entry: &Entry) -> Result<Self> {
        let record: Self = serde_json::from_slice(&entry.value).context(|| format!("read '{}'", entry.key))?;
        if Key::of(&record.definition).path() != entry.key {
            let cause = format!("it says that it is of {}", Key::of(&record.definition));
            return Err(Error::new(crate::error::Kind::Damaged, format!("read '{}'", entry.key), cause));
        }
        Ok(record)
    }

    /// A value for the registry.
    pub(super) fn write(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).context(|| format!("write down service '{}'", self.definition))
    }

    /// Every instance that may be there.
    pub(super) fn instances(&self) -> impl Iterator<Item = &ContainerId> {
        let pending = self.pending.as_ref().map(|pending| &pending.instance);
        self.instance.iter().chain(pending).chain(&self.leaving)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A service that serves.
    pub(in crate::ops::service) fn record() -> Record {
        let definition: Definition = serde_json::from_value(serde_json::json!({
            "name": "web", "version": "1.2.0", "listen": [{"name": "web", "address": "auto"}],
            "source": {"rootfs": "/srv/web"}, "ring": null, "command": ["serve"], "env": [], "workdir": null,
            "user": null, "handover": "listen-fds", "ready": "tcp", "ready_timeout_ms": 1000,
            "drain_timeout_ms": 1000, "stop_signal": "SIGTERM", "restart": "on-failure",
        }))
        .unwrap();
        Record {
            listen: definition.listen.clone(),
            definition,
            instance: Some("web-1.2.0-1".parse().unwrap()),
            generation: 1,
            pending: None,
            done: None,
            giving_back: None,
            leaving: Vec::new(),
            wanted: Wanted::Running,
            added: DateTime::UNIX_EPOCH,
            restarts: 0,
            log: "web-0".to_owned(),
            boot: "b".to_owned(),
        }
    }

    /// One of its instances.
    pub(in crate::ops::service) fn instance(generation: u64) -> ContainerId {
        format!("web-1.2.0-{generation}").parse().unwrap()
    }

    /// A change that has this instance as the new one.
    pub(in crate::ops::service) fn pending(kind: ChangeKind, generation: u64) -> Pending {
        let (change, to) = (Change::begin(kind).unwrap(), record().definition);
        Pending { change, to, instance: instance(generation), handover: None }
    }

    /// What a keeper tells that took a ring.
    pub(in crate::ops::service) fn handover() -> HandOver {
        serde_json::from_value(serde_json::json!({
            "ring": {"owner": "root", "name": "web"}, "entry": 3,
            "side": {"run": "ab".repeat(16), "snapshot": 3, "next": 2, "last_seq": 3, "successor": null},
        }))
        .unwrap()
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_under_its_own_key() {
        let mut record = record();
        record.pending = Some(pending(ChangeKind::Upgrade, 2));
        record.leaving.push(instance(7));
        record.giving_back = Some(GiveBack::Told(handover()));
        let mut entry =
            Entry { key: "service/web/1.2.0".into(), value: record.write().unwrap(), created: 1, modified: 1 };
        assert_eq!(Record::read(&entry).unwrap(), record);
        assert_eq!(record.instances().count(), 3);
        entry.key = "service/web/1.3.0".into();
        assert!(Record::read(&entry).unwrap_err().to_string().contains("it says that it is of web@1.2.0"));
    }

    #[test]
    fn ids_of_changes_are_32_hex_digits() {
        let (one, other) = (ChangeId::draw().unwrap(), ChangeId::draw().unwrap());
        assert!(one != other && one.to_string().len() == 32);
        assert!(one.to_string().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
