//! What operations contend for.

use std::fmt;

use semver::Version;
use serde_json::Value;

use super::{Kind, SubjectKind, Target};
use crate::error::{Error, Kind as Fault, Result};
use crate::ids::{ContainerId, Name, NodeName};

/// A thing on a node, checked. Its text, `NODE:SUBJECT`, is a part of keys of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// Where.
    pub node: NodeName,
    subject: String,
}

impl Resource {
    /// What a target of an operation is.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if such a kind of operation is not about that.
    pub fn of(kind: Kind, target: &Target) -> Result<Self> {
        if !fits(kind.subject(), &target.subject) {
            let shown: String = target.subject.chars().take(80).collect();
            let operation = format!("submit {kind} of '{}:{}'", target.node, shown.escape_debug());
            let cause = format!("it is about {}", kind.subject().spelling());
            return Err(Error::new(Fault::Invalid, operation, cause));
        }
        Ok(Self { node: target.node.clone(), subject: target.subject.clone() })
    }

    /// All that an operation takes of the world for a target: that, and the version that an upgrade leads to, or the ring of
    /// the same name on the nodes between which it moves.
    ///
    /// # Errors
    /// As [`Resource::of`].
    pub fn all(kind: Kind, target: &Target, parameters: &Value) -> Result<Vec<Self>> {
        let this = Self::of(kind, target)?;
        if kind == Kind::RingMove {
            return this.with_ends(parameters);
        }
        let to = (kind == Kind::ServiceUpgrade).then(|| parameters.get("to").and_then(Value::as_str)).flatten();
        let Some(to) = to else { return Ok(vec![this]) };
        let other = Target { node: target.node.clone(), subject: format!("{}@{to}", this.root()) };
        let other = Self::of(kind, &other)?;
        Ok(if other.overlaps(&this) { vec![this] } else { vec![this, other] })
    }

    /// A ring here and where it goes, or comes from.
    fn with_ends(self, parameters: &Value) -> Result<Vec<Self>> {
        let end = |name: &str| parameters.get(name).and_then(Value::as_str).map(str::parse).transpose();
        let (Some(to), from) = (end("to")?, end("from")?) else {
            let cause = "its parameters have no 'to', the node that the ring goes to";
            return Err(Error::new(Fault::Invalid, format!("submit {} of '{self}'", Kind::RingMove), cause));
        };
        let mut nodes: Vec<NodeName> = vec![self.node.clone(), to];
        nodes.extend(from);
        let mut all: Vec<Self> = Vec::new();
        for node in nodes {
            if !all.iter().any(|known| known.node == node) {
                all.push(Self { node, subject: self.subject.clone() });
            }
        }
        Ok(all)
    }

    /// Reads what [`Resource`] displays.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (node, subject) = text.split_once(':')?;
        Some(Self { node: node.parse().ok()?, subject: subject.to_owned() })
    }

    /// The thing, without its node.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The thing that this is a version of, or itself.
    #[must_use]
    pub fn root(&self) -> &str {
        match self.subject.split_once('@') {
            Some((root, _)) if root.starts_with("service/") => root,
            Some(_) | None => &self.subject,
        }
    }

    /// Whether it stands for all versions of something, so that what overlaps it cannot be told by its name alone.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.subject.starts_with("service/") && !self.subject.contains('@')
    }

    /// Whether both are the same, or one is a version of the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.node == other.node && overlap(&self.subject, &other.subject, self.root() == other.root())
    }
}

/// As [`Resource::overlaps`], of one node.
pub(super) fn overlap(one: &str, other: &str, same_root: bool) -> bool {
    one == other || (same_root && (!one.contains('@') || !other.contains('@')))
}

/// A resource that overlaps one before it.
#[must_use]
pub fn first_overlap(resources: &[Resource]) -> Option<&Resource> {
    let mut sorted: Vec<_> = resources.iter().map(|resource| (&resource.node, resource.root(), resource)).collect();
    sorted.sort_unstable();
    let twice = |pair: &&[(&NodeName, &str, &Resource)]| {
        let ((_, one_root, one), (_, other_root, other)) = (pair[0], pair[1]);
        one.node == other.node && one_root == other_root && overlap(&one.subject, &other.subject, true)
    };
    // All versions of a thing stand before each of them.
    sorted.windows(2).find(twice).map(|pair| pair[1].2)
}

