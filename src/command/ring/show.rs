//! `ring show`: one entry, whole.

use super::view::{EntryView, size};
use super::{open, print};
use crate::cli::ring::Show;
use crate::command::World;
use crate::command::table::table;
use crate::error::{Context, Error, Kind, Result};
use crate::ring::selector::{Selected, Target};

pub(super) fn run(world: &World, arguments: &Show) -> Result<()> {
    let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
    let state = open(world, &name)?.read()?;
    let operation = || format!("show '{}'", arguments.target);
    match state.select_view(&selector).context(operation)? {
        Selected::Base if state.entries.is_empty() => {
            Err(Error::new(Kind::NotFound, operation(), "the ring has no entries yet"))
        }
        Selected::Base => Err(Error::new(Kind::Invalid, operation(), "the base is no entry")),
        Selected::Entry(entry) => {
            let view = EntryView::new(&state, entry);
            print(arguments.output, &view, || text(&view))
        }
    }
}

pub(super) fn text(view: &EntryView) -> String {
    let layers: Vec<_> = view.layers.iter().map(ToString::to_string).collect();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let rows = [
        ("Entry", format!("@{}", view.seq)),
        ("Id", view.id.clone()),
        ("Created", view.created.clone()),
        ("Parent", or_dash(view.parent.map(|seq| format!("@{seq}")))),
        ("Reason", view.reason.to_string()),
        ("Exit code", or_dash(view.exit_code.map(|code| code.to_string()))),
        ("State", view.state.name().to_owned()),
        ("On disk", if view.synced { "yes" } else { "not known yet" }.to_owned()),
        ("Base", view.base.clone()),
        ("Digest", or_dash(view.digest.as_ref().map(ToString::to_string))),
        ("Added", size(view.added_bytes)),
        ("Total", size(view.total_bytes)),
        ("Layers", layers.join(" ")),
        ("Notes", view.notes()),
    ];
    table(&rows.map(|(name, value)| [format!("{name}:"), value]))
}
