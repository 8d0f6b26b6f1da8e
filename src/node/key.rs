//! Keys of the registry that tell of nodes.

use semver::Version;

use super::NodeName;
use crate::ids::Name;

/// What keys of nodes begin with.
pub const NODES: &str = "node/";
/// What keys of those who serve begin with.
pub const MEMBERS: &str = "member/";

/// Where a node is registered.
#[must_use]
pub fn node_key(node: &NodeName) -> String {
    format!("{NODES}{node}")
}

/// What the keys of those who serve on a node begin with.
#[must_use]
pub fn member_prefix(node: &NodeName) -> String {
    format!("{MEMBERS}{node}/")
}

/// Where one version of a service that serves on a node is registered.
#[must_use]
pub fn member_key(node: &NodeName, service: &Name, version: &Version) -> String {
    format!("{MEMBERS}{node}/{service}/{version}")
}

/// A key, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// A node.
    Node(NodeName),
    /// Somebody who serves there; which service and version, the value says.
    Member(NodeName),
    /// Of somebody else, or later than this.
    Other,
}

/// Whose key it is.
pub(super) fn parse_key(key: &str) -> Key {
    if let Some(name) = key.strip_prefix(NODES) {
        return name.parse().map_or(Key::Other, Key::Node);
    }
    let node = key.strip_prefix(MEMBERS).and_then(|rest| rest.split_once('/'));
    match node.map(|(node, _)| node.parse()) {
        Some(Ok(node)) => Key::Member(node),
        Some(Err(_)) | None => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let node: NodeName = "n1.example".parse().unwrap();
        let key = member_key(&node, &"web".parse().unwrap(), &"1.2.3-rc.1+b".parse().unwrap());
        assert_eq!(key, "member/n1.example/web/1.2.3-rc.1+b");
        assert!(key.starts_with(&member_prefix(&node)));
        assert_eq!(parse_key(&key), Key::Member(node.clone()));
        assert_eq!(parse_key(&node_key(&node)), Key::Node(node));
        for other in ["", "node/", "node/A", "node/a/b", "member/", "member/n1", "member//web/1.0.0", "operation/1"] {
            assert_eq!(parse_key(other), Key::Other, "{other}");
        }
    }
}