fn fits(kind: SubjectKind, subject: &str) -> bool {
    let (head, rest) = subject.split_once('/').unwrap_or((subject, ""));
    let name = |text: &str| text.parse::<Name>().is_ok();
    match kind {
        SubjectKind::Service => {
            let (service, version) = rest.split_once('@').map_or((rest, None), |(name, version)| (name, Some(version)));
            head == "service" && name(service) && version.is_none_or(|text| text.parse::<Version>().is_ok())
        }
        SubjectKind::Template => head == "template" && name(rest),
        SubjectKind::Container => head == "container" && rest.parse::<ContainerId>().is_ok(),
        SubjectKind::Ring => {
            head == "ring" && rest.split_once('/').is_some_and(|(owner, ring)| name(owner) && name(ring))
        }
        SubjectKind::Node => subject == "node",
        SubjectKind::Probe => {
            head == "probe" && (1..=20).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_digit())
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.subject)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn a_kind_takes_only_what_it_is_about() {
        for (kind, good) in [
            (Kind::ServiceAdd, "n:service/web@1.0.0"),
            (Kind::ServiceRestart, "n:service/web"),
            (Kind::TemplateCreate, "n:template/py"),
            (Kind::Clone, "n:container/c1+x"),
            (Kind::RingPin, "n:ring/root/a"),
            (Kind::NodeDrain, "n:node"),
            (Kind::Probe, "n:probe/17"),
        ] {
            assert_eq!(Resource::of(kind, &target(good)).unwrap().to_string(), good);
            for other in Kind::ALL.into_iter().filter(|other| other.subject() != kind.subject()) {
                assert!(Resource::of(other, &target(good)).is_err(), "{other} took {good}");
            }
        }
        for bad in ["n:service/web@x", "n:service/../x", "n:service/", "n:service/a/b", "n:web", "n:service/a@1.0.0/x"]
        {
            assert!(Resource::of(Kind::ServiceAdd, &target(bad)).is_err(), "{bad}");
        }
        assert!(Resource::of(Kind::RingPin, &target("n:ring/a")).is_err());
        assert!(Resource::of(Kind::Probe, &target("n:probe/x")).is_err());
    }

    #[test]
    fn a_service_overlaps_its_versions_and_versions_do_not_overlap_each_other() {
        let resource = |text: &str| Resource::of(Kind::ServiceAdd, &target(text)).unwrap();
        let (all, one, two) = (resource("n:service/a"), resource("n:service/a@1.0.0"), resource("n:service/a@2.0.0"));
        assert!(all.overlaps(&one) && one.overlaps(&all) && all.overlaps(&all) && one.overlaps(&one));
        assert!(!one.overlaps(&two));
        assert!(!all.overlaps(&resource("m:service/a@1.0.0")) && !all.overlaps(&resource("n:service/ab@1.0.0")));
        assert!(all.is_whole() && !one.is_whole());
    }

    #[test]
    fn a_move_takes_the_ring_on_both_nodes() {
        let all = |parameters| Resource::all(Kind::RingMove, &target("a:ring/root/x"), &parameters);
        let texts = |parameters| all(parameters).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(json!({"to": "b"})), ["a:ring/root/x", "b:ring/root/x"]);
        assert_eq!(texts(json!({"to": "a", "from": "c"})), ["a:ring/root/x", "c:ring/root/x"]);
        assert!(all(json!({})).is_err() && all(json!({"to": "B/"})).is_err());
    }

    #[test]
    fn an_upgrade_takes_both_versions() {
        let all = Resource::all(Kind::ServiceUpgrade, &target("n:service/a@1.0.0"), &json!({"to": "2.0.0"})).unwrap();
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["n:service/a@1.0.0", "n:service/a@2.0.0"]);
        let all = Resource::all(Kind::ServiceUpgrade, &target("n:service/a"), &json!({"to": "2.0.0"})).unwrap();
        assert_eq!(all.len(), 1, "all versions are taken already");
        assert!(Resource::all(Kind::ServiceUpgrade, &target("n:service/a"), &json!({"to": "../x"})).is_err());
    }
}
