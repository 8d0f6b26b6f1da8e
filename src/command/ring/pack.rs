//! `ring pack`: packs in the foreground.

use serde_json::json;

use super::{print, store};
use crate::cli::ring::Pack;
use crate::command::World;
use crate::command::progress::Bar;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::worker;

pub(super) fn run(world: &World, arguments: &Pack) -> Result<()> {
    let only = arguments.ring.as_deref().map(|name| RingName::parse(name, &world.place.owner)).transpose()?;
    if let Some(name) = &only {
        super::open(world, name)?;
    }
    if let Some(store) = store(world)? {
        let mut bar = Bar::new();
        worker::pack_now(&world.place, &store, only.as_ref(), &mut |report| bar.show(report))?;
    }
    print(arguments.output, &json!({"packed": true}), String::new)
}
