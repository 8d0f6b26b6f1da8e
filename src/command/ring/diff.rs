//! `ring diff`: what differs between two states.

use std::os::unix::ffi::OsStrExt;

use serde::Serialize;

use super::{open, print};
use crate::cli::ring::Diff;
use crate::command::World;
use crate::error::{Error, Kind, Result};
use crate::ring::diff::{Changed, diff};
use crate::ring::selector::Target;

#[derive(Debug, Serialize)]
struct ChangeView {
    change: char,
    path: String,
}

pub(super) fn run(world: &World, arguments: &Diff) -> Result<()> {
    let owner = &world.place.owner;
    let (first, from) = Target::parse(&arguments.first, owner)?.named()?;
    let second = Target::parse(&arguments.second, owner)?;
    if second.ring.as_ref().is_some_and(|ring| *ring != first) {
        let cause = "states of different rings are not compared yet";
        return Err(Error::new(Kind::Unsupported, format!("compare with '{}'", arguments.second), cause));
    }
    let locked = open(world, &first)?.lock()?;
    let changes = diff(&locked, &from, &second.selector)?;
    let views: Vec<_> = changes
        .iter()
        .map(|(kind, path)| ChangeView { change: kind.letter(), path: path.to_string_lossy().into_owned() })
        .collect();
    print(arguments.output, &views, || changes.iter().map(line).collect())
}

/// One line, whatever the name holds.
fn line((kind, path): &Changed) -> String {
    let bytes = path.as_os_str().as_bytes();
    let plain = bytes.iter().all(|byte| !byte.is_ascii_control());
    let path = if plain { path.to_string_lossy().into_owned() } else { bytes.escape_ascii().to_string() };
    format!("{} {path}\n", kind.letter())
}
