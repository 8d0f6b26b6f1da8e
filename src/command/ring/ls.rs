//! `ring ls`: all rings.

use serde::Serialize;

use super::{print, store, view};
use crate::cli::ring::Output;
use crate::command::World;
use crate::command::table::table;
use crate::error::{Error, Result};
use crate::ids::{ContainerId, LayerId, Name, RingName};
use crate::ops::sender;
use crate::ring::Ring;
use crate::ring::elsewhere::Elsewhere;
use crate::ring::entry::timestamp;
use crate::ring::keep::Keep;
use crate::ring::quota;
use crate::store::Run;

#[derive(Debug, Serialize)]
struct RingView {
    name: Name,
    owner: Name,
    entries: usize,
    depth: usize,
    max_bytes: Option<u64>,
    /// Which entries are kept whatever the depth; absent if there are no such rules.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    keep: Keep,
    bytes: u64,
    last_exit: Option<String>,
    in_use_by: Option<ContainerId>,
    /// Containers that have handed it over and go on.
    beside: Vec<ContainerId>,
    /// Why no run starts from it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere: Option<Elsewhere>,
    /// Entries that are not yet where the configuration wants a copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<usize>,
    /// Why they could not be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind_error: Option<String>,
    /// Why it cannot be read; everything else is then empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// 1 if a ring cannot be read.
pub(super) fn run(world: &World, output: Output) -> Result<u8> {
    let views: Vec<_> = match store(world)? {
        Some(store) => Ring::each(&store, |ring| describe(world, ring))?
            .map(|(ring, view)| view.unwrap_or_else(|error| RingView::damaged(&ring, &error)))
            .collect(),
        None => Vec::new(),
    };
    let limit = world.place.config.store.max_bytes.map(|size| size.0);
    let together = match (store(world)?, limit) {
        (Some(store), Some(limit)) => Some((quota::used(&store)?, limit)),
        (None, _) | (_, None) => None,
    };
    print(output, &views, || {
        let mut text = text(world, &views);
        text.extend(together.map(|(used, limit)| {
            format!("all rings together: {} of {}\n", view::size(Some(used)), view::size(Some(limit)))
        }));
        text
    })?;
    Ok(u8::from(views.iter().any(|ring| ring.error.is_some())))
}

fn describe(world: &World, ring: &Ring) -> Result<RingView> {
    let state = ring.read()?;
    let behind = sender::behind(ring, &state, &world.place.config.ring)?;
    let living = |id: &LayerId| -> Result<Option<ContainerId>> {
        match Run::load(ring.store(), id)? {
            Some(run) if run.record.living_holder()?.is_some() => Ok(Some(run.record.container)),
            Some(_) | None => Ok(None),
        }
    };
    let in_use_by = state.run.as_ref().map(living).transpose()?.flatten();
    let beside = state.sides.iter().map(|side| living(&side.run)).collect::<Result<Vec<_>>>()?;
    Ok(RingView {
        name: ring.name().name.clone(),
        owner: ring.name().owner.clone(),
        entries: state.entries.len(),
        depth: state.depth,
        max_bytes: state.max_bytes,
        keep: state.keep,
        bytes: state.bytes(),
        last_exit: state.last_exit.map(timestamp),
        in_use_by,
        beside: beside.into_iter().flatten().collect(),
        elsewhere: state.elsewhere.clone(),
        behind: behind.as_ref().map(|behind| behind.entries),
        behind_error: behind.and_then(|behind| behind.error),
        error: None,
    })
}

impl RingView {
    fn damaged(ring: &Ring, error: &Error) -> Self {
        Self {
            name: ring.name().name.clone(),
            owner: ring.name().owner.clone(),
            entries: 0,
            depth: 0,
            max_bytes: None,
            keep: Keep::default(),
            bytes: 0,
            last_exit: None,
            in_use_by: None,
            beside: Vec::new(),
            elsewhere: None,
            behind: None,
            behind_error: None,
            error: Some(error.to_string()),
        }
    }
}

/// Who has the ring, and who goes on beside its main line.
fn users(ring: &RingView) -> String {
    if let Some(elsewhere) = &ring.elsewhere {
        return match elsewhere {
            Elsewhere::Arriving { .. } => "(arriving)".to_owned(),
            Elsewhere::Away { to, .. } => format!("(moved to node {to})"),
        };
    }
    let own = ring.in_use_by.iter().map(ToString::to_string);
    let all: Vec<_> = own.chain(ring.beside.iter().map(|id| format!("{id} (side)"))).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

/// The depth, and what is kept beside: `8 +24h +7d`.
fn depth(ring: &RingView) -> String {
    let Keep { last, hourly, daily, weekly } = ring.keep;
    let rules = [(last, ""), (hourly, "h"), (daily, "d"), (weekly, "w")];
    let rules = rules.iter().filter(|(most, _)| *most > 0).map(|(most, unit)| format!(" +{most}{unit}"));
    std::iter::once(ring.depth.to_string()).chain(rules).collect()
}

fn text(world: &World, views: &[RingView]) -> String {
    let head = ["RING", "ENTRIES", "DEPTH", "SIZE", "LIMIT", "LAST EXIT", "IN USE BY"].map(str::to_owned);
    let row = |ring: &RingView| {
        let full = RingName { owner: ring.owner.clone(), name: ring.name.clone() };
        [
            if ring.owner == world.place.owner { ring.name.to_string() } else { full.to_string() },
            ring.entries.to_string(),
            depth(ring),
            view::size(Some(ring.bytes)),
            view::size(ring.max_bytes),
            ring.last_exit.clone().unwrap_or_else(|| "-".into()),
            users(ring),
        ]
    };
    let mut text = table(&std::iter::once(head).chain(views.iter().map(row)).collect::<Vec<_>>());
    for ring in views.iter().filter(|ring| ring.behind.is_some_and(|behind| behind > 0)) {
        let why = ring.behind_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        text.push_str(&format!("{}: {} entries are still to be sent{why}\n", ring.name, ring.behind.unwrap_or(0)));
    }
    text.extend(views.iter().filter_map(|ring| ring.error.as_ref()).map(|error| format!("{error}\n")));
    text
}
