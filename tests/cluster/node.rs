//! Hosts with an etcd over them and a daemon on each; and what is said of nodes.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::harness::site::Site;

/// Three hosts whose daemons act as one.
pub struct Nodes(Site);

impl std::ops::Deref for Nodes {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.0
    }
}

impl Nodes {
    /// All of them are there, and know each other.
    pub fn new(name: &str) -> Self {
        let nodes = Self::without_daemons(name);
        nodes.begin_etcd();
        (0..nodes.len()).for_each(|index| nodes.serve(index, &[]));
        nodes.await_all();
        nodes
    }

    /// Hosts with certificates, and nothing else.
    pub fn without_daemons(name: &str) -> Self {
        let nodes = Self(Site::new(name, 3));
        let mut make = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/certs"));
        make.arg(nodes.certificates()).args((0..nodes.len()).map(|index| nodes.host(index).name.clone()));
        nodes.world().finish(make).success();
        nodes
    }

    fn certificates(&self) -> PathBuf {
        self.world().base().join("certs")
    }

    /// `--certs` of a node.
    pub fn certificates_of(&self, index: usize) -> String {
        self.certificates().join(&self.host(index).name).to_str().unwrap().to_owned()
    }

    /// `--address` of a node.
    pub fn address(&self, index: usize) -> String {
        format!("{}:7700", self.host(index).address)
    }

    /// Starts the daemon of a node, with what else is said.
    #[track_caller]
    pub fn serve(&self, index: usize, more: &[&str]) {
        let (url, address, certificates) = (self.url(), self.address(index), self.certificates_of(index));
        let label = format!("zone=z{index}");
        let options = ["--cluster", &url, "--address", &address, "--certs", &certificates, "--label", &label];
        self.start(index, &[&options, more].concat());
    }

    /// Kills the daemon of a node, and starts the next.
    #[track_caller]
    pub fn crash(&self, index: usize) {
        assert_eq!(self.end(index, Signal::SIGKILL).code, 1009);
        self.serve(index, &[]);
    }

    /// The names of the nodes that one of them knows.
    pub fn known_to(&self, index: usize) -> Vec<String> {
        let listed = self.json(index, &["node", "ls", "--json"]);
        listed.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    }

    /// What one node says of another.
    pub fn node(&self, index: usize, name: &str) -> Value {
        let listed = self.json(index, &["node", "ls", "--json"]);
        listed.as_array().unwrap().iter().find(|node| node["name"] == name).cloned().unwrap_or_default()
    }

    /// Waits until all know all.
    #[track_caller]
    pub fn await_all(&self) {
        let names: Vec<_> = (0..self.len()).map(|index| self.host(index).name.clone()).collect();
        for index in 0..self.len() {
            eventually("all know all", || self.known_to(index) == names);
        }
    }

    /// Adds a service that only sleeps, at a port, by one node and on others.
    #[track_caller]
    pub fn add_sleeper(
        &self,
        index: usize,
        (name, version, port): (&str, &str, u16),
        on: &[&str],
    ) -> crate::harness::Output {
        let (listen, rootfs) = (format!("tcp://0.0.0.0:{port}"), self.world().rootfs());
        let mut arguments = vec!["service", "add", name, "--version", version, "--listen", &listen];
        arguments.extend(["--rootfs", rootfs.to_str().unwrap(), "--ready", "none", "--json"]);
        arguments.extend(on.iter().flat_map(|on| ["--on", on]));
        self.regen(index, &[&arguments[..], &["--", "sleep", "100000"]].concat())
    }

    /// Where a node sends clients, or nothing.
    pub fn resolve(&self, index: usize, wanted: &str) -> Option<Value> {
        let output = self.regen(index, &["resolve", wanted, "--json"]);
        (output.code == 0).then(|| serde_json::from_str(output.stdout()).unwrap())
    }

