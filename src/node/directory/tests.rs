use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use semver::VersionReq;
use serde::{Deserialize, Serialize};

use super::*;
use crate::node::{Capacity, Counts, Selector, State, Versions, member_key, node_key, select};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Server {
    name: Name,
    version: Version,
}

impl Offer for Server {
    fn service(&self) -> &Name {
        &self.name
    }

    fn version(&self) -> &Version {
        &self.version
    }
}

fn directory() -> Directory<Server> {
    Directory::new("here".parse().unwrap())
}

fn node(name: &str, labels: &[&str]) -> Node {
    Node {
        name: name.parse().unwrap(),
        identity: "0".repeat(32),
        address: Some("10.0.0.1:7700".parse().unwrap()),
        labels: labels.iter().map(|label| label.parse().unwrap()).collect(),
        capacity: Capacity { cpus: 2, memory: 1 << 30 },
        versions: Versions { regen: "0.1.0".to_owned(), protocol: 1, kernel: "6.1".to_owned() },
        counts: Counts::default(),
        state: State::Ready,
        started: DateTime::<Utc>::UNIX_EPOCH,
    }
}

fn entry(key: String, value: &impl Serialize) -> Entry {
    Entry { key, value: serde_json::to_vec(value).unwrap(), created: 1, modified: 1 }
}

fn node_entry(name: &str) -> Entry {
    entry(node_key(&name.parse().unwrap()), &node(name, &[]))
}

fn member_entry(node: &str, service: &str, version: &str) -> Entry {
    let server = Server { name: service.parse().unwrap(), version: version.parse().unwrap() };
    entry(member_key(&node.parse().unwrap(), &server.name, &server.version), &server)
}

fn came(entry: Entry) -> Event {
    Event { key: entry.key.clone(), entry: Some(entry), revision: 1 }
}

fn went(entry: &Entry) -> Event {
    Event { key: entry.key.clone(), entry: None, revision: 1 }
}

/// As the daemon chooses, without pre-releases.
fn resolve(directory: &Directory<Server>, service: &str, requirement: &str) -> Option<String> {
    let requirement = VersionReq::parse(requirement).unwrap();
    let now = directory.snapshot();
    let placed = now.resolve(&service.parse().unwrap(), |sorted| {
        let fits = |placed: &Placed<Server>| requirement.matches(&placed.offer.version);
        let Some(last) = sorted.iter().rposition(fits) else { return &[] };
        let first = sorted[..=last].iter().rposition(|placed| placed.offer.version != sorted[last].offer.version);
        &sorted[first.map_or(0, |first| first + 1)..=last]
    });
    placed.map(|placed| format!("{} on {}", placed.offer.version, placed.node))
}

#[test]
fn the_newest_that_satisfies_is_found_on_whatever_node() {
    let directory = directory();
    directory.apply(&[
        came(node_entry("n1")),
        came(member_entry("n1", "web", "1.2.0")),
        came(node_entry("n2")),
        came(member_entry("n2", "web", "1.10.0")),
        came(member_entry("n2", "db", "9.0.0")),
    ]);
    assert_eq!(resolve(&directory, "web", "^1").as_deref(), Some("1.10.0 on n2"));
    assert_eq!(resolve(&directory, "web", "~1.2").as_deref(), Some("1.2.0 on n1"));
    assert_eq!(resolve(&directory, "web", "^2"), None);
    assert_eq!(resolve(&directory, "nothing", "*"), None);
}

#[test]
fn nobody_is_sent_to_a_node_that_is_gone_nor_to_one_that_has_not_come() {
    let directory = directory();
    directory.apply(&[came(member_entry("n1", "web", "1.0.0"))]);
    assert_eq!(resolve(&directory, "web", "*"), None);
    directory.apply(&[came(node_entry("n1"))]);
    assert_eq!(resolve(&directory, "web", "*").as_deref(), Some("1.0.0 on n1"));
    directory.apply(&[went(&node_entry("n1"))]);
    assert_eq!(resolve(&directory, "web", "*"), None);
    assert_eq!(directory.snapshot().nodes().count(), 0);
}

