//! What cannot be a template, told in one line and leaving nothing.

use std::fs;

use serde_json::json;

use crate::harness::World;

/// A template's program that does this.
fn refused(program: &[&str], more: &[&str], words: &str) {
    let world = World::new("tpl-refused");
    let daemon = world.daemon();
    let name = daemon.name("bad");
    let bundle = world.middleware(|spec| spec["process"]["args"] = json!(program));
    let output = daemon.template(&[&["create", &name, "--bundle", bundle.text()], more].concat());
    output.fails_with(1, &format!("create template '{name}': "));
    assert!(output.stderr().contains(words), "{}", output.stderr());
    assert!(daemon.templates().is_empty() && !daemon.has_templates());
    assert_eq!(world.regen(&["list", "-q"]).stdout(), "");
    // The name is free.
    daemon.create(&name, &["--pool", "0"]);
}

#[test]
fn a_command_that_ends() {
    refused(&["/usr/bin/python3", "-c", "import sys; print('cannot', file=sys.stderr); sys.exit(7)"], &[], "7");
}

#[test]
fn a_command_that_hangs() {
    let program = ["/usr/bin/python3", "-c", "import time; time.sleep(1000)"];
    refused(&program, &["--ready-timeout", "300ms"], "0.3 s");
}

#[test]
fn a_module_that_is_not_there() {
    refused(&["/usr/bin/python3", "-m", "regen_zygote", "--import", "nosuchmodule"], &[], "nosuchmodule");
}

#[test]
fn a_program_of_another_version() {
    let code = "import socket; s = socket.socket(fileno=3); s.send(b'ready 9 odd'); s.recv(1)";
    refused(&["/usr/bin/python3", "-c", code], &[], "9");
}

#[test]
fn a_program_that_talks_nonsense() {
    let code = "import socket; s = socket.socket(fileno=3); s.send(b'hello'); s.recv(1)";
    refused(&["/usr/bin/python3", "-c", code], &[], "hello");
}

#[test]
fn a_command_that_is_not_there() {
    refused(&["/nosuchprogram"], &[], "/nosuchprogram");
}

#[test]
fn sources_and_names_that_cannot_be() {
    let world = World::new("tpl-sources");
    let daemon = world.daemon();
    let name = daemon.name("py");
    let create = |more: &[&str]| daemon.template(&[&["create", &name][..], more].concat());
    create(&["--rootfs", "/nowhere", "--", "x"]).fails_with(1, "open '/nowhere': no such file or directory");
    create(&["--rootfs", "/etc/passwd", "--", "x"]).fails_with(1, "it is not a directory");
    create(&["--bundle", "/nowhere"]).fails_with(1, "'/nowhere'");
    create(&["--bundle", world.base().to_str().unwrap()]).fails_with(1, "config.json");
    create(&["--image", "oci:/nowhere"]).fails_with(1, "'/nowhere'");
    create(&["--image", "docker://x"]).fails_with(1, "copy it with 'skopeo copy' first");
    create(&["--ring", "nosuch"]).fails_with(1, "there is no such ring");
    create(&["--rootfs", world.rootfs().to_str().unwrap()]).fails_with(1, "no command was given");
    create(&["--rootfs", world.rootfs().to_str().unwrap(), "--env", "x", "--", "sh"]).fails_with(1, "NAME=VALUE");
    let namespace = world.middleware(|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    create(&["--bundle", namespace.text()]).fails_with(1, "user namespace");
    assert!(daemon.templates().is_empty() && !daemon.has_templates());
    assert_eq!(world.regen(&["list", "-q"]).stdout(), "");
    daemon.create(&name, &["--pool", "0"]);
    create(&["--bundle", namespace.text()]).fails_with(1, "there is one already: choose another name");
    assert_eq!(daemon.templates().len(), 1);
}

#[test]
fn who_asks_for_a_clone_of_nothing_is_told_so() {
    let world = World::new("tpl-none");
    let daemon = world.daemon();
    world.regen(&["clone", "nosuch", &world.id("c"), "--", "true"]).fails_with(1, "there is no such template");
    let function = world.function("f", "");
    world.invoke("nosuch", function.to_str().unwrap(), "app:x", &[]).fails_with(1, "there is no such template");
    daemon.template(&["rm", "nosuch"]).fails_with(1, "there is no such template");
    world.regen(&["invoke", "a", "--function", "f", "--handler", "nohandler"]).code(2);
    world.regen(&["clone", "a", "b/c", "--", "x"]).code(2);
}

#[test]
fn a_record_that_cannot_be_read_keeps_nothing_else_from_working() {
    let world = World::new("tpl-record");
    let mut daemon = world.daemon();
    let name = daemon.name("py");
    daemon.create(&name, &["--pool", "0"]);
    daemon.end(nix::sys::signal::Signal::SIGTERM);
    let sql = "INSERT INTO entry (key, value, created, modified) VALUES ('template/root/odd', x'7b7d', 1, 1)";
    rusqlite::Connection::open(world.store().join("registry.db")).unwrap().execute(sql, []).unwrap();
    daemon.start();
    assert_eq!(daemon.templates().len(), 1);
    assert!(daemon.log().contains("template/root/odd"), "{}", daemon.log());
    let output = daemon.template(&["create", "odd", "--rootfs", world.rootfs().to_str().unwrap(), "--", "sh"]);
    output.fails_with(1, "something is written down under its name that cannot be read");
    let _ = fs::read_dir(world.store());
}
