//! Nodes that share a real etcd: who is registered, who is found where, and what becomes of that when etcd, a lease or a node
//! goes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "etcd")]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use harness::etcd::Etcd as Server;
use harness::{World, eventually};
use regen::config;
use regen::error::Kind;
use regen::node::{Node, State};
use regen::ops::cluster::{Cluster, Found, Standing, node_here};
use regen::registry::etcd::Settings;
use regen::registry::{Etcd, Put, Registry, Transaction};
use regen::service::roster::{Member, Roster};
use serde_json::json;

/// A node in this process.
#[derive(Debug)]
struct Host {
    roster: Arc<Roster>,
    cluster: Cluster,
}

fn registry(server: &Server) -> Arc<dyn Registry> {
    Arc::new(Etcd::open(Settings::new(&server.url(), &config::Cluster::default()).unwrap()).unwrap())
}

fn node(name: &str, identity: char) -> Node {
    let address = Some("192.0.2.1:7700".parse().unwrap());
    node_here(name.parse().unwrap(), identity.to_string().repeat(32), address, vec!["zone=a".parse().unwrap()], 1)
}

fn member(name: &str, version: &str, listen: &[&str]) -> Member {
    let listen: Vec<_> = listen.iter().map(|address| json!({"name": name, "address": address})).collect();
    let instance = format!("{name}-{}", version.replace('.', "-"));
    serde_json::from_value(json!({"name": name, "version": version, "instance": instance, "listen": listen})).unwrap()
}

impl Host {
    fn start(server: &Server, name: &str) -> Self {
        let roster = Roster::new();
        let identity = name.chars().last().unwrap();
        let cluster = Cluster::open(registry(server), node(name, identity), Arc::clone(&roster)).unwrap();
        Self { roster, cluster }
    }

    /// `VERSION on NODE at ADDRESS`, or why not.
    fn resolve(&self, wanted: &str) -> String {
        let (node, member) = match self.cluster.resolve(&wanted.parse().unwrap()) {
            Ok(Found::Here(member)) => ("this one".to_owned(), member),
            Ok(Found::There { node, member, .. }) => (node.to_string(), member),
            Err(error) => return error.to_string(),
        };
        format!("{} on {node} at {}", member.version, member.listen[0].address)
    }

    fn await_resolved(&self, wanted: &str, expected: &str) {
        eventually(expected, || self.resolve(wanted) == expected);
    }

    fn knows(&self, name: &str) -> bool {
        self.cluster.directory().snapshot().node(&name.parse().unwrap()).is_some()
    }
}

#[test]
fn services_of_all_nodes_are_found_and_own_ones_first() {
    let world = World::new("cluster");
    let server = Server::start(&world);
    let (one, two) = (Host::start(&server, "n1"), Host::start(&server, "n2"));
    one.roster.add(member("web", "1.2.0", &["tcp://127.0.0.1:80", "tcp://0.0.0.0:8080"]));
    one.roster.add(member("web", "2.0.0", &["tcp://192.0.2.7:80"]));
    one.roster.add(member("secret", "1.0.0", &["unix:/run/secret", "tcp://127.0.0.1:1"]));
    two.await_resolved("web", "2.0.0 on n1 at tcp://192.0.2.7:80");
    two.await_resolved("web@^1", "1.2.0 on n1 at tcp://192.0.2.1:8080");
    eventually("the copy is of now", || two.cluster.directory().stale_for().is_none());
    assert_eq!(
        two.resolve("web@^3"),
        "resolve 'web@^3': service 'web' has no version that satisfies ^3: there are 1.2.0, 2.0.0"
    );
    assert!(two.resolve("secret").contains("no version of service 'secret' is serving"));
    assert!(two.resolve("we").ends_with("did you mean 'web'"));
    two.roster.add(member("web", "1.1.0", &["unix:/run/web"]));
    two.await_resolved("web", "1.1.0 on this one at unix:/run/web");
    one.roster.withdraw(&"web-2-0-0".parse().unwrap());
    eventually("it is gone", || two.resolve("web@^2").ends_with("satisfies ^2: there are 1.1.0, 1.2.0"));
    assert!(one.knows("n2") && one.cluster.directory().stale_for().is_none());
}

