//! docs/templates.md, as its reader types it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{REGEN, World};

/// The first block of commands: what the page promises to work from an empty directory.
fn commands() -> Vec<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/templates.md")).unwrap();
    let block = page.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    block.lines().map(str::to_owned).collect()
}

/// A program of this name that is found first.
fn stand_in(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_five_commands_of_the_page_lead_from_an_empty_directory_to_a_called_function() {
    let world = World::new("tpl-page");
    let (programs, here) = (world.base().join("programs"), world.base().join("here"));
    fs::create_dir(&programs).unwrap();
    fs::create_dir(&here).unwrap();
    let (root, store) = (world.root(), world.store());
    stand_in(&programs, "regen", &format!("exec {REGEN} --root {} --store {} \"$@\"", root.display(), store.display()));
    // Packages take their time: they are installed once.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page-python");
    let keep = format!(
        "for last; do :; done\n[ -e {kept} ] || {{ /usr/bin/mmdebstrap \"$@\" && mv \"$last\" {kept}.$$ && \
         mv -T {kept}.$$ {kept}; }} && cp -a {kept} \"$last\"",
        kept = kept.display()
    );
    stand_in(&programs, "mmdebstrap", &keep);
    let commands = commands();
    assert_eq!(commands.len(), 5, "{commands:#?}");
    // Whatever fails, nobody is left who prints.
    let mut script =
        format!("trap 'regen template rm py >/dev/null || true; kill %1; wait' EXIT\n{}", commands.join("\n"));
    // Other tests may have a template that is called like the page's.
    script = script.replace(" py ", &format!(" {} ", world.id("py")));
    // A reader does not type so fast.
    script =
        script.replace("regen serve &\n", "regen serve & until regen template ls 2>/dev/null; do sleep 0.1; done\n");
    let mut bash = Command::new("timeout");
    bash.args(["300", "bash", "-ec", &script]).current_dir(&here);
    bash.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()));
    let output = bash.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.trim_end().ends_with("\"hello you\""), "{stdout}\n{stderr}");
}
