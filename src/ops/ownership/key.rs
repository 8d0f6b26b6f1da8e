//! The key of a ring that has moved, and what is in it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ids::{Digest, NodeName, RingName};
use crate::operation::OperationId;
use crate::registry::Entry;

/// What keys of rings begin with.
pub const RINGS: &str = "ring/";

/// Who has a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// This node.
    pub node: NodeName,
    /// How often the ring has moved with that; it only grows.
    pub moves: u64,
    /// By which operation.
    pub operation: OperationId,
    /// Where it was pushed to.
    pub reference: String,
    /// Whether the registry there has to prove who it is.
    pub tls_verify: bool,
    /// The digest of the index there that it took; `None` where it kept what it had given away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// Since when.
    pub since: DateTime<Utc>,
    /// From whom it was taken without consent. Each of them strikes itself out when it knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Bereft>,
}

/// A node from which a ring was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bereft {
    /// Which.
    pub node: NodeName,
    /// The newest of its entries that was taken: what it has beyond is its own.
    pub last_seq: u64,
}

/// What the registry has of it.
#[derive(Debug, Default)]
pub struct Found {
    /// Nobody, if the ring never moved.
    pub owner: Option<Owner>,
    /// When it was written last; 0 if it is not there.
    pub revision: u64,
}

/// Where it is written down who has a ring.
#[must_use]
pub fn ring_key(name: &RingName) -> String {
    format!("{RINGS}{name}")
}

/// The ring that a key is about.
#[must_use]
pub fn read_key(key: &str) -> Option<RingName> {
    let (owner, name) = key.strip_prefix(RINGS)?.split_once('/')?;
    Some(RingName { owner: owner.parse().ok()?, name: name.parse().ok()? })
}

impl Owner {
    /// What a key has.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if nobody can read it.
    pub fn read(entry: &Entry) -> Result<Self> {
        serde_json::from_slice(&entry.value)
            .map_err(|error| Error::new(Kind::Damaged, format!("read key '{}'", entry.key), error.to_string()))
    }

    /// The same, with those who do not know yet that they lost it to the one before. Whoever has it knows.
    pub(super) fn after(&self, before: Option<&Self>) -> Self {
        let mut owner = self.clone();
        let unknowing = before.map(|before| before.without.clone()).unwrap_or_default();
        for bereft in unknowing {
            // Of one that lost it twice before it knew, the first time counts: all since then is its own.
            owner.without.retain(|newer| newer.node != bereft.node);
            owner.without.push(bereft);
        }
        owner.without.retain(|bereft| bereft.node != owner.node);
        owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(node: &str, without: &[(&str, u64)]) -> Owner {
        let bereft = |(node, last_seq): &(&str, u64)| Bereft { node: node.parse().unwrap(), last_seq: *last_seq };
        Owner {
            node: node.parse().unwrap(),
            moves: 3,
            operation: "0".repeat(32).parse().unwrap(),
            reference: "docker://r.example/a".to_owned(),
            tls_verify: true,
            index: None,
            since: DateTime::UNIX_EPOCH,
            without: without.iter().map(bereft).collect(),
        }
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let name = RingName { owner: "root".parse().unwrap(), name: "web".parse().unwrap() };
        assert_eq!(ring_key(&name), "ring/root/web");
        assert_eq!(read_key("ring/root/web"), Some(name));
        for other in ["ring/", "ring/a", "ring/a/", "ring/a/b/c", "node/a/b"] {
            assert_eq!(read_key(other), None, "{other}");
        }
        let (key, value) = ("ring/a/b".to_owned(), serde_json::to_vec(&owner("n1", &[("n0", 7)])).unwrap());
        let entry = Entry { key, value, created: 1, modified: 1 };
        assert_eq!(Owner::read(&entry).unwrap(), owner("n1", &[("n0", 7)]));
    }

    #[test]
    fn who_lost_a_ring_unknowingly_is_remembered_until_it_knows() {
        let first = owner("n1", &[("n0", 7)]);
        let given_on = owner("n2", &[]).after(Some(&first));
        assert_eq!(given_on.without, owner("n2", &[("n0", 7)]).without);
        let taken_again = owner("n3", &[("n2", 9), ("n0", 9)]).after(Some(&given_on));
        assert_eq!(taken_again.without, owner("n3", &[("n2", 9), ("n0", 7)]).without);
        assert_eq!(owner("n0", &[]).after(Some(&first)).without, []);
    }
}
