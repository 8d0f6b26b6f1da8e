//! `ring import`: entries come from an image layout, an archive or a registry.

use serde_json::json;

use super::{print, pull, trust};
use crate::cli::ring::Import;
use crate::command::World;
use crate::command::progress::Bar;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::pull::import;
use crate::ops::transfer::Location;

pub(super) fn run(world: &World, arguments: &Import) -> Result<()> {
    let name = RingName::parse(&arguments.ring, &world.place.owner)?;
    let from: Location = arguments.from.parse()?;
    let mut bar = Bar::new();
    let source = (&from, trust(arguments.tls));
    let imported = import(&world.place, source, &name, &mut |transfer| bar.show_transfer(transfer))?;
    drop(bar);
    let value = json!({
        "ring": name.to_string(),
        "reference": from.to_string(),
        "entries": imported.entries,
        "bases": imported.bases,
        "base_images": imported.base_images,
        "fetched_blobs": imported.moved.blobs,
        "fetched_bytes": imported.moved.bytes,
        "present_blobs": imported.moved.present,
    });
    print(arguments.output, &value, || pull::describe(&name, &from, &imported))
}
