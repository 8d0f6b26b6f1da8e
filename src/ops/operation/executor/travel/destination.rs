//! The node that a ring comes to.

use serde_json::{Value, json};

use super::{Task, Travel, Wish, check_wanted, told};
use crate::error::{Error, Kind as Fault, Result};
use crate::ids::{NodeName, RingName};
use crate::node::State;
use crate::ops::ownership::{Bereft, Found, Owner};
use crate::ops::push::Registry;
use crate::ops::ring_move::{self, Given, Pushed, Taken};

impl Travel {
    /// Whether this node would take a ring by its move `moves`.
    pub(super) fn look(&self, name: &RingName, moves: u64) -> Result<Value> {
        let own = self.ownership.node();
        let operation = || format!("take ring '{name}' on node '{own}'");
        if self.cluster.node().state == State::Drained {
            return Err(Error::new(Fault::State, operation(), "this node is drained")
                .next(format!("take it back: 'regen node drain --undo {own}'")));
        }
        match self.ownership.here(name)? {
            Some((_, state)) if state.elsewhere.is_none() && state.moves < moves => {
                let cause = "this node has a ring of that name";
                Err(Error::new(Fault::Exists, operation(), cause)
                    .next("remove it there, or pull it under another name"))
            }
            Some(_) | None => Ok(json!({"ring": name.to_string()})),
        }
    }

    /// Takes what the source gave.
    pub(super) fn take(
        &self,
        task: &Task,
        (name, wish): (&RingName, &Wish),
        given: &Given,
        tell: &mut dyn FnMut(Value),
    ) -> Result<Value> {
        let _turn = self.ownership.turn(name);
        self.look(name, given.moves)?;
        let reference = self.reference((name, wish), None)?;
        let registry = Registry { reference: &reference, trust: wish.trust() };
        let owner = self.owner(task, (registry, given.moves), Some(given.index.clone()));
        let permit = || self.permit(task, name, &owner);
        let place = self.ownership.place();
        let taken = ring_move::take(place, (name, registry), given, &permit, &mut |transfer| tell(told(transfer)))?;
        Ok(self.answer(name, wish.from.as_ref(), &taken))
    }

    /// Takes what was pushed last, without the node that has it.
    pub(super) fn seize(
        &self,
        task: &Task,
        (name, wish): (&RingName, &Wish),
        tell: &mut dyn FnMut(Value),
    ) -> Result<Value> {
        let own = self.ownership.node();
        let operation = || format!("move ring '{name}' to node '{}' without the node that has it", wish.to);
        if wish.to != *own {
            let cause = format!("with force it is asked of the node that gets it, and this is '{own}'");
            return Err(Error::new(Fault::Invalid, operation(), cause));
        }
        let _turn = self.ownership.turn(name);
        let found = self.ownership.find(name)?;
        let moved = self.ownership.here(name)?.map_or(0, |(_, state)| state.moves);
        let ours = found.owner.as_ref().filter(|owner| owner.node == *own);
        if ours.is_none() {
            self.look(name, u64::MAX)?;
        }
        let reference = self.reference((name, wish), found.owner.as_ref())?;
        let registry = Registry { reference: &reference, trust: wish.trust() };
        // What is ours by the key, and not here, is taken to its end.
        if let Some((owner, index)) = ours.and_then(|owner| owner.index.clone().map(|index| (owner, index))) {
            let pushed = Pushed { index, moves: owner.moves, last_seq: 0 };
            let permit = || self.permit(task, name, owner);
            let ring = (name, registry);
            let (place, tell) = (self.ownership.place(), &mut |transfer: &_| tell(told(transfer)));
            let taken = ring_move::take_without_consent(place, ring, (&pushed, owner.moves), &permit, tell)?;
            return Ok(self.answer(name, wish.from.as_ref(), &taken));
        }
        let from = source((name, wish), &found, own)?;
        tell(json!({"step": format!("looking for it in {reference}")}));
        let pushed = ring_move::look(registry)?;
        // More than any move that the other has begun, and nobody knows of.
        let moves = pushed.moves.max(moved).max(found.owner.as_ref().map_or(0, |owner| owner.moves)) + 2;
        let mut owner = self.owner(task, (registry, moves), Some(pushed.index.clone()));
        owner.without.push(Bereft { node: from.clone(), last_seq: pushed.last_seq });
        let permit = || self.permit(task, name, &owner);
        let (place, ring) = (self.ownership.place(), (name, registry));
        let tell = &mut |transfer: &_| tell(told(transfer));
        let taken = ring_move::take_without_consent(place, ring, (&pushed, moves), &permit, tell)?;
        Ok(self.answer(name, Some(&from), &taken))
    }

    /// The last moment to give it up; after it this node has the ring.
    fn permit(&self, task: &Task, name: &RingName, owner: &Owner) -> Result<()> {
        check_wanted(task)?;
        task.pass()?;
        self.ownership.claim(name, owner)
    }

    fn answer(&self, name: &RingName, from: Option<&NodeName>, taken: &Taken) -> Value {
        json!({
            "ring": name.to_string(),
            "from": from,
            "to": self.ownership.node(),
            "moves": taken.moves,
            "entries": taken.pulled.entries.len(),
            "last_seq": taken.last_seq,
        })
    }
}

/// From whom it is taken.
fn source((name, wish): (&RingName, &Wish), found: &Found, own: &NodeName) -> Result<NodeName> {
    let from = found.owner.as_ref().map(|owner| &owner.node).or(wish.from.as_ref());
    let operation = || format!("move ring '{name}' to node '{own}' without the node that has it");
    match from {
        Some(from) if from == own => Err(Error::new(Fault::State, operation(), "this node has it")),
        Some(from) => Ok(from.clone()),
        None => Err(Error::new(Fault::Invalid, operation(), "it never moved, so nobody knows which node has it")
            .next("say so: '--from NODE'")),
    }
}
