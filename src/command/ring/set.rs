//! `ring set`: limits.

use serde::Serialize;

use super::{print, ring};
use crate::cli::ring::Set;
use crate::command::World;
use crate::error::{Error, Kind, Result};
use crate::ops::request::{parse_depth, parse_max_bytes};
use crate::ops::tally;

#[derive(Debug, Serialize)]
struct SetView {
    depth: usize,
    max_bytes: Option<u64>,
    /// The numbers of the entries that left, or would.
    evicted: Vec<u64>,
}

pub(super) fn run(world: &World, arguments: &Set) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let (depth, max_bytes) = limits(arguments)?;
    let mut locked = ring.lock()?;
    let evicted =
        if arguments.dry_run { locked.would_evict(depth, max_bytes)? } else { locked.set_limits(depth, max_bytes)? };
    tally::save(ring.store());
    let state = &locked.state;
    let view = SetView { depth: state.depth, max_bytes: state.max_bytes, evicted };
    let verb = if arguments.dry_run { "would be evicted" } else { "evicted" };
    print(arguments.output, &view, || {
        let gone: Vec<_> = view.evicted.iter().map(|seq| format!("@{seq}")).collect();
        let gone = if gone.is_empty() { "nothing".to_owned() } else { gone.join(" ") };
        format!("{}: {gone} {verb}\n", ring.name())
    })
}

/// The limits that are given: how many entries, and how many bytes or none.
pub(super) fn limits(arguments: &Set) -> Result<(Option<usize>, Option<Option<u64>>)> {
    let depth = arguments.depth.as_deref().map(parse_depth).transpose()?;
    let max_bytes = match arguments.max_bytes.as_deref() {
        None => None,
        Some("none") => Some(None),
        Some(text) => Some(Some(parse_max_bytes(text)?)),
    };
    if depth.is_none() && max_bytes.is_none() {
        return Err(Error::new(Kind::Usage, format!("set ring '{}'", arguments.ring), "no limit was given")
            .next("give --depth, --max-bytes, or both"));
    }
    Ok((depth, max_bytes))
}
