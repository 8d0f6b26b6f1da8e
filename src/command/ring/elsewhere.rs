//! Rings of other nodes, `--on`: what is to be done is said to the daemon, which has it done there.

use serde_json::{Value, json};

use super::{rollback, set};
use crate::cli::op::Elsewhere;
use crate::cli::ring::{Output, Verb};
use crate::command::World;
use crate::command::op::{How, everywhere};
use crate::error::{Error, Kind as Reason, Result};
use crate::operation::Kind;
use crate::ring::LimitChange;
use crate::ring::selector::Target;

/// What is said to the daemon.
struct Wish<'a> {
    kind: Kind,
    parameters: Value,
    elsewhere: &'a Elsewhere,
    output: Output,
}

/// Has done what is not to be done here; nothing is to be done if it is.
pub(super) fn run(world: &World, verb: &Verb) -> Result<Option<u8>> {
    let Some(Wish { kind, parameters, elsewhere, output }) = read(world, verb)? else { return Ok(None) };
    everywhere(world, kind, parameters, How { on: &elsewhere.on, patience: elsewhere.patience(), output })?;
    Ok(Some(0))
}

fn read<'a>(world: &World, verb: &'a Verb) -> Result<Option<Wish<'a>>> {
    let (kind, elsewhere, output) = match verb {
        Verb::Rollback(arguments) => (Kind::RingRollback, &arguments.elsewhere, arguments.output),
        Verb::Snapshot(arguments) => (Kind::RingSnapshot, &arguments.elsewhere, arguments.output),
        Verb::Pin(arguments) => (Kind::RingPin, &arguments.elsewhere, arguments.output),
        Verb::Unpin(arguments) => (Kind::RingUnpin, &arguments.elsewhere, arguments.output),
        Verb::Set(arguments) => (Kind::RingSet, &arguments.elsewhere, arguments.output),
        Verb::Pack(arguments) => (Kind::RingPack, &arguments.elsewhere, arguments.output),
        Verb::Rm(arguments) => (Kind::RingRemove, &arguments.elsewhere, arguments.output),
        Verb::Ls(_)
        | Verb::Log(_)
        | Verb::Show(_)
        | Verb::Cat(_)
        | Verb::Restore(_)
        | Verb::Mount(_)
        | Verb::Unmount(_)
        | Verb::Diff(_)
        | Verb::Fork(_)
        | Verb::Verify(_)
        | Verb::Export(_)
        | Verb::Import(_)
        | Verb::Push(_)
        | Verb::Pull(_)
        | Verb::Move(_)
        | Verb::Give(_)
        | Verb::Take(_)
        | Verb::Keep(_)
        | Verb::Disown(_)
        | Verb::Prune(_)
        | Verb::Recover(_) => return Ok(None),
    };
    if elsewhere.on.is_empty() {
        return Ok(None);
    }
    Ok(Some(Wish { kind, parameters: parameters(world, verb)?, elsewhere, output }))
}

fn parameters(world: &World, verb: &Verb) -> Result<Value> {
    Ok(match verb {
        Verb::Rollback(arguments) => {
            json!({"ring": arguments.ring, "to": rollback::selector(world, arguments)?.to_string()})
        }
        Verb::Snapshot(arguments) => json!({"ring": arguments.ring}),
        Verb::Pin(arguments) | Verb::Unpin(arguments) => {
            let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
            json!({"ring": name.to_string(), "entry": selector.to_string()})
        }
        Verb::Set(arguments) => {
            let LimitChange { depth, max_bytes, keep } = set::limits(arguments)?;
            let mut parameters = json!({"ring": arguments.ring, "depth": depth});
            if !keep.is_nothing() {
                parameters["keep"] = json!(keep);
            }
            if let Some(max_bytes) = max_bytes {
                parameters["max_bytes"] = json!(max_bytes);
            }
            parameters
        }
        Verb::Pack(arguments) => match &arguments.ring {
            Some(ring) => json!({"ring": ring}),
            None => {
                let cause = "which ring is not said";
                return Err(Error::new(Reason::Usage, "pack a ring on other nodes", cause).next("name one"));
            }
        },
        Verb::Rm(arguments) => json!({"ring": arguments.ring}),
        Verb::Ls(_)
        | Verb::Log(_)
        | Verb::Show(_)
        | Verb::Cat(_)
        | Verb::Restore(_)
        | Verb::Mount(_)
        | Verb::Unmount(_)
        | Verb::Diff(_)
        | Verb::Fork(_)
        | Verb::Verify(_)
        | Verb::Export(_)
        | Verb::Import(_)
        | Verb::Push(_)
        | Verb::Pull(_)
        | Verb::Move(_)
        | Verb::Give(_)
        | Verb::Take(_)
        | Verb::Keep(_)
        | Verb::Disown(_)
        | Verb::Prune(_)
        | Verb::Recover(_) => Value::Null,
    })
}
