//! `ring set`: limits.

use serde::Serialize;

use super::{print, ring};
use crate::cli::look::Rules;
use crate::cli::ring::Set;
use crate::command::World;
use crate::error::{Error, Kind, Result};
use crate::ops::request::{parse_depth, parse_max_bytes};
use crate::ops::tally;
use crate::ring::LimitChange;
use crate::ring::keep::{Keep, KeepChange};

#[derive(Debug, Serialize)]
struct SetView {
    depth: usize,
    max_bytes: Option<u64>,
    /// Which entries are kept whatever the depth; absent if there are no such rules.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    keep: Keep,
    /// The numbers of the entries that left, or would.
    evicted: Vec<u64>,
}

pub(super) fn run(world: &World, arguments: &Set) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let change = limits(arguments)?;
    let mut locked = ring.lock()?;
    let evicted = if arguments.dry_run { locked.would_evict(change)? } else { locked.set_limits(change)? };
    tally::save(ring.store());
    let state = &locked.state;
    let view = SetView { depth: state.depth, max_bytes: state.max_bytes, keep: state.keep, evicted };
    let verb = if arguments.dry_run { "would be evicted" } else { "evicted" };
    print(arguments.output, &view, || {
        let gone: Vec<_> = view.evicted.iter().map(|seq| format!("@{seq}")).collect();
        let gone = if gone.is_empty() { "nothing".to_owned() } else { gone.join(" ") };
        format!("{}: {gone} {verb}\n", ring.name())
    })
}

/// The limits that are given.
pub(super) fn limits(arguments: &Set) -> Result<LimitChange> {
    let max_bytes = match arguments.max_bytes.as_deref() {
        None => None,
        Some("none") => Some(None),
        Some(text) => Some(Some(parse_max_bytes(text)?)),
    };
    let Rules { last, hourly, daily, weekly } = arguments.keep;
    let change = LimitChange {
        depth: arguments.depth.as_deref().map(parse_depth).transpose()?,
        max_bytes,
        keep: KeepChange { last, hourly, daily, weekly },
    };
    if change.is_nothing() {
        return Err(Error::new(Kind::Usage, format!("set ring '{}'", arguments.ring), "no limit was given")
            .next("give --depth, --max-bytes, or one of --keep-last, --keep-hourly, --keep-daily and --keep-weekly"));
    }
    Ok(change)
}
