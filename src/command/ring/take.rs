//! `ring take`: a ring comes from another node.

use serde_json::json;

use super::{print, trust};
use crate::cli::ring::Take;
use crate::command::World;
use crate::command::progress::Bar;
use crate::distribution::Reference;
use crate::error::Result;
use crate::ids::RingName;
use crate::ops::push::Registry;
use crate::ops::ring_move::{self, FREELY, Given};

pub(super) fn run(world: &World, arguments: &Take) -> Result<()> {
    let name = RingName::parse(&arguments.ring, &world.place.owner)?;
    let reference: Reference = arguments.reference.parse()?;
    let registry = Registry { reference: &reference, trust: trust(arguments.tls) };
    let mut bar = Bar::new();
    let tell = &mut |transfer: &_| bar.show_transfer(transfer);
    let taken = match (&arguments.index, arguments.moves) {
        (Some(index), Some(moves)) => {
            let given = Given { index: index.parse()?, moves, fork: None };
            ring_move::take(&world.place, (&name, registry), &given, FREELY, tell)?
        }
        (None, _) | (_, None) => {
            let pushed = ring_move::look(registry)?;
            let moves = pushed.moves + 1;
            ring_move::take_without_consent(&world.place, (&name, registry), (&pushed, moves), FREELY, tell)?
        }
    };
    drop(bar);
    let pulled = &taken.pulled;
    let value = json!({
        "ring": name.to_string(),
        "entries": pulled.entries,
        "fetched_bytes": pulled.moved.bytes,
        "last_seq": taken.last_seq,
        "moves": taken.moves,
    });
    print(arguments.output, &value, || format!("{name}: it is here, with {} new entries\n", pulled.entries.len()))
}
