//! Certificates that are not good, and what is said of each.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::Utc;
use regen::control::remote::Certificates;

use crate::authority::Authority;
use crate::harness::eventually;
use crate::node::{Node, ask, dialer};

fn refusal(directory: &std::path::Path) -> String {
    Certificates::open(directory).unwrap_err().to_string()
}

#[test]
fn a_certificate_that_runs_out_is_refused_by_both_ends() {
    let authority = Authority::new(&["n1", "n2"]);
    let now = Utc::now();
    // Whole seconds: time enough to read them.
    let soon = now + Duration::from_secs(4);
    for name in ["old", "older"] {
        authority.make_within(name, now - Duration::from_secs(3600), soon);
    }
    let (caller, called) = (dialer(authority.certificates("old")), Node::start(authority.certificates("older")));
    let (good, n2) = (dialer(authority.certificates("n1")), Node::start(authority.certificates("n2")));
    eventually("the certificates have run out", || Utc::now() > soon + Duration::from_secs(1));
    let error = ask(&caller, "n2", n2.address).unwrap_err();
    assert!(
        error.ends_with("it refuses this node's certificate: it has expired, or is not valid yet by its clock"),
        "{error}"
    );
    let error = ask(&good, "older", called.address).unwrap_err();
    let until = soon.format("%Y-%m-%dT%H:%M:%SZ");
    assert!(error.ends_with(&format!(": the certificate has expired at {until}")), "{error}");
    let error = refusal(&authority.path("old"));
    assert!(error.ends_with(&format!("old/node.pem': the certificate has expired at {until}")), "{error}");
}

#[test]
fn a_certificate_of_tomorrow_is_refused_with_both_clocks() {
    let authority = Authority::new(&["n1", "n2"]);
    let now = Utc::now();
    let (from, until) = (now + Duration::from_secs(86400), now + Duration::from_secs(2 * 86400));
    authority.make_within("n3", from, until);
    let error = refusal(&authority.path("n3"));
    let from = from.format("%Y-%m-%dT%H:%M:%SZ");
    assert!(error.contains(&format!("the certificate is not valid before {from}, and this clock says ")), "{error}");
    // One that knows nothing of that.
    let n2 = Node::start(authority.certificates("n2"));
    assert!(s_client(&authority, "n3", &n2).contains("alert certificate expired"));
    assert_eq!(n2.gauge.connections(), 0);
}

#[test]
fn certificates_of_another_authority_are_refused_by_both_ends() {
    let (ours, theirs) = (Authority::new(&["n1", "n2"]), Authority::new(&["n1"]));
    let n2 = Node::start(ours.certificates("n2"));
    let error = ask(&dialer(theirs.certificates("n1")), "n2", n2.address).unwrap_err();
    assert!(error.ends_with("the certificate is of another authority"), "{error}");
    // One that believes both, while the other does not.
    let both = fs::read_to_string(theirs.path("ca.pem")).unwrap() + &fs::read_to_string(ours.path("ca.pem")).unwrap();
    fs::write(theirs.path("n1/ca.pem"), both).unwrap();
    let error = ask(&dialer(theirs.certificates("n1")), "n2", n2.address).unwrap_err();
    assert!(error.ends_with("it refuses this node's certificate: it believes another authority"), "{error}");
    assert_eq!(n2.gauge.connections(), 0);
}

#[test]
fn a_node_under_another_ones_address_is_found_out() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let error = ask(&dialer(authority.certificates("n1")), "n3", n2.address).unwrap_err();
    assert!(error.ends_with("the certificate is another node's: 'n2'"), "{error}");
}

#[test]
fn one_without_a_certificate_or_with_an_older_tls_is_told_so_by_tls() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let nothing = s_client_with(&n2, &[]);
    assert!(nothing.contains("alert certificate required"), "{nothing}");
    let older = s_client_with(&n2, &["-tls1_2"]);
    assert!(older.contains("alert protocol version"), "{older}");
    assert_eq!(n2.gauge.connections(), 0);
}

#[test]
fn what_speaks_no_tls_is_told_apart() {
    let authority = Authority::new(&["n1"]);
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut stream = plain.accept().unwrap().0;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // What is not read makes the end a reset.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let error = ask(&dialer(authority.certificates("n1")), "n2", address).unwrap_err();
    assert!(error.ends_with("what it sends is no TLS"), "{error}");
    thread.join().unwrap();
}

#[test]
fn files_that_are_replaced_count_from_the_next_connection_on() {
    let authority = Authority::new(&["n1", "n2"]);
    let n2 = Node::start(authority.certificates("n2"));
    let dialer = dialer(authority.certificates("n1"));
    ask(&dialer, "n2", n2.address).unwrap();
    authority.renew(&["n1", "n2"]);
    ask(&dialer, "n2", n2.address).unwrap();
    let fresh = Node::start(authority.certificates("n2"));
    ask(&dialer, "n2", fresh.address).unwrap();
    // Half of a change is none.
    fs::write(authority.path("n1/node.pem"), "-----BEGIN CERT").unwrap();
    ask(&dialer, "n2", fresh.address).unwrap();
    authority.renew(&["n2"]);
    let third = Node::start(authority.certificates("n2"));
    assert!(ask(&dialer, "n2", third.address).unwrap_err().ends_with("of another authority"));
}

#[test]
fn files_that_are_no_use_are_named_with_what_to_do() {
    let authority = Authority::new(&["n1", "n2"]);
    let directory = authority.path("n1");
    let key = directory.join("node.key");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let error = refusal(&directory);
    let words = format!("others may read or write it: its mode is 0640: run 'chmod 600 {}'", key.display());
    assert!(error.ends_with(&words), "{error}");
    fs::copy(authority.path("n2/node.key"), &key).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    assert!(refusal(&directory).ends_with("node.key': the key does not belong to the certificate"));
    fs::remove_file(&key).unwrap();
    let error = refusal(&directory);
    assert!(error.ends_with(&format!("put ca.pem, node.pem and node.key into {}", directory.display())), "{error}");
    fs::copy(authority.path("ca.pem"), directory.join("node.pem")).unwrap();
    assert!(refusal(&directory).contains("node.pem': "));
    fs::write(directory.join("ca.pem"), "").unwrap();
    assert!(refusal(&directory).ends_with("ca.pem': it has no certificate"));
}

fn s_client(authority: &Authority, name: &str, to: &Node) -> String {
    let path = |file: &str| authority.path(name).join(file).to_str().unwrap().to_owned();
    s_client_with(to, &["-cert", &path("node.pem"), "-key", &path("node.key")])
}

/// What openssl prints, who sends a call as soon as it can.
fn s_client_with(to: &Node, arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &to.address.to_string(), "-ign_eof"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have been refused before.
    let _ = child.stdin.take().unwrap().write_all(b"{\"method\":\"test.regen.Machine.Who\"}\0");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("node '"), "it was answered: {text}");
    text
}
