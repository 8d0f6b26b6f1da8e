//! `ring give`: a ring goes to another node; `ring keep`: it does not; `ring disown`: it has gone.

use std::cell::RefCell;

use serde_json::json;

use super::{print, ring, trust};
use crate::cli::ring::{Disown, Give, Keep};
use crate::command::World;
use crate::command::progress::Bar;
use crate::distribution::Reference;
use crate::error::Result;
use crate::ops::push::{Registry, Watch};
use crate::ops::ring_move::{self, FREELY, Leave};
use crate::ring::{Consent, Heading};

pub(super) fn run(world: &World, arguments: &Give) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let reference: Reference = arguments.reference.parse()?;
    let bar = RefCell::new(Bar::new());
    let mut watch = Watch {
        pack: &mut |report| bar.borrow_mut().show(report),
        transfer: &mut |transfer| bar.borrow_mut().show_transfer(transfer),
    };
    let registry = Registry { reference: &reference, trust: trust(arguments.tls) };
    let consent = if arguments.force { Consent::Forced } else { Consent::Idle };
    let leave = Leave { to: &arguments.to, consent, moved: 0, permit: FREELY };
    let given = ring_move::give(&world.place, &ring, leave, registry, &mut watch)?;
    drop(bar);
    print(arguments.output, &given, || {
        let (index, moves) = (&given.index, given.moves);
        format!("{}: take it by 'regen ring take {reference} NAME --index {index} --moves {moves}'\n", ring.name())
    })
}

pub(super) fn disown(world: &World, arguments: &Disown) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    let reference: Reference = arguments.reference.parse()?;
    let heading = Heading { to: &arguments.to, reference: &reference.to_string() };
    let fork = ring_move::disown(&ring, heading, arguments.last_seq, arguments.moves)?;
    let value = json!({"ring": ring.name().to_string(), "fork": fork});
    print(arguments.output, &value, || match &fork {
        Some(fork) => format!("{}: it is node '{}''s; what is here alone is in {fork}\n", ring.name(), arguments.to),
        None => format!("{}: it is node '{}''s\n", ring.name(), arguments.to),
    })
}

pub(super) fn keep(world: &World, arguments: &Keep) -> Result<()> {
    let ring = ring(world, &arguments.ring)?;
    ring_move::unmark(&ring, &arguments.to)?;
    let value = json!({"ring": ring.name().to_string()});
    print(arguments.output, &value, || format!("{}: it stays here\n", ring.name()))
}
