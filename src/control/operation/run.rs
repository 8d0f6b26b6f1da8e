//! Methods of other interfaces, as operations: submitted, and for those who wait followed to their end.

use serde::Deserialize;
use serde_json::Value;

use super::Submitted;
use crate::control::{Answer, Call, Fault, Origin, Peer};
use crate::error::{Error, Kind as Reason};
use crate::operation::{Kind, OperationId, State, Target};
use crate::ops::operation::{Engine, Request};
use crate::sys::user;

/// What a method is asked, as an operation.
#[derive(Debug)]
pub(in crate::control) struct Asked {
    /// What to do.
    pub kind: Kind,
    /// To what, on this node.
    pub subject: String,
}

/// Has it done. Who waits is told the steps as the executor tells them, and last what came of it; who does not is told the id.
///
/// A caller who goes away changes nothing: it is done to the end.
///
/// # Errors
/// Busy, with the id of the operation that holds what this one takes; else why it is not done.
pub(in crate::control) fn run(engine: &Engine, call: &Call<'_>, asked: Asked) -> Result<Answer, Fault> {
    let Hurry { no_wait } = call.parameters()?;
    let mut parameters: Value = call.parameters()?;
    if let Some(object) = parameters.as_object_mut() {
        object.remove("no_wait");
    }
    let target = Target { node: engine.node().clone(), subject: asked.subject };
    let requester = requester(call.peer());
    let request = Request { kind: asked.kind, targets: vec![target], parameters, requester, key: None, deadline: None };
    let id = engine.submit(request)?.id;
    if no_wait {
        return Answer::new(&Submitted { operation: id });
    }
    attend(engine, call, &id)
}

/// Whether the caller waits.
#[derive(Debug, Deserialize)]
struct Hurry {
    #[serde(default)]
    no_wait: bool,
}

/// Who asks, as people know them.
pub(in crate::control) fn requester(peer: &Peer) -> String {
    match &peer.origin {
        Origin::User { uid: 0, .. } => "root".to_owned(),
        Origin::User { uid, .. } => match user::by_id(*uid) {
            Ok(Some(user)) => user.name,
            Ok(None) | Err(_) => uid.to_string(),
        },
        Origin::Node(name) => format!("node {name}"),
    }
}

/// Passes on what is told of the only target, until it is over.
fn attend(engine: &Engine, call: &Call<'_>, id: &OperationId) -> Result<Answer, Fault> {
    let subscription = engine.follow(id)?;
    loop {
        let mut over = false;
        for progress in subscription.take() {
            if !progress.step.is_null() {
                call.send(&progress.step)?;
            }
            over |= progress.is_over();
        }
        if over {
            break;
        }
        call.wait_on(subscription.bell())?;
    }
    let record = engine.show(id)?;
    let lost = || Error::new(Reason::Damaged, format!("show operation {id}"), "its result is not there");
    let outcome = record.results.into_iter().next().ok_or_else(lost)?;
    if outcome.state == State::Succeeded {
        return Answer::new(&outcome.value);
    }
    let cause = format!("it is {}", outcome.state);
    Err(outcome
        .failure()
        .unwrap_or_else(|| Error::new(Reason::State, format!("wait for operation {id}"), cause))
        .into())
}
