//! What an operation is about: from selectors of nodes, and from what the interface's method is asked.

use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, Kind as Reason, Result};
use crate::ids::{Name, NodeName, RingName};
use crate::node::{Node, Selector, State, select};
use crate::operation::{Kind, SubjectKind, Target};
use crate::ring::selector;

/// Who is asked where things are.
#[derive(Debug)]
pub(super) struct Here<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// Whose a ring is that names no owner.
    pub owner: &'a Name,
    /// All nodes that there are, this one among them.
    pub nodes: &'a [Arc<Node>],
}

/// What an operation is about that names no target: what its parameters name, on all nodes that are selected.
///
/// # Errors
/// [`Reason::Invalid`] for what is no selector, or says nothing; [`Reason::NotFound`] for a selector that means no node;
/// [`Reason::State`] if something is to be placed, and all that are meant are drained.
pub(super) fn targets_for(here: &Here<'_>, on: &[String], kind: Kind, parameters: &Value) -> Result<Vec<Target>> {
    let subject = subject(here.owner, kind, parameters)?;
    if on.is_empty() {
        return Ok(vec![Target { node: here.node.clone(), subject }]);
    }
    let selectors = on.iter().map(|text| text.parse()).collect::<Result<Vec<Selector>>>()?;
    let mut meant = select(&selectors, here.nodes)?;
    if kind.places() {
        meant.retain(|node| node.state == State::Ready);
        if meant.is_empty() {
            let operation = format!("choose nodes by '{}'", on.join(" "));
            return Err(Error::new(Reason::State, operation, "all of them are drained")
                .next("choose others, or take one back: 'regen node drain --undo NAME'"));
        }
        let is_meant = |name: &NodeName| meant.iter().any(|node| node.name == *name);
        let left_out = selectors.iter().find_map(|selector| match selector {
            Selector::Node(name) if !is_meant(name) => Some(name),
            Selector::Node(_) | Selector::Label(_) | Selector::All => None,
        });
        if let Some(name) = left_out {
            let operation = format!("choose nodes by '{}'", on.join(" "));
            return Err(Error::new(Reason::State, operation, format!("node '{name}' is drained"))
                .next(format!("leave it out, or take it back: 'regen node drain --undo {name}'")));
        }
    }
    Ok(meant.iter().map(|node| Target { node: node.name.clone(), subject: subject.clone() }).collect())
}

/// What `SUBJECT` or `NODE:SUBJECT` means.
pub(super) fn read(own: &NodeName, text: &str) -> Result<Target> {
    if text.contains(':') {
        return text.parse();
    }
    Ok(Target { node: own.clone(), subject: text.to_owned() })
}

/// What a method is about, by what it is asked.
pub(super) fn subject(owner: &Name, kind: Kind, parameters: &Value) -> Result<String> {
    let field = |name: &str| parameters.get(name).and_then(Value::as_str);
    let need = |name: &str| {
        field(name).ok_or_else(|| {
            let cause = format!("its parameters have no '{name}', which says what it is about");
            Error::new(Reason::Invalid, format!("submit {kind}"), cause).next("give that parameter, or targets")
        })
    };
    Ok(match kind.subject() {
        SubjectKind::Service => match field("version") {
            Some(version) => format!("service/{}@{version}", need("name")?),
            None => format!("service/{}", need("name")?),
        },
        SubjectKind::Template => format!("template/{}", need("name")?),
        SubjectKind::Container => format!("container/{}", need("id")?),
        SubjectKind::Ring => format!("ring/{}", ring(need("ring")?, owner)?),
        SubjectKind::Node => "node".to_owned(),
        SubjectKind::Probe => "probe/0".to_owned(),
    })
}

/// A ring, with or without the entry that is meant.
fn ring(text: &str, owner: &Name) -> Result<RingName> {
    if text.contains('@') { Ok(selector::Target::parse(text, owner)?.named()?.0) } else { RingName::parse(text, owner) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ops::cluster::node_here;

    fn node(name: &str, label: &str, state: State) -> Arc<Node> {
        let label = label.parse().unwrap();
        let node = node_here(name.parse().unwrap(), "0".repeat(32), None, [label].into(), 1);
        Arc::new(Node { state, ..node })
    }

    fn targets(on: &[&str], kind: Kind, parameters: &Value) -> Result<Vec<String>> {
        let (own, owner): (NodeName, Name) = ("n1".parse().unwrap(), "root".parse().unwrap());
        let nodes = [
            node("n1", "zone=a", State::Ready),
            node("n2", "zone=a", State::Drained),
            node("n3", "zone=b", State::Drained),
        ];
        let on: Vec<_> = on.iter().map(|text| (*text).to_owned()).collect();
        let found = targets_for(&Here { node: &own, owner: &owner, nodes: &nodes }, &on, kind, parameters)?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn parameters_name_what_an_operation_is_about() {
        for (kind, parameters, expected) in [
            (Kind::ServiceAdd, json!({"name": "web", "version": "1.0.0"}), "n1:service/web@1.0.0"),
            (Kind::ServiceRemove, json!({"name": "web"}), "n1:service/web"),
            (Kind::TemplateCreate, json!({"name": "py"}), "n1:template/py"),
            (Kind::Clone, json!({"template": "py", "id": "c1"}), "n1:container/c1"),
            (Kind::RingSnapshot, json!({"ring": "alice"}), "n1:ring/root/alice"),
            (Kind::RingPin, json!({"ring": "bob/alice@-1"}), "n1:ring/bob/alice"),
            (Kind::NodeDrain, json!({}), "n1:node"),
        ] {
            assert_eq!(targets(&[], kind, &parameters).unwrap(), [expected]);
        }
        assert_eq!(targets(&[], Kind::Clone, &json!({})).unwrap_err().kind(), Reason::Invalid);
    }

    #[test]
    fn nodes_are_selected_and_each_is_meant_once() {
        let parameters = json!({"name": "py"});
        let of = |on: &[&str]| targets(on, Kind::TemplateRemove, &parameters);
        assert_eq!(of(&["all", "node=n1", "all"]).unwrap(), ["n1:template/py", "n2:template/py", "n3:template/py"]);
        assert_eq!(of(&["node=n2"]).unwrap(), ["n2:template/py"]);
        assert_eq!(of(&["label=zone=a"]).unwrap(), ["n1:template/py", "n2:template/py"]);
        assert_eq!(of(&["label=zone=c"]).unwrap_err().kind(), Reason::NotFound);
        assert_eq!(of(&["node=n4"]).unwrap_err().kind(), Reason::NotFound);
        for bad in ["", "n1", "nodes=n1", "node=", "node=N_1", "label=zone", "label==a"] {
            assert_eq!(of(&[bad]).unwrap_err().kind(), Reason::Invalid, "{bad}");
        }
    }

    #[test]
    fn nothing_is_placed_on_a_drained_node() {
        let parameters = json!({"name": "py"});
        let of = |on: &[&str]| targets(on, Kind::TemplateCreate, &parameters);
        assert_eq!(of(&["all"]).unwrap(), ["n1:template/py"]);
        assert_eq!(of(&["label=zone=b"]).unwrap_err().kind(), Reason::State);
        let named = of(&["all", "node=n2"]).unwrap_err().to_string();
        assert!(named.contains("node 'n2' is drained"), "{named}");
    }
}
