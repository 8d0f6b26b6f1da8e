//! `node ls`

use crate::cli::ring::Output;
use crate::command::World;
use crate::command::answer::print;
use crate::command::table::{local, table};
use crate::control::client::Client;
use crate::control::node::{List, Summary, method};
use crate::error::Result;
use crate::node::State;

pub(super) fn run(world: &World, output: Output) -> Result<()> {
    let mut client = Client::connect(world.place.root.path())?;
    let (List { nodes, stale_ms }, _) = client.call(method::LIST, &serde_json::json!({}))?;
    print(output, &nodes, || text(&nodes, stale_ms))
}

fn text(nodes: &[Summary], stale_ms: Option<u64>) -> String {
    let head = ["NODE", "STATE", "ADDRESS", "LABELS", "SERVICES", "TEMPLATES", "RINGS", "REGEN", "SINCE"];
    let row = |node: &Summary| {
        let state = match node.state {
            State::Ready => "ready",
            State::Drained => "drained",
        };
        [
            if node.own { format!("{}*", node.name) } else { node.name.to_string() },
            state.to_owned(),
            node.address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
            if node.labels.is_empty() { "-".to_owned() } else { node.labels.join(",") },
            node.services.to_string(),
            node.templates.to_string(),
            node.rings.to_string(),
            node.regen.clone(),
            local(node.started),
        ]
    };
    let mut text = table(&std::iter::once(head.map(str::to_owned)).chain(nodes.iter().map(row)).collect::<Vec<_>>());
    if let Some(age) = stale_ms {
        text.push_str(&format!("The registry is away: this was so {} s ago.\n", age / 1000));
    }
    text
}
