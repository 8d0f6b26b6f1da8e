//! What is remembered of a template over the death of the daemon: one value of the registry.
//!
//! ```text
//! template/OWNER/NAME ──> Record
//! ```
//!
//! A generation is written down before its keeper is started, so that a daemon that comes later never uses a number twice.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::ids::Name;
use crate::registry::Entry;
use crate::template::definition::Definition;

/// What keys of templates begin with.
pub(super) const PREFIX: &str = "template/";

/// Which template.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Whose.
    pub owner: Name,
    /// The owner's name for it.
    pub name: Name,
}

impl Key {
    /// That of a definition.
    #[must_use]
    pub fn of(definition: &Definition) -> Self {
        Self { owner: definition.owner.clone(), name: definition.name.clone() }
    }

    /// In the registry.
    pub(super) fn path(&self) -> String {
        format!("{PREFIX}{}/{}", self.owner, self.name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// What is to become of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wanted {
    /// It has a keeper, and gets one if it has none.
    Kept,
    /// It goes: it was removed, or has not come.
    Removed,
}

/// What the registry has of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// What it is.
    pub definition: Definition,
    /// The keeper that was started last; 0 if none was.
    pub generation: u64,
    /// What its source was when that one was started (see `mark`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// What is to become of it.
    pub wanted: Wanted,
    /// When it was added.
    pub added: DateTime<Utc>,
    /// How often a keeper that had ended got a successor.
    pub restarts: u64,
    /// The boot in which this was written: keepers of another one are dead.
    pub boot: String,
}

impl Record {
    /// That of a template which is to be.
    pub(super) fn first(definition: Definition, boot: &str) -> Self {
        Self {
            definition,
            generation: 0,
            mark: None,
            wanted: Wanted::Removed,
            added: Utc::now(),
            restarts: 0,
            boot: boot.to_owned(),
        }
    }

    /// Reads a value of the registry.
    ///
    /// # Errors
    /// [`Kind::Damaged`] or [`Kind::Invalid`] for what is no record of this key.
    pub(super) fn read(entry: &Entry) -> Result<Self> {
        let record: Self = serde_json::from_slice(&entry.value).context(|| format!("read '{}'", entry.key))?;
        if Key::of(&record.definition).path() != entry.key {
            let cause = format!("it says that it is of {}", Key::of(&record.definition));
            return Err(Error::new(Kind::Damaged, format!("read '{}'", entry.key), cause));
        }
        Ok(record)
    }

    /// A value for the registry.
    pub(super) fn write(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).context(|| format!("write down template '{}'", self.definition))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::template::definition::Source;

    /// A template that is to be.
    pub(in crate::ops::template) fn record() -> Record {
        let source = Source::Rootfs("/srv/root".into());
        Record::first(Definition::new("root".parse().unwrap(), "py".parse().unwrap(), source), "b")
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_under_its_own_key() {
        let record = Record { mark: Some("x".into()), generation: 7, wanted: Wanted::Kept, ..record() };
        let mut entry =
            Entry { key: "template/root/py".into(), value: record.write().unwrap(), created: 1, modified: 1 };
        assert_eq!(Record::read(&entry).unwrap(), record);
        entry.key = "template/root/other".into();
        assert!(Record::read(&entry).unwrap_err().to_string().contains("it says that it is of root/py"));
    }
}
