//! List: every container under a state root.

use std::fs;

use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::runtime::{ContainerState, StateRoot, state};

/// One entry of the list.
#[derive(Debug)]
pub struct Listed {
    /// The container's id.
    pub id: ContainerId,
    /// Its state, or why that cannot be told.
    pub state: std::result::Result<ContainerState, Error>,
}

/// The containers under a state root, by id. A root that does not exist has none.
///
/// # Errors
/// Those of reading the directory.
pub fn list(root: &StateRoot) -> Result<Vec<Listed>> {
    let operation = || format!("list {}", quote(root.path()));
    let entries = match fs::read_dir(root.path()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(operation),
    };
    let mut listed = Vec::new();
    for entry in entries {
        let entry = entry.context(operation)?;
        // Other things live here too, such as the control socket.
        let name = entry.file_name().into_string().ok().and_then(|name| name.parse::<ContainerId>().ok());
        let (Some(id), true) = (name, entry.file_type().is_ok_and(|kind| kind.is_dir())) else { continue };
        match state::state(root, &id) {
            // Deleted meanwhile.
            Err(error) if error.kind() == Kind::NotFound => {}
            state => listed.push(Listed { id, state }),
        }
    }
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(listed)
}
