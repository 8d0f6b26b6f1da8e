//! `ring diff`: what differs between two states.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use super::{open, print};
use crate::cli::ring::Diff;
use crate::command::World;
use crate::error::Result;
use crate::ids::RingName;
use crate::ring::diff::{Changed, State, diff};
use crate::ring::selector::{Selector, Target};

#[derive(Debug, Serialize)]
struct ChangeView {
    change: char,
    path: String,
}

pub(super) fn run(world: &World, arguments: &Diff) -> Result<()> {
    let owner = &world.place.owner;
    let (first, from) = Target::parse(&arguments.first, owner)?.named()?;
    let Target { ring: second, selector: to } = Target::parse(&arguments.second, owner)?;
    let second = second.filter(|second| *second != first);
    let changes = compare(world, (&first, &from), (second.as_ref(), &to))?;
    let views: Vec<_> = changes
        .iter()
        .map(|(kind, path)| ChangeView { change: kind.letter(), path: path.to_string_lossy().into_owned() })
        .collect();
    print(arguments.output, &views, || changes.iter().map(line).collect())
}

fn compare(
    world: &World,
    (first, from): (&RingName, &Selector),
    (second, to): (Option<&RingName>, &Selector),
) -> Result<Vec<Changed>> {
    let Some(second) = second else {
        let ring = open(world, first)?.lock()?;
        return diff(State { ring: &ring, selector: from }, State { ring: &ring, selector: to });
    };
    let (a, b) = (open(world, first)?, open(world, second)?);
    // Always in the same order, so that two that compare the same rings do not wait for each other.
    let (a, b) = if first < second {
        let a = a.lock()?;
        (a, b.lock()?)
    } else {
        let b = b.lock()?;
        (a.lock()?, b)
    };
    diff(State { ring: &a, selector: from }, State { ring: &b, selector: to })
}

/// One line, whatever the name holds.
fn line((kind, path): &Changed) -> String {
    format!("{} {}\n", kind.letter(), shown(path))
}

/// A path that breaks no line.
pub(super) fn shown(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let plain = bytes.iter().all(|byte| !byte.is_ascii_control());
    if plain { path.to_string_lossy().into_owned() } else { bytes.escape_ascii().to_string() }
}
