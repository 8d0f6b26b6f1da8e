//! What is left of a template whose keeper did not clear up: its container, sandboxes, files.

use std::io::ErrorKind;
use std::path::Path;

use super::Clones;
use crate::error::{Context, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::ops::{Place, save};
use crate::runtime::{self, ContainerState, Status};
use crate::template::definition::{Definition, MARK, Order};

/// Deletes the containers of a template's generations that `dead` is true of. Clones go on if they are to be spared.
///
/// # Errors
/// Those of listing containers; one that cannot be deleted is told of and left.
pub(super) fn clear(place: &Place, definition: &Definition, clones: Clones, dead: impl Fn(u64) -> bool) -> Result<()> {
    for listed in runtime::list(&place.root)? {
        let Ok(state) = listed.state else { continue };
        let Some(generation) = generation_of(definition, &state) else { continue };
        if !dead(generation) || (clones == Clones::Spared && is_clone(definition, generation, &state)) {
            continue;
        }
        match save::delete(place, &listed.id, true, None) {
            Err(error) if error.kind() != Kind::NotFound => {
                tracing::warn!("clear up after template '{definition}': {error}")
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// The generations that some container is of.
///
/// # Errors
/// Those of listing containers.
pub(super) fn generations(place: &Place, definition: &Definition) -> Result<Vec<u64>> {
    let listed = runtime::list(&place.root)?.into_iter();
    Ok(listed.filter_map(|listed| generation_of(definition, &listed.state.ok()?)).collect())
}

/// Takes the directory of a template away.
///
/// # Errors
/// Those of unlink(2) and rmdir(2).
pub(super) fn remove_directory(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", quote(directory)))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The generation that a container belongs to, if it is one of the template's.
fn generation_of(definition: &Definition, state: &ContainerState) -> Option<u64> {
    let mark = state.annotations.as_ref()?.get(MARK)?;
    let (template, generation) = mark.rsplit_once('/')?;
    (template == definition.to_string()).then(|| generation.parse().ok()).flatten()
}

/// Whether a container does somebody's work: it was taken from the pool and renamed, or was started.
fn is_clone(definition: &Definition, generation: u64, state: &ContainerState) -> bool {
    let Some(own) = own_container(definition, generation) else { return true };
    if state.id == own {
        return false;
    }
    let sandbox = state.id.as_str().strip_prefix(own.as_str()).is_some_and(|rest| rest.starts_with("-box-"));
    let idle = match state.status {
        Status::Creating | Status::Created | Status::Stopped => true,
        Status::Running | Status::Paused => false,
    };
    !(sandbox && idle)
}

/// What the container is called in which its program is loaded.
fn own_container(definition: &Definition, generation: u64) -> Option<ContainerId> {
    let order = Order {
        order: crate::template::definition::ORDER,
        definition: definition.clone(),
        generation,
        root: "/".into(),
        store: "/".into(),
        config: None,
        cgroup_manager: String::new(),
    };
    order.container().ok()
}
