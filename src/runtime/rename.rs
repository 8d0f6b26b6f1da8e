//! Rename: a container that was made for whoever comes gets the name that is wanted.

use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::{self, Record};
use crate::runtime::{StateRoot, Status, state};

/// Gives a container that was not started yet another id, once. In its cgroups' names and to its own hooks inside it keeps the
/// old one.
///
/// Whoever is interrupted over it leaves the container under the one id or the other.
///
/// # Errors
/// [`Kind::Exists`] if the new id is taken, [`Kind::State`] if the container is not `created` or was renamed
/// before, [`Kind::NotFound`] if there is none.
pub fn rename(root: &StateRoot, from: &ContainerId, to: &ContainerId) -> Result<()> {
    let _lock = record::lock(root, from)?;
    let record = Record::load(root, from)?;
    let refuse = |cause: String| Err(Error::new(Kind::State, format!("rename container '{from}' to '{to}'"), cause));
    if let Some(former) = &record.former {
        return refuse(format!("it was renamed before, from '{former}'"));
    }
    match state::status(&record)? {
        Status::Created => record::rename(root, from, to),
        status @ (Status::Creating | Status::Running | Status::Paused | Status::Stopped) => {
            refuse(format!("it is {status}, and only a container that waits for its start can be renamed"))
        }
    }
}
