//! What clients ask for.

use regen::operation::{Kind, SubjectKind, Target};
use serde_json::{Value, json};

use crate::dice::Dice;

#[derive(Debug, Clone)]
pub struct Request {
    pub kind: Kind,
    pub targets: Vec<Target>,
    pub parameters: Value,
    pub key: Option<String>,
    /// So long what is sent for it is on its way; 0 is as long as all else.
    pub held: u64,
    /// After so long nobody wants it any more.
    pub cancelled_after: Option<u64>,
}

/// The name of a node, by its number.
pub fn name(node: usize) -> String {
    format!("node-{node:05}")
}

/// The number of a node, by its name.
pub fn number(name: &str) -> usize {
    name.strip_prefix("node-").unwrap().parse().unwrap()
}

impl Request {
    /// Something on so many nodes, at random.
    pub fn draw(dice: &mut Dice, nodes: &[usize]) -> Self {
        let kind = Kind::ALL[dice.below(Kind::ALL.len())];
        let subject = subject(kind, dice);
        // A ring has one way to go.
        let nodes = if kind == Kind::RingMove { &nodes[..1] } else { nodes };
        let targets = nodes.iter().map(|node| target(*node, &subject)).collect();
        let parameters = match kind {
            Kind::ServiceUpgrade => json!({"to": "2.0.0"}),
            Kind::RingMove => json!({"to": name(dice.below(6))}),
            _ => json!({}),
        };
        let key = dice.happens(150).then(|| format!("key-{}", dice.below(100_000)));
        let cancelled_after = dice.happens(200).then(|| dice.within(0..20_000));
        Self { kind, targets, parameters, key, held: 0, cancelled_after }
    }

    /// A probe on all nodes.
    pub fn all(nodes: usize, subject: usize) -> Self {
        let targets = (0..nodes).map(|node| target(node, &format!("probe/{subject}"))).collect();
        let parameters = json!({"delay_ms": 10});
        Self { kind: Kind::Probe, targets, parameters, key: None, held: 0, cancelled_after: None }
    }

    /// Something about a ring that nobody else asks for, its task being so long on its way.
    pub fn pin(node: usize, held: u64) -> Self {
        let targets = vec![target(node, "ring/alice/outdated")];
        Self { kind: Kind::RingPin, targets, parameters: json!({}), key: None, held, cancelled_after: None }
    }
}

fn target(node: usize, subject: &str) -> Target {
    Target { node: name(node).parse().unwrap(), subject: subject.to_owned() }
}

/// Few things on each node, so that operations meet.
fn subject(kind: Kind, dice: &mut Dice) -> String {
    match kind.subject() {
        SubjectKind::Service if kind != Kind::ServiceUpgrade && dice.happens(200) => "service/web".to_owned(),
        SubjectKind::Service => format!("service/web@1.{}.0", dice.below(2)),
        SubjectKind::Template => "template/python".to_owned(),
        SubjectKind::Container => format!("container/c{}", dice.below(3)),
        SubjectKind::Ring => format!("ring/alice/r{}", dice.below(3)),
        SubjectKind::Node => "node".to_owned(),
        SubjectKind::Probe => format!("probe/{}", dice.below(3)),
    }
}
