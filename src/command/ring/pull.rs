//! `ring pull`: a ring comes from a registry.

use std::fmt::Display;

use serde_json::json;

use super::{print, trust};
use crate::cli::ring::Pull;
use crate::command::World;
use crate::command::progress::Bar;
use crate::config::human_bytes;
use crate::distribution::Reference;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::pull::{self, Pulled};
use crate::ops::push::Registry;

pub(super) fn run(world: &World, arguments: &Pull) -> Result<()> {
    let name = RingName::parse(&arguments.ring, &world.place.owner)?;
    let reference: Reference = arguments.reference.parse()?;
    let from = Registry { reference: &reference, trust: trust(arguments.tls) };
    let mut bar = Bar::new();
    let pulled = pull::pull(&world.place, from, &name, &mut |transfer| bar.show_transfer(transfer))?;
    drop(bar);
    let value = json!({
        "ring": name.to_string(),
        "reference": reference.to_string(),
        "entries": pulled.entries,
        "bases": pulled.bases,
        "base_images": pulled.base_images,
        "fetched_blobs": pulled.moved.blobs,
        "fetched_bytes": pulled.moved.bytes,
        "present_blobs": pulled.moved.present,
    });
    print(arguments.output, &value, || describe(&name, &reference, &pulled))
}

pub(super) fn describe(name: &RingName, from: &dyn Display, pulled: &Pulled) -> String {
    if pulled.entries.is_empty() {
        return format!("{name}: {from} has nothing new\n");
    }
    let Pulled { entries, bases, base_images, moved } = pulled;
    let mut text = format!(
        "{name}: {} new entries from {from}: {} blobs, {} fetched, {} were here\nthey stand on: {}\n",
        entries.len(),
        moved.blobs,
        human_bytes(moved.bytes),
        moved.present,
        bases.join(", ")
    );
    for image in base_images {
        text.push_str(&format!("which came along: '--image {image}'\n"));
    }
    text
}
