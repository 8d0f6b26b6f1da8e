//! The node that a ring leaves.

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Elsewhere, Part, Task, Travel, Wish, check_wanted, told};
use crate::error::{Error, Kind as Fault, Result};
use crate::ids::{NodeName, RingName};
use crate::node::State;
use crate::operation::Target;
use crate::ops::ownership::{Found, Kept, Owner};
use crate::ops::push::{Registry, Watch};
use crate::ops::ring_move::{self, Given, Leave};
use crate::ring::elsewhere::Elsewhere as Away;
use crate::ring::state::RingState;
use crate::ring::{Consent, Ring};

impl Travel {
    /// Has the ring go to another node.
    pub(super) fn send(
        &self,
        task: &Task,
        (name, wish): (&RingName, &Wish),
        tell: &mut dyn FnMut(Value),
    ) -> Result<Value> {
        let found = self.ownership.find(name)?;
        let (ring, state) = self.find_here(name, &found)?;
        if let Some(owner) = found.owner.as_ref().filter(|owner| self.is_lost(owner, &state)) {
            self.ownership.settle(name, owner)?;
            return Err(refuse(name, format!("node '{}' has it", owner.node)).next(there(name, owner, &wish.to)));
        }
        if wish.to == *self.ownership.node() {
            return self.stay(task, (&ring, wish), (&state, found.owner.as_ref()));
        }
        let remote = self.neighbour(name, &wish.to)?;
        let reference = self.reference((name, wish), found.owner.as_ref())?;
        let registry = Registry { reference: &reference, trust: wish.trust() };
        let moved = found.owner.as_ref().map_or(0, |owner| owner.moves);
        match self.carry(task, (&ring, wish, registry), (&*remote, moved), tell) {
            Ok(value) => Ok(value),
            Err(error) => Err(self.call_off(task, (&ring, wish, registry), error)),
        }
    }

