//! `ring push`: a ring goes to a registry.

use std::cell::RefCell;

use serde_json::json;

use super::{open, print, trust};
use crate::cli::ring::Push;
use crate::command::World;
use crate::command::progress::Bar;
use crate::config::human_bytes;
use crate::distribution::Reference;
use crate::error::Result;
use crate::ops::push::{self, Pushed, Registry, Selection, Watch};
use crate::ring::selector::{Selector, Target};

pub(super) fn run(world: &World, arguments: &Push) -> Result<()> {
    let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
    let reference: Reference = arguments.reference.parse()?;
    let selection = match selector {
        // With a tag there is one entry to be sent, which is the newest where none is named.
        Selector::Unsaid if reference.tag().is_none() => Selection::Ring,
        selector => Selection::Entry(selector),
    };
    let ring = open(world, &name)?;
    let bar = RefCell::new(Bar::new());
    let mut watch = Watch {
        pack: &mut |report| bar.borrow_mut().show(report),
        transfer: &mut |transfer| bar.borrow_mut().show_transfer(transfer),
    };
    let to = Registry { reference: &reference, trust: trust(arguments.tls) };
    let pushed = push::push(&world.place, &ring, &selection, to, &mut watch)?;
    drop(bar);
    let entry = |sent: &push::Sent| json!({"seq": sent.seq, "tag": sent.tag, "digest": sent.digest, "base": sent.base, "delta": true});
    let value = json!({
        "ring": name.to_string(),
        "reference": reference.to_string(),
        "entries": pushed.entries.iter().map(entry).collect::<Vec<_>>(),
        "index": pushed.index,
        "sent_blobs": pushed.moved.blobs,
        "sent_bytes": pushed.moved.bytes,
        "present_blobs": pushed.moved.present,
    });
    print(arguments.output, &value, || describe(&name.to_string(), &reference, &pushed))
}

fn describe(name: &str, reference: &Reference, pushed: &Pushed) -> String {
    let moved = pushed.moved;
    let mut bases: Vec<_> = pushed.entries.iter().map(|entry| &*entry.base).collect();
    bases.sort_unstable();
    bases.dedup();
    format!(
        "{name}: {} entries are in {reference}: {} blobs, {} sent, {} were there\nnot among them is what they stand on: {}\n",
        pushed.entries.len(),
        moved.blobs,
        human_bytes(moved.bytes),
        moved.present,
        bases.join(", ")
    )
}
