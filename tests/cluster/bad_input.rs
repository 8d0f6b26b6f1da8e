//! What is said when something is missing, or wrong.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Output, eventually};
use crate::node::Nodes;

/// Keys of the registry that begin with this.
fn keys(nodes: &Nodes, prefix: &str) -> Vec<String> {
    let found = nodes.ctl(0, &["get", "--prefix", "--keys-only", &format!("regen/{prefix}")]);
    found.success().stdout().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// A daemon did not start, and said why in its last line.
#[track_caller]
fn refuses(output: &Output, words: &str) {
    let last = output.code(1).stderr().lines().last().unwrap();
    assert!(last.starts_with("regen: ") && last.contains(words), "expected {words:?} last: {}", output.stderr());
}

#[test]
fn a_daemon_that_starts_without_etcd_says_so_and_takes_part_when_it_is_there() {
    let nodes = Nodes::without_daemons("late");
    (0..3).for_each(|index| nodes.serve(index, &[]));
    nodes.add_sleeper(0, ("web", "1.0.0", 8080), &[]).fails_with(1, "etcd");
    let listed = nodes.regen(0, &["node", "ls"]);
    assert!(listed.success().stdout().contains("The registry is away"), "{}", listed.stdout());
    assert_eq!(nodes.known_to(0), ["n0"]);
    nodes.regen(0, &["node", "drain", "n1"]).fails_with(1, "");
    nodes.begin_etcd();
    nodes.await_all();
    nodes.add_sleeper(0, ("web", "1.0.0", 8080), &["node=n1"]).success();
    eventually("it is found", || nodes.resolve(2, "web").is_some());
}

#[test]
fn while_etcd_is_away_clients_are_sent_on_and_changes_are_refused() {
    let nodes = Nodes::new("away");
    nodes.add_sleeper(0, ("web", "1.0.0", 8080), &["node=n1"]).success();
    eventually("it is found", || nodes.resolve(2, "web").is_some());
    nodes.kill_member(1);
    nodes.kill_member(2);
    // Nobody knows yet, or everybody does: the answer is there in any case.
    eventually("how old it is is told", || nodes.resolve(2, "web").unwrap()["stale_ms"].is_u64());
    assert_eq!(nodes.resolve(2, "web").unwrap()["node"], "n1");
    nodes.regen(2, &["service", "restart", "web", "--on", "node=n1"]).fails_with(1, "etcd");
    nodes.regen(1, &["service", "restart", "web"]).fails_with(1, "etcd");
    nodes.regen(1, &["op", "ls"]).fails_with(1, "etcd");
    assert_eq!(nodes.json(1, &["service", "ls", "--json"])[0]["state"], "serving");
    nodes.restart_member(1);
    nodes.restart_member(2);
    eventually("changes are taken again", || nodes.regen(1, &["service", "restart", "web"]).code == 0);
    nodes.regen(2, &["service", "restart", "web", "--on", "node=n1"]).success();
    eventually("it is of now again", || nodes.resolve(2, "web").unwrap().get("stale_ms").is_none());
    // What was refused, or not answered, holds nothing.
    eventually("no marker is left", || keys(&nodes, "marker/").is_empty());
}

#[test]
fn a_name_is_one_hosts_and_a_certificate_one_nodes() {
    let nodes = Nodes::new("names");
    let (url, address) = (nodes.url(), nodes.address(2));
    assert_eq!(nodes.end(2, Signal::SIGTERM).code, 0);
    let serve = |certificates: &str, more: &[&str]| {
        let options = ["--cluster", &url, "--address", &address, "--certs", certificates];
        nodes.start_in_vain(2, &[&options, more].concat())
    };
    refuses(&serve(&nodes.certificates_of(0), &[]), "another host at 10.77.0.1:7700 has that name since");
    refuses(&serve(&nodes.certificates_of(2), &["--node", "n1"]), "its certificate is that of node 'n2'");
    refuses(&serve("/nowhere", &[]), "/nowhere");
    nodes.regen(0, &["service", "restart", "web", "--on", "node=n7"]).fails_with(1, "there are n0, n1, n2");
    nodes.regen(0, &["service", "restart", "web", "--on", "n1"]).fails_with(1, "n1");
    // Somebody else's certificates are registered as anybody's; nobody lets them in, nor are they believed.
    let strangers = nodes.world().base().join("strangers");
    let mut make = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/certs"));
    make.arg(&strangers).arg("n2");
    nodes.world().finish(make).success();
    let strangers = strangers.join("n2");
    nodes.start(2, &["--cluster", &url, "--address", &address, "--certs", strangers.to_str().unwrap()]);
    nodes.await_all();
    let submit = |from: usize, to: &str| {
        let id = nodes.submit(from, "probe", &json!([to]), &json!({}));
        nodes.regen(from, &["op", "wait", &id])
    };
    submit(0, "n2:probe/1").fails_with(1, "of another authority");
    submit(2, "n0:probe/1").fails_with(1, "of another authority");
}

#[test]
fn a_node_without_certificates_says_what_it_cannot_do() {
    let nodes = Nodes::new("bare");
    assert_eq!(nodes.end(1, Signal::SIGTERM).code, 0);
    nodes.start(1, &["--cluster", &nodes.url(), "--node", "n1"]);
    nodes.await_all();
    eventually("it is known", || nodes.node(0, "n1")["address"].is_null());
    nodes.add_sleeper(1, ("web", "1.0.0", 8080), &["node=n0"]).fails_with(1, "this daemon has no certificates");
    nodes.regen(1, &["node", "drain", "n0"]).fails_with(1, "this daemon has no certificates");
    nodes.add_sleeper(0, ("web", "1.0.0", 8080), &["node=n1"]).fails_with(1, "its daemon lets no other nodes in");
    let id = nodes.submit(0, "probe", &json!(["n0:probe/1"]), &json!({"delay_ms": 600_000}));
    nodes.regen(1, &["op", "cancel", &id]).fails_with(1, "node 'n0' has it, and this daemon has no certificates");
    nodes.regen(0, &["op", "cancel", &id]).success();
    // What is its own it does.
    nodes.add_sleeper(1, ("web", "1.0.0", 8080), &[]).success();
    nodes.regen(1, &["node", "drain", "n1"]).success();
    nodes.regen(1, &["node", "drain", "n1", "--undo"]).success();
}

#[test]
fn etcd_asks_for_a_user_and_the_right_password() {
    let nodes = Nodes::without_daemons("user");
    nodes.begin_etcd();
    for arguments in [
        ["user", "add", "root:rootword"].as_slice(),
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "regen:secret"],
        &["role", "add", "regen"],
        &["role", "grant-permission", "regen", "readwrite", "--prefix=true", "regen/"],
        &["user", "grant-role", "regen", "regen"],
        &["auth", "enable"],
    ] {
        nodes.ctl(0, arguments).success();
    }
    let url = nodes.url();
    refuses(&nodes.start_in_vain(0, &["--cluster", &url, "--node", "n0"]), "user");
    let configure = |index: usize, password: &str| {
        let path = nodes.world().base().join(format!("password-{index}"));
        fs::write(&path, format!("{password}\n")).unwrap();
        let text = format!("[cluster]\nregistry = {}\nuser = \"regen\"\npassword-file = {}\n", json!(url), json!(path));
        fs::write(nodes.host(index).configuration(), text).unwrap();
    };
    configure(0, "wrong");
    refuses(&nodes.start_in_vain(0, &["--node", "n0"]), "password");
    (0..3).for_each(|index| configure(index, "secret"));
    (0..3).for_each(|index| {
        nodes.start(index, &["--address", &nodes.address(index), "--certs", &nodes.certificates_of(index)]);
    });
    nodes.await_all();
    nodes.add_sleeper(0, ("web", "1.0.0", 8080), &["node=n1"]).success();
    eventually("it is found", || nodes.resolve(2, "web").is_some());
}