#[test]
fn nodes_with_the_same_version_take_turns() {
    let directory = directory();
    for name in ["n1", "n2", "n3"] {
        directory.apply(&[came(node_entry(name)), came(member_entry(name, "web", "1.0.0"))]);
    }
    directory.apply(&[came(member_entry("n1", "web", "0.9.0"))]);
    let turns: Vec<_> = (0..6).map(|_| resolve(&directory, "web", "*").unwrap()).collect();
    assert_eq!(turns[..3], turns[3..]);
    assert_eq!(turns.iter().collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn who_serves_here_is_not_in_the_copy() {
    let directory = directory();
    directory.apply(&[came(node_entry("here")), came(member_entry("here", "web", "1.0.0"))]);
    assert_eq!(resolve(&directory, "web", "*"), None);
    assert!(directory.snapshot().node(&"here".parse().unwrap()).is_some());
}

#[test]
fn a_listing_takes_the_place_of_what_was_known() {
    let directory = directory();
    directory.apply(&[
        came(node_entry("n1")),
        came(node_entry("n2")),
        came(member_entry("n1", "web", "1.0.0")),
        came(member_entry("n2", "web", "2.0.0")),
    ]);
    directory.reset(NODES, &Listing { revision: 9, entries: vec![node_entry("n1")] });
    assert_eq!(resolve(&directory, "web", "*").as_deref(), Some("1.0.0 on n1"));
    let entries = vec![member_entry("n1", "db", "3.0.0")];
    directory.reset(MEMBERS, &Listing { revision: 9, entries });
    assert_eq!(resolve(&directory, "web", "*"), None);
    assert_eq!(resolve(&directory, "db", "*").as_deref(), Some("3.0.0 on n1"));
    let services: Vec<_> = directory.snapshot().services().map(ToString::to_string).collect();
    assert_eq!(services, ["db"]);
}

#[test]
fn what_cannot_be_read_is_passed_over() {
    let directory = directory();
    let mut broken = member_entry("n1", "web", "2.0.0");
    broken.value = b"{".to_vec();
    let mut foreign = node_entry("n2");
    foreign.key = "node/n3".to_owned();
    directory.apply(&[came(node_entry("n1")), came(broken), came(member_entry("n1", "web", "1.0.0")), came(foreign)]);
    assert_eq!(resolve(&directory, "web", "*").as_deref(), Some("1.0.0 on n1"));
    assert_eq!(directory.snapshot().nodes().count(), 1);
}

#[test]
fn a_copy_that_is_not_fed_says_for_how_long_and_goes_on_answering() {
    let directory = directory();
    assert!(directory.stale_for().is_some(), "nothing was heard yet");
    directory.apply(&[came(node_entry("n1")), came(member_entry("n1", "web", "1.0.0"))]);
    directory.set_fed();
    assert_eq!(directory.stale_for(), None);
    directory.set_unfed();
    std::thread::sleep(Duration::from_millis(20));
    directory.set_unfed();
    assert!(directory.stale_for().unwrap() >= Duration::from_millis(19));
    assert!(resolve(&directory, "web", "*").is_some());
}

#[test]
fn who_waits_for_changes_is_woken_by_each_and_by_nothing_else() {
    let directory = directory();
    let bell = directory.bell().unwrap();
    let is_rung =
        || poll(&mut [PollFd::new(&*bell, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1);
    bell.silence();
    directory.apply(&[went(&node_entry("n1")), went(&member_entry("n1", "web", "1.0.0"))]);
    assert!(!is_rung(), "nothing has changed");
    directory.apply(&[came(node_entry("n1"))]);
    assert!(is_rung());
    bell.silence();
    assert!(!is_rung());
}

#[test]
fn selectors_mean_nodes_once_each_and_none_is_an_error() {
    let nodes = [node("n1", &["zone=a"]), node("n2", &["zone=b", "disk=ssd"]), node("n3", &["zone=a"])].map(Arc::new);
    let chosen = |texts: &[&str]| {
        let selectors: Vec<Selector> = texts.iter().map(|text| text.parse().unwrap()).collect();
        select(&selectors, &nodes).map(|nodes| nodes.iter().map(|node| node.name.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(chosen(&["all"]).unwrap(), ["n1", "n2", "n3"]);
    assert_eq!(chosen(&["label=zone=a", "node=n3", "label=disk=ssd"]).unwrap(), ["n1", "n2", "n3"]);
    assert_eq!(chosen(&["node=n2"]).unwrap(), ["n2"]);
    let error = chosen(&["all", "label=zone=c"]).unwrap_err().to_string();
    assert!(error.contains("'label=zone=c': no node is meant: there are n1, n2, n3"), "{error}");
    for bad in ["", "n1", "node=", "node=A", "label=zone", "label==a", "ALL"] {
        assert!(bad.parse::<Selector>().is_err(), "{bad} was taken");
    }
    for good in ["all", "node=n1.example", "label=zone=a"] {
        assert_eq!(good.parse::<Selector>().unwrap().to_string(), good);
    }
}

proptest! {
    /// Whatever comes in whatever order, those are shown whose key and whose node's key are there.
    #[test]
    fn the_copy_is_what_the_keys_say(steps in prop::collection::vec((0..3u8, 0..3u8, 0..3u8, any::<bool>()), 0..60)) {
        let directory = directory();
        let (mut nodes, mut members) = (BTreeSet::new(), BTreeSet::new());
        for (what, node, version, comes) in steps {
            let (node, version) = (format!("n{node}"), format!("1.{version}.0"));
            let entry = if what == 0 { node_entry(&node) } else { member_entry(&node, "web", &version) };
            directory.apply(&[if comes { came(entry) } else { went(&entry) }]);
            match (what, comes) {
                (0, true) => drop(nodes.insert(node)),
                (0, false) => drop(nodes.remove(&node)),
                (_, true) => drop(members.insert((version, node))),
                (_, false) => drop(members.remove(&(version, node))),
            }
        }
        let now = directory.snapshot();
        let shown: Vec<_> =
            now.members().map(|placed| (placed.offer.version.to_string(), placed.node.to_string())).collect();
        let expected: Vec<_> = members.into_iter().filter(|(_, node)| nodes.contains(node)).collect();
        prop_assert_eq!(shown, expected);
        prop_assert_eq!(now.nodes().map(|node| node.name.to_string()).collect::<Vec<_>>(),
            nodes.into_iter().collect::<Vec<_>>());
    }
}
