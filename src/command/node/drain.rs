//! `node drain`

use serde_json::{Value, json};

use crate::cli::node::Drain;
use crate::command::World;
use crate::command::answer::print;
use crate::command::op::{How, change};
use crate::control::node::method;
use crate::error::Result;
use crate::operation::Kind;

pub(super) fn run(world: &World, arguments: Drain) -> Result<()> {
    let Drain { name, undo, wait: _, patience, output } = arguments;
    let how = How { on: &[], patience, output };
    change(world, (Kind::NodeDrain, method::DRAIN), &json!({"name": name, "undo": undo}), how, |state: Value| {
        print(output, &state, || format!("node {name} is {}\n", state["state"].as_str().unwrap_or_default()))
    })
}
