//! What lies under a state root and is no container any more, or never became one.

use std::fs;
use std::path::PathBuf;

use crate::error::{Context, Error, Result, quote};
use crate::ids::ContainerId;
use crate::runtime::record::TRASH;
use crate::runtime::{StateRoot, Status, list};
use crate::sys::lock::DirectoryLock;

/// Something that a crash left.
#[derive(Debug)]
pub enum Leftover {
    /// Whoever made the container died over it.
    HalfMade(ContainerId),
    /// Its record cannot be read.
    Damaged(ContainerId, Error),
    /// The directory of a container whose removal was cut short.
    Trash(PathBuf),
}

/// Everything of the kind under a state root, which need not exist.
///
/// # Errors
/// Those of reading the directory.
pub fn leftovers(root: &StateRoot) -> Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for listed in list(root)? {
        // Who makes a container holds its lock from the first moment to the last.
        let abandoned = || DirectoryLock::is_held(&root.container(&listed.id)).map(|held| !held);
        match listed.state {
            Ok(state) if state.status == Status::Creating && abandoned()? => found.push(Leftover::HalfMade(listed.id)),
            Ok(_) => {}
            Err(error) if abandoned()? => found.push(Leftover::Damaged(listed.id, error)),
            Err(_) => {}
        }
    }
    found.extend(trash(root)?.into_iter().map(Leftover::Trash));
    Ok(found)
}

fn trash(root: &StateRoot) -> Result<Vec<PathBuf>> {
    let operation = || format!("list {}", quote(root.path()));
    let entries = match fs::read_dir(root.path()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(operation)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context(operation)?;
        if entry.file_name().as_encoded_bytes().starts_with(TRASH.as_bytes()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
