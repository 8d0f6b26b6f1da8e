//! `ring export`: an entry goes to an image layout, an archive or a registry.

use std::cell::RefCell;

use serde_json::json;

use super::{open, print, trust};
use crate::cli::ring::{Export, ExportCompression};
use crate::command::World;
use crate::command::progress::Bar;
use crate::config::human_bytes;
use crate::error::Result;
use crate::ops::export::{Content, Wish, export};
use crate::ops::push::Watch;
use crate::ops::transfer::Location;
use crate::pack::Compression;
use crate::ring::look::check_is_not_ours;
use crate::ring::selector::Target;

pub(super) fn run(world: &World, arguments: &Export) -> Result<()> {
    let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
    let to: Location = arguments.to.parse()?;
    if let Location::Image(image) = &to {
        check_is_not_ours(image.path(), [&world.place.store, world.place.root.path()])?;
    }
    let ring = open(world, &name)?;
    let content = if arguments.full { Content::Full } else { Content::Changes };
    let compression = arguments.compression.map(|compression| match compression {
        ExportCompression::Zstd => Compression::Zstd,
        ExportCompression::Gzip => Compression::Gzip,
    });
    let wish = Wish { selector: &selector, content, compression, to: &to, trust: trust(arguments.tls) };
    let bar = RefCell::new(Bar::new());
    let mut watch = Watch {
        pack: &mut |report| bar.borrow_mut().show(report),
        transfer: &mut |transfer| bar.borrow_mut().show_transfer(transfer),
    };
    let exported = export(&world.place, &ring, &wish, &mut watch)?;
    drop(bar);
    let value = json!({
        "ring": name.to_string(),
        "seq": exported.seq,
        "reference": to.to_string(),
        "tag": exported.tag,
        "digest": exported.digest,
        "base": exported.base,
        "delta": !arguments.full,
        "sent_blobs": exported.moved.blobs,
        "sent_bytes": exported.moved.bytes,
        "present_blobs": exported.moved.present,
    });
    print(arguments.output, &value, || {
        let (base, tag) = (if arguments.full { "with" } else { "without" }, exported.tag.as_ref());
        format!(
            "{name}: @{} is in {to}{}: {} layers, {} written, {} were there, {base} what it stands on: {}\n",
            exported.seq,
            tag.map_or_else(String::new, |tag| format!(" as '{tag}'")),
            exported.moved.blobs,
            human_bytes(exported.moved.bytes),
            exported.moved.present,
            exported.base,
        )
    })
}
