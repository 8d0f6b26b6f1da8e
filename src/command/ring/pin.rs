//! `ring pin` and `ring unpin`.

use super::view::EntryView;
use super::{open, print};
use crate::cli::ring::Pin as Arguments;
use crate::command::World;
use crate::error::{Context, Result};
use crate::ring::Pin;
use crate::ring::selector::Target;

pub(super) fn run(world: &World, arguments: &Arguments, pin: Pin) -> Result<()> {
    let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
    let mut locked = open(world, &name)?.lock()?;
    let entry = locked.pin(&selector, pin).context(|| format!("change '{}'", arguments.target))?;
    let done = match pin {
        Pin::Pinned => "pinned",
        Pin::Unpinned => "unpinned",
    };
    print(arguments.output, &EntryView::new(&locked.state, &entry), || format!("{name}: @{} {done}\n", entry.seq))
}