    /// Submits an operation with targets by name, and gives its id.
    #[track_caller]
    pub fn submit(&self, index: usize, kind: &str, targets: &Value, parameters: &Value) -> String {
        let [kind, targets, parameters] =
            [format!("kind={kind}"), format!("targets={targets}"), format!("parameters={parameters}")];
        let method = "run.regen.Operation.Submit";
        self.json(index, &["call", "--json", method, &kind, &targets, &parameters])["operation"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// An operation as one node tells of it.
    #[track_caller]
    pub fn operation(&self, index: usize, id: &str) -> Value {
        self.json(index, &["op", "show", id, "--json"])
    }

    fn clear(&self, index: usize) {
        for noun in ["service", "template"] {
            let listed = self.regen(index, &[noun, "ls", "--json"]);
            let listed: Value = serde_json::from_str(listed.stdout()).unwrap_or(json!([]));
            let mut names: Vec<_> = listed.as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
            names.dedup();
            for name in names {
                self.regen(index, &[noun, "rm", "--force", name]);
            }
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A daemon that is stopped would answer nobody; the world cleans up.
            return;
        }
        let with_daemons: Vec<_> = (0..self.len()).filter(|index| self.has_daemon(*index)).collect();
        with_daemons.iter().for_each(|index| self.clear(*index));
        with_daemons.iter().for_each(|index| drop(self.end(*index, Signal::SIGTERM)));
    }
}

#[test]
fn nodes_know_each_other_with_what_they_have() {
    let nodes = Nodes::new("know");
    let known = nodes.node(2, "n0");
    assert_eq!((&known["state"], &known["own"]), (&json!("ready"), &json!(false)), "{known}");
    assert_eq!((&known["labels"], &known["address"]), (&json!(["zone=z0"]), &json!(nodes.address(0))));
    assert_eq!(nodes.node(2, "n2")["own"], true);
    let rootfs = nodes.world().rootfs();
    let ring = ["run", "--rootfs", rootfs.to_str().unwrap(), "--ring", "alice", "box", "--", "touch", "/root/x"];
    nodes.regen(0, &ring).success();
    nodes.regen(0, &["ring", "pack", "alice"]).success();
    nodes.add_sleeper(0, ("web", "1.0.0", 8080), &[]).success();
    eventually("what it has is counted", || {
        let known = nodes.node(1, "n0");
        (&known["rings"], &known["services"], &known["templates"]) == (&json!(1), &json!(1), &json!(0))
    });
    assert!(nodes.regen(1, &["node", "ls"]).success().stdout().contains("n1*"));
    // One that ends is there until its lease has run out; the next daemon of it is not taken for another.
    nodes.crash(0);
    nodes.await_all();
}

#[test]
fn nothing_is_placed_on_a_drained_node_and_nobody_is_sent_there() {
    let nodes = Nodes::new("drain");
    nodes.add_sleeper(1, ("web", "1.0.0", 8080), &[]).success();
    eventually("it is found", || nodes.resolve(0, "web").is_some());
    let drained = nodes.json(0, &["node", "drain", "n1", "--json"]);
    assert_eq!(drained, json!({"name": "n1", "state": "drained"}));
    for index in 0..3 {
        eventually("all know it", || nodes.node(index, "n1")["state"] == "drained");
    }
    eventually("nobody is sent there", || nodes.resolve(0, "web").is_none());
    assert_eq!(nodes.resolve(1, "web").unwrap()["instance"], "web-1.0.0-1", "its own clients go on");
    nodes.add_sleeper(0, ("more", "1.0.0", 8081), &["node=n1"]).fails_with(1, "all of them are drained");
    let placed = nodes.add_sleeper(0, ("more", "1.0.0", 8081), &["all"]);
    let placed: Value = serde_json::from_str(placed.success().stdout()).unwrap();
    let targets: Vec<_> = placed.as_array().unwrap().iter().map(|result| &result["target"]).collect();
    assert_eq!(targets, ["n0:service/more@1.0.0", "n2:service/more@1.0.0"]);
    // Who names a target does not choose: the node itself says no.
    let parameters = json!({"name": "late", "version": "1.0.0", "listen": [], "settings": {}});
    let id = nodes.submit(0, "service-add", &json!(["n1:service/late@1.0.0"]), &parameters);
    nodes.regen(0, &["op", "wait", &id]).fails_with(1, "the node is drained");
    // What is there can still be changed.
    nodes.regen(0, &["service", "restart", "web", "--on", "node=n1"]).success();
    nodes.crash(1);
    nodes.await_all();
    assert_eq!(nodes.node(0, "n1")["state"], "drained", "it is forgotten by the next daemon");
    nodes.regen(2, &["node", "drain", "n1", "--undo"]).success();
    eventually("clients are sent there again", || nodes.resolve(0, "web").is_some());
    nodes.add_sleeper(0, ("late", "1.0.0", 8082), &["node=n1"]).success();
}
