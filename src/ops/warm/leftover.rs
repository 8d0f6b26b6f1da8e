//! What keepers left that were killed: containers that nobody needs, and files.

use std::fs;

use super::home::Home;
use crate::error::{Context, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::ops::Place;
use crate::runtime;
use crate::template::definition::{MARK, Order};

/// Containers of this template whose keepers are dead. Clones that were told of have names of their own by then.
///
/// # Errors
/// Those of reading directories.
pub(super) fn find(order: &Order, place: &Place, home: &Home) -> Result<Vec<ContainerId>> {
    let operation = || format!("list {}", quote(place.root.path()));
    for generation in home.dead()? {
        home.sweep(generation)?;
    }
    let mut found = Vec::new();
    let entries = match fs::read_dir(place.root.path()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        other => other.context(operation)?,
    };
    for entry in entries {
        let name = entry.context(operation)?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<ContainerId>().ok()) else { continue };
        let Some(generation) = order.generation_of(&id) else { continue };
        if generation != order.generation && home.is_dead(generation) && is_marked(order, generation, place, &id) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Whether a keeper made it: anybody may call a container like one of ours. One whose maker was killed over it says
/// nothing, and is nobody's.
fn is_marked(order: &Order, generation: u64, place: &Place, id: &ContainerId) -> bool {
    let of = Order { generation, ..order.clone() };
    match runtime::state(&place.root, id) {
        Ok(state) => state.annotations.is_some_and(|all| all.get(MARK).is_some_and(|mark| *mark == of.mark())),
        Err(error) => error.kind() == Kind::Damaged,
    }
}
