//! What this node is.

use std::net::SocketAddr;
use std::path::Path;

use chrono::Utc;

use crate::error::{Error, Kind, Result, quote};
use crate::ids::NodeName;
use crate::node::{Capacity, Counts, Label, Node, State, Versions};
use crate::sys::fs::{Durability, random_id, read_capped, replace_file};

/// The file in the store that tells this node from another one with its name.
const IDENTITY: &str = "node-id";
/// 32 hex digits and the end of the line.
const IDENTITY_SIZE: u64 = 33;

/// What tells this node from another host that has its name: 32 hex digits, drawn once for a store. Called by the one
/// daemon of a store.
///
/// # Errors
/// [`Kind::Damaged`] if the file says something else, those of reading and writing it.
pub fn identity(store: &Path) -> Result<String> {
    let path = store.join(IDENTITY);
    match read_capped(&path, IDENTITY_SIZE) {
        Ok(content) => {
            let text = String::from_utf8_lossy(&content).trim_end().to_owned();
            if text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Ok(text);
            }
            let next = format!("remove {}: the node is then known as another one", quote(&path));
            Err(Error::new(Kind::Damaged, format!("read {}", quote(&path)), "it is no identity of a node").next(next))
        }
        Err(error) if error.kind() == Kind::NotFound => {
            let text: String = random_id()?.iter().map(|byte| format!("{byte:02x}")).collect();
            replace_file(store, IDENTITY, format!("{text}\n").as_bytes(), Durability::Durable)?;
            Ok(text)
        }
        Err(error) => Err(error),
    }
}

/// This node, with what the machine says of itself. `protocol` is the version of what its daemon speaks with others.
#[must_use]
pub fn node_here(
    name: NodeName,
    identity: String,
    address: Option<SocketAddr>,
    labels: Vec<Label>,
    protocol: u32,
) -> Node {
    let cpus = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let memory = rustix::system::sysinfo();
    Node {
        name,
        identity,
        address,
        labels,
        capacity: Capacity { cpus, memory: memory.totalram * u64::from(memory.mem_unit) },
        versions: Versions {
            regen: env!("CARGO_PKG_VERSION").to_owned(),
            protocol,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        },
        counts: Counts::default(),
        state: State::Ready,
        started: Utc::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_identity_for_good() {
        let store = tempfile::tempdir().unwrap();
        let first = identity(store.path()).unwrap();
        assert_eq!(identity(store.path()).unwrap(), first);
        assert_ne!(identity(tempfile::tempdir().unwrap().path()).unwrap(), first);
        std::fs::write(store.path().join(IDENTITY), "x").unwrap();
        assert_eq!(identity(store.path()).unwrap_err().kind(), Kind::Damaged);
    }
}
