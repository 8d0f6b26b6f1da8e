//! `ring log`: the entries of a ring, newest first.

use super::view::{EntryView, size};
use super::{print, ring};
use crate::cli::ring::OneRing;
use crate::command::World;
use crate::command::table::{local, table};
use crate::error::Result;

pub(super) fn run(world: &World, arguments: &OneRing) -> Result<()> {
    let state = ring(world, &arguments.ring)?.read()?;
    let views: Vec<_> = state.entries.iter().rev().map(|entry| EntryView::new(&state, entry)).collect();
    print(arguments.output, &views, || {
        let head = ["ENTRY", "CREATED", "REASON", "EXIT", "STATE", "ADDED", "TOTAL", ""].map(str::to_owned);
        let rows = state.entries.iter().rev().zip(&views).map(|(entry, view)| {
            [
                format!("@{}", view.seq),
                local(entry.created),
                view.reason.to_string(),
                view.exit_code.map_or_else(|| "-".into(), |code| code.to_string()),
                view.state.name().into(),
                size(view.added_bytes),
                size(view.total_bytes),
                view.notes(),
            ]
        });
        table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    })
}