    /// All steps. Each finds what was done of it before.
    fn carry(
        &self,
        task: &Task,
        (ring, wish, registry): (&Ring, &Wish, Registry<'_>),
        (remote, moved): (&dyn Elsewhere, u64),
        tell: &mut dyn FnMut(Value),
    ) -> Result<Value> {
        let state = ring.read()?;
        let moves = if state.elsewhere.is_none() { state.moves.max(moved) + 1 } else { state.moves };
        tell(json!({"step": format!("asking node '{}'", wish.to)}));
        ask(remote, &self.part(task, (wish, registry), &Part::Look(moves)), tell)?;
        check_wanted(task)?;
        let given = give((self, task), (ring, wish, registry), moved, tell)?;
        check_wanted(task)?;
        tell(json!({"step": format!("node '{}' takes it", wish.to)}));
        let mut value = ask(remote, &self.part(task, (wish, registry), &Part::Take(given)), tell)?;
        value["from"] = json!(self.ownership.node());
        Ok(value)
    }

    /// A part of this for the other node, under the same operation.
    fn part(&self, task: &Task, (wish, registry): (&Wish, Registry<'_>), part: &Part) -> Task {
        let parameters = json!({
            "to": wish.to,
            "from": self.ownership.node(),
            "via": registry.reference.to_string(),
            "tls_verify": wish.tls_verify,
            "part": part,
        });
        let target = Target { node: wish.to.clone(), subject: task.target.subject.clone() };
        let mut token = task.token.clone();
        if let Part::Look(_) = part {
            // Who only looks has no right to anything; nor is its answer that of who takes.
            token.number = 0;
        }
        Task { target, token, parameters: Arc::new(parameters), ..task.clone() }
    }

    /// The ring stays here, if it was not taken; why it did not go.
    fn call_off(&self, task: &Task, (ring, wish, registry): (&Ring, &Wish, Registry<'_>), error: Error) -> Error {
        let name = ring.name();
        let state = match ring.read() {
            Ok(state) => state,
            Err(second) => return self.doubtful(task, error, format!("nor can it be read: {second}")),
        };
        match &state.elsewhere {
            Some(Away::Away { to, .. }) if *to == wish.to.as_str() => {}
            // Nothing has begun, or it is a third one's.
            None | Some(Away::Away { .. } | Away::Arriving { .. }) => return error,
        }
        match self.ownership.keep(name, &self.owner(task, (registry, state.moves), None)) {
            Ok(Kept::Yes) => match ring_move::unmark(ring, wish.to.as_str()) {
                Ok(()) => error,
                Err(second) => self.doubtful(task, error, format!("it stays here, and is not let go of: {second}")),
            },
            Ok(Kept::No(owner)) if owner.node == wish.to => {
                let what = format!("it is node '{}''s, which did not say whether it has all of it", owner.node);
                self.doubtful(task, error, what)
            }
            Ok(Kept::No(owner)) => match self.ownership.settle(name, &owner) {
                Ok(()) => refuse(name, format!("node '{}' took it meanwhile", owner.node)),
                Err(second) => self.doubtful(task, error, format!("node '{}' took it: {second}", owner.node)),
            },
            Err(second) => {
                self.doubtful(task, error, format!("whether node '{}' takes it is not known: {second}", wish.to))
            }
        }
    }

    /// The move is neither done nor undone.
    fn doubtful(&self, task: &Task, error: Error, what: String) -> Error {
        self.doubt(task);
        let next = format!("move it there again, or take it back: 'regen ring move … --to {}'", self.ownership.node());
        Error::new(error.kind(), what, error.without_next_step()).next(next)
    }

    /// It is to be where it is: a mark that an unfinished move left goes, if nobody has taken it.
    fn stay(
        &self,
        task: &Task,
        (ring, wish): (&Ring, &Wish),
        (state, last): (&RingState, Option<&Owner>),
    ) -> Result<Value> {
        let name = ring.name();
        match &state.elsewhere {
            None => {}
            Some(Away::Arriving { .. }) => return Err(refuse(name, "it has not arrived yet".to_owned())),
            Some(Away::Away { to, reference, .. }) => {
                let reference = wish.via.as_ref().unwrap_or(reference).parse()?;
                let registry = Registry { reference: &reference, trust: wish.trust() };
                // Whoever holds the ring's lock gives it away just now; after that the key decides.
                let locked = ring.lock()?;
                task.pass()?;
                drop(locked);
                match self.ownership.keep(name, &self.owner(task, (registry, state.moves), None))? {
                    Kept::Yes => ring_move::unmark(ring, to)?,
                    Kept::No(owner) => {
                        return Err(
                            refuse(name, format!("node '{}' has it", owner.node)).next(there(name, &owner, &wish.to))
                        );
                    }
                }
            }
        }
        let own = self.ownership.node();
        let moves = last.map_or(state.moves, |last| last.moves.max(state.moves));
        let last_seq = state.last_seq;
        Ok(
            json!({"ring": name.to_string(), "from": own, "to": own, "moves": moves, "entries": 0, "last_seq": last_seq}),
        )
    }

    fn find_here(&self, name: &RingName, found: &Found) -> Result<(Ring, RingState)> {
        if let Some(here) = self.ownership.here(name)? {
            return Ok(here);
        }
        Err(match &found.owner {
            Some(owner) => {
                refuse(name, format!("node '{}' has it", owner.node)).next(format!("say so: '--from {}'", owner.node))
            }
            None => Error::new(Fault::NotFound, format!("move ring '{name}'"), "there is no such ring on this node")
                .next("say on which node it is: '--from NODE'"),
        })
    }

    /// Whether somebody else took it.
    fn is_lost(&self, owner: &Owner, state: &RingState) -> bool {
        let own = self.ownership.node();
        owner.node != *own && (owner.moves > state.moves || owner.without.iter().any(|bereft| bereft.node == *own))
    }

    /// Who asks the other node, which is there and takes rings.
    fn neighbour(&self, name: &RingName, to: &NodeName) -> Result<Arc<dyn Elsewhere>> {
        let operation = || format!("move ring '{name}' to node '{to}'");
        let known = self.cluster.directory().snapshot();
        let Some(node) = known.node(to) else {
            return Err(
                Error::new(Fault::NotFound, operation(), "there is no such node now").next("see 'regen node ls'")
            );
        };
        if node.state == State::Drained {
            return Err(Error::new(Fault::State, operation(), "that node is drained")
                .next(format!("take it back: 'regen node drain --undo {to}'")));
        }
        self.remote.clone().ok_or_else(|| {
            Error::new(Fault::State, operation(), "this node's daemon cannot ask other nodes")
                .next("start it with --address and --certs")
        })
    }
}

/// Asks the other node. Whether it did it all the same, where it does not answer, is told by the key.
fn ask(remote: &dyn Elsewhere, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
    remote.execute(task, tell).inspect_err(|error| {
        let _ = remote.afterwards(task, error);
    })
}

/// Marks the ring, and pushes it.
fn give(
    (travel, task): (&Travel, &Task),
    (ring, wish, registry): (&Ring, &Wish, Registry<'_>),
    moved: u64,
    tell: &mut dyn FnMut(Value),
) -> Result<Given> {
    let tell = RefCell::new(tell);
    let place = travel.ownership.place();
    let mut watch = Watch {
        pack: &mut |report| {
            let step = format!("packing {}@{}", ring.name(), report.seq);
            (tell.borrow_mut())(json!({"step": step, "done": report.done, "total": report.total}));
        },
        transfer: &mut |transfer| (tell.borrow_mut())(told(transfer)),
    };
    let permit = || task.pass().map(drop);
    let leave = Leave { to: wish.to.as_str(), consent: Consent::Idle, moved, permit: &permit };
    ring_move::give(place, ring, leave, registry, &mut watch)
}

fn refuse(name: &RingName, cause: String) -> Error {
    Error::new(Fault::State, format!("move ring '{name}'"), cause)
}

/// What would be asked of the node that has it.
fn there(name: &RingName, owner: &Owner, to: &NodeName) -> String {
    format!("'regen ring move {name} --from {} --to {to}'", owner.node)
}
