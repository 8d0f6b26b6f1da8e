//! `ring move`: a ring goes to another node; the daemon has both do their part.

use serde::Deserialize;
use serde_json::json;

use super::print;
use crate::cli::ring::Move;
use crate::command::World;
use crate::command::op::{How, submit};
use crate::control::operation::Submission;
use crate::error::Result;
use crate::ids::RingName;
use crate::operation::Kind;

/// What came of it.
#[derive(Debug, Deserialize)]
struct Moved {
    ring: String,
    to: String,
    entries: u64,
    last_seq: u64,
}

pub(super) fn run(world: &World, arguments: &Move) -> Result<()> {
    let Move { ring, to, from, via, force, tls, waiting, output } = arguments;
    let name = RingName::parse(ring, &world.place.owner)?;
    // Who gets it does it alone; else who has it does, and asks the other.
    let at = if *force { Some(to) } else { from.as_ref() };
    let target = match at {
        Some(node) => format!("{node}:ring/{name}"),
        None => format!("ring/{name}"),
    };
    let mut parameters = json!({"ring": name.to_string(), "to": to, "tls_verify": tls.tls_verify, "force": force});
    if let Some(from) = from {
        parameters["from"] = json!(from);
    }
    if let Some(via) = via {
        parameters["via"] = json!(via);
    }
    let submission = Submission {
        kind: Kind::RingMove,
        on: None,
        targets: Some(vec![target]),
        parameters: Some(parameters),
        key: None,
        deadline_ms: None,
    };
    let how = How { on: &[], patience: waiting.patience, output: *output };
    submit(world, &submission, how, |value| {
        print(*output, &value, || match Moved::deserialize(&value) {
            Ok(Moved { ring, to, entries, last_seq }) => {
                format!("{ring}: node '{to}' has it, up to entry @{last_seq}; {entries} entries were new there\n")
            }
            Err(_) => format!("{value}\n"),
        })
    })
}