#[test]
fn a_second_host_of_a_name_is_refused_and_the_next_daemon_of_the_same_goes_on() {
    let world = World::new("cluster-name");
    let server = Server::start(&world);
    let (one, two) = (Host::start(&server, "n1"), Host::start(&server, "n2"));
    one.roster.add(member("web", "1.0.0", &["tcp://192.0.2.7:80"]));
    one.roster.add(member("db", "1.0.0", &["tcp://192.0.2.7:81"]));
    two.await_resolved("db", "1.0.0 on n1 at tcp://192.0.2.7:81");
    let error = Cluster::open(registry(&server), node("n1", 'x'), Roster::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    let words = error.to_string();
    assert!(words.contains("register node 'n1': another host at 192.0.2.1:7700 has that name since "), "{words}");
    // As after a SIGTERM: what is registered stays, and what is not there any more goes when the next one comes.
    drop(one);
    assert_eq!(two.resolve("web"), "1.0.0 on n1 at tcp://192.0.2.7:80");
    let again = Host::start(&server, "n1");
    again.roster.add(member("web", "1.0.0", &["tcp://192.0.2.7:80"]));
    eventually("what is gone is told", || two.resolve("db").contains("no version of service 'db'"));
    two.await_resolved("web", "1.0.0 on n1 at tcp://192.0.2.7:80");
    again.cluster.leave().unwrap();
    eventually("the node is gone", || !two.knows("n1") && two.resolve("web").contains("no version"));
}

#[test]
fn while_etcd_is_away_the_copy_answers_with_its_age_and_then_all_agree_again() {
    let world = World::new("cluster-away");
    let mut server = Server::start(&world);
    let (one, two) = (Host::start(&server, "n1"), Host::start(&server, "n2"));
    one.roster.add(member("web", "1.0.0", &["tcp://192.0.2.7:80"]));
    two.await_resolved("web", "1.0.0 on n1 at tcp://192.0.2.7:80");
    server.kill(0);
    eventually("the copy is stale", || two.cluster.directory().stale_for().is_some());
    let Found::There { stale, .. } = two.cluster.resolve(&"web".parse().unwrap()).unwrap() else { panic!("here") };
    assert!(stale.is_some());
    one.roster.add(member("web", "1.1.0", &["tcp://192.0.2.7:80"]));
    one.roster.withdraw(&"web-1-0-0".parse().unwrap());
    server.restart(0);
    two.await_resolved("web", "1.1.0 on n1 at tcp://192.0.2.7:80");
    eventually("the copy is of now", || two.cluster.directory().stale_for().is_none());
    eventually("what went is gone", || two.resolve("web@=1.0.0").ends_with("there is 1.1.0"));
}

#[test]
fn a_daemon_that_starts_without_etcd_joins_when_it_comes() {
    let world = World::new("cluster-late");
    let mut server = Server::start(&world);
    server.kill(0);
    let one = Host::start(&server, "n1");
    assert!(matches!(one.cluster.standing(), Standing::Failing(_)), "{:?}", one.cluster.standing());
    assert!(one.cluster.directory().stale_for().is_some());
    one.roster.add(member("web", "1.0.0", &["tcp://127.0.0.1:80"]));
    assert_eq!(one.resolve("web"), "1.0.0 on this one at tcp://127.0.0.1:80");
    server.restart(0);
    eventually("it has joined", || matches!(one.cluster.standing(), Standing::Joined(_)) && one.knows("n1"));
}

#[test]
fn a_node_whose_lease_is_lost_registers_anew() {
    let world = World::new("cluster-lease");
    let server = Server::start(&world);
    let (one, two) = (Host::start(&server, "n1"), Host::start(&server, "n2"));
    one.roster.add(member("web", "1.0.0", &["tcp://192.0.2.7:80"]));
    two.await_resolved("web", "1.0.0 on n1 at tcp://192.0.2.7:80");
    let Standing::Joined(lease) = one.cluster.standing() else { panic!("not registered") };
    server.ctl(&["lease", "revoke", &format!("{:x}", lease.0)]);
    // It may be back before anybody looks.
    let is_new = || matches!(one.cluster.standing(), Standing::Joined(other) if other != lease);
    eventually("it has another lease", is_new);
    eventually("it is known", || two.knows("n1"));
    two.await_resolved("web", "1.0.0 on n1 at tcp://192.0.2.7:80");
}

#[test]
fn what_is_changed_in_a_record_is_told() {
    let world = World::new("cluster-record");
    let server = Server::start(&world);
    let (one, two) = (Host::start(&server, "n1"), Host::start(&server, "n2"));
    one.cluster.change(|node| node.state = State::Drained);
    one.roster.add(member("web", "1.0.0", &["unix:/run/web"]));
    let record = || two.cluster.directory().snapshot().node(&"n1".parse().unwrap()).cloned();
    eventually("it is drained", || {
        record().is_some_and(|node| node.state == State::Drained && node.counts.services == 1)
    });
    let node = record().unwrap();
    assert!(node.capacity.cpus > 0 && node.capacity.memory > 0 && node.labels[0].to_string() == "zone=a");
}

#[test]
fn five_hundred_services_are_told_whole_and_foreign_keys_harm_nobody() {
    let world = World::new("cluster-many");
    let server = Server::start(&world);
    let registry = registry(&server);
    let puts =
        ["node/n9", "member/n9/web/1.0.0", "member/x", "node/UPPER"].map(|key| Put::new(key, b"{\"a\"".to_vec()));
    registry.apply(&Transaction { puts: puts.into(), ..Transaction::default() }).unwrap();
    let (one, two) = (Host::start(&server, "n1"), Host::start(&server, "n2"));
    for number in 0..500 {
        one.roster.add(member(&format!("s{number}"), "1.0.0", &["tcp://192.0.2.7:80"]));
    }
    eventually("all are known", || two.cluster.directory().snapshot().members().count() == 500);
    assert!(!two.knows("n9"));
    one.cluster.leave().unwrap();
    eventually("all are gone", || two.cluster.directory().snapshot().members().count() == 0);
    let left = registry.list("member/n1/").unwrap();
    assert!(left.entries.is_empty(), "{left:?}");
    // The lease was given back, and nobody registers again.
    std::thread::sleep(Duration::from_millis(300));
    assert!(registry.get("node/n1").unwrap().is_none());
}
