//! docs/operations.md, as its reader types it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{REGEN, World};

#[test]
fn the_commands_of_the_page_work() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let blocks: Vec<_> = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 4, "{blocks:#?}");
    let world = World::new("op-page");
    let daemon = world.daemon();
    // Other tests may have a service that is called like the page's.
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    let programs = world.base().join("programs");
    fs::create_dir(&programs).unwrap();
    let script = format!(
        "#!/bin/sh\nexec {REGEN} --root {} --store {} \"$@\"\n",
        world.root().display(),
        world.store().display()
    );
    fs::write(programs.join("regen"), script).unwrap();
    fs::set_permissions(programs.join("regen"), fs::Permissions::from_mode(0o755)).unwrap();
    let script = blocks.concat().replace(" web", &format!(" {name}")).replace("name=web", &format!("name={name}"));
    let mut bash = Command::new("timeout");
    bash.args(["120", "bash", "-euxc", &script]).current_dir(world.base());
    bash.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    let output = bash.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    // The last one was not waited for.
    let last = super::list(&daemon, &["--limit", "1"])[0]["id"].as_str().unwrap().to_owned();
    world.regen(&["op", "wait", &last]).success();
}
