//! Which nodes are meant: `node=NAME`, `label=KEY=VALUE`, `all`. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Label, Node, NodeName};
use crate::error::{Error, Kind, Result};

/// The most names that an error lists.
const LISTED: usize = 10;

/// Some of the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The one with this name.
    Node(NodeName),
    /// Those with this label.
    Label(Label),
    /// Every one.
    All,
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let within = |error: Error| error.during(format!("read which nodes are meant by '{}'", text.escape_debug()));
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(name) = text.strip_prefix("node=") {
            return name.parse().map(Self::Node).map_err(within);
        }
        if let Some(label) = text.strip_prefix("label=") {
            return label.parse().map(Self::Label).map_err(within);
        }
        let shown: String = text.chars().take(100).collect();
        let operation = format!("read which nodes are meant by '{}'", shown.escape_debug());
        Err(Error::new(Kind::Invalid, operation, "it names none").next("give node=NAME, label=KEY=VALUE or all"))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node={name}"),
            Self::Label(label) => write!(f, "label={label}"),
            Self::All => f.write_str("all"),
        }
    }
}

impl Selector {
    fn takes(&self, node: &Node) -> bool {
        match self {
            Self::Node(name) => node.name == *name,
            Self::Label(label) => node.has(label),
            Self::All => true,
        }
    }
}

/// The nodes that any of the selectors means, each once, by name. A drained one is among them: who places something leaves it
/// out, who removes something does not.
///
/// # Errors
/// [`Kind::NotFound`] if one of the selectors means no node, with those that are there.
pub fn select<'a>(selectors: &[Selector], nodes: impl IntoIterator<Item = &'a Arc<Node>>) -> Result<Vec<Arc<Node>>> {
    let nodes: BTreeMap<&NodeName, &Arc<Node>> = nodes.into_iter().map(|node| (&node.name, node)).collect();
    if let Some(selector) = selectors.iter().find(|selector| !nodes.values().any(|node| selector.takes(node))) {
        return Err(refuse(selector, &nodes));
    }
    let taken = nodes.values().filter(|node| selectors.iter().any(|selector| selector.takes(node)));
    Ok(taken.map(|node| Arc::clone(node)).collect())
}

fn refuse(selector: &Selector, nodes: &BTreeMap<&NodeName, &Arc<Node>>) -> Error {
    let there = match nodes.len() {
        0 => "there is none now".to_owned(),
        count => {
            let names: Vec<_> = nodes.keys().take(LISTED).map(ToString::to_string).collect();
            let more = if count > LISTED { format!(" and {} more", count - LISTED) } else { String::new() };
            format!("there are {}{more}", names.join(", "))
        }
    };
    Error::new(Kind::NotFound, format!("choose nodes by '{selector}'"), format!("no node is meant: {there}"))
        .next("see 'regen node ls'")
}