#[test]
fn a_node_whose_lease_is_gone_takes_part_again_and_what_it_held_is_unknown() {
    let nodes = Nodes::new("lease");
    nodes.add_sleeper(1, ("web", "1.0.0", 8080), &[]).success();
    let id = nodes.submit(0, "probe", &json!(["n0:probe/1", "n1:probe/1"]), &json!({"delay_ms": 600_000}));
    eventually("it is held", || keys(&nodes, "marker/").len() == 2);
    let leases = nodes.ctl(0, &["lease", "list"]);
    for lease in leases.success().stdout().lines().skip(1) {
        nodes.ctl(0, &["lease", "revoke", lease]).success();
    }
    assert_eq!(keys(&nodes, "marker/"), [""; 0]);
    eventually("all know all, and who serves", || {
        (0..3).all(|index| nodes.known_to(index).len() == 3 && nodes.resolve(index, "web").is_some())
    });
    // Another one may have it now.
    let other = nodes.submit(2, "probe", &json!(["n0:probe/1"]), &json!({}));
    nodes.regen(2, &["op", "wait", &other]).success();
    let mut ended = Value::Null;
    eventually("it is over", || {
        ended = nodes.operation(2, &id);
        !["queued", "running"].contains(&ended["state"].as_str().unwrap())
    });
    assert_eq!(ended["state"], "unknown", "{ended}");
    assert!(ended["error"].as_str().unwrap().contains("lost its lease"), "{ended}");
}
