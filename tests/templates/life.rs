//! From `create` to `rm`, and when a template is made anew.

use std::process::Command;

use serde_json::json;

use crate::harness::image::{Form, Layout, Tar};
use crate::harness::middleware::pid;
use crate::harness::{World, eventually};

#[test]
fn a_template_is_created_listed_shown_and_removed() {
    let world = World::new("tpl-life");
    let daemon = world.daemon();
    let name = daemon.name("py");
    let created = daemon.create(&name, &["--pool", "2"]);
    assert_eq!(
        (&created["name"], &created["state"], &created["generation"]),
        (&json!(name), &json!("ready"), &json!(1))
    );
    assert!(created["language"].as_str().unwrap().starts_with("python 3."), "{created:#}");
    let show = daemon.await_template(&name, "its pool is full", |show| show["sandboxes"] == 2);
    for field in ["process", "sandbox", "keeper"] {
        let show = daemon.await_template(&name, field, |show| show["memory"][field].is_u64());
        assert!(show["memory"][field].as_u64().unwrap() > 4096, "{show:#}");
    }
    assert_eq!((&show["restarts"], &show["error"], &show["clones"]), (&json!(0), &json!(null), &json!(0)));
    let container = show["container"].as_str().unwrap();
    assert_eq!(container, format!("template-{name}-1"));
    assert_eq!(world.status(container), "created", "its program is started by no start");
    let list = world.regen(&["list", "-q"]);
    assert_eq!(list.stdout().lines().count(), 3, "the template's own container and two sandboxes: {}", list.stdout());
    let table = daemon.template(&["ls"]);
    assert!(table.stdout().starts_with("TEMPLATE") && table.stdout().contains("ready"), "{}", table.stdout());
    let text = daemon.template(&["show", &name]);
    for words in ["state", "pid", "memory", "sandboxes   2 of 2", "generation  1", "bundle /"] {
        assert!(text.stdout().contains(words), "{words}: {}", text.stdout());
    }
    let removed = daemon.template(&["rm", &name, "--json"]);
    assert_eq!(removed.success().stdout().trim(), json!({"name": name}).to_string());
    assert!(daemon.templates().is_empty() && !daemon.has_templates());
    assert_eq!(world.regen(&["list", "-q"]).stdout(), "");
    daemon.template(&["show", &name]).fails_with(1, "there is no such template: see 'regen template ls'");
}

#[test]
fn a_clone_outlives_its_template_unless_it_is_killed_with_it() {
    let world = World::new("tpl-rm");
    let daemon = world.daemon();
    let (name, kept, killed) = (daemon.name("py"), world.id("kept"), world.id("killed"));
    let sleep = ["--", "python3", "-c", "import time; time.sleep(1000)"];
    daemon.create(&name, &[]);
    world.regen(&[&["clone", "-d", &name, &kept][..], &sleep].concat()).success();
    daemon.template(&["rm", &name]).success();
    assert_eq!(world.status(&kept), "running");
    daemon.create(&name, &[]);
    world.regen(&[&["clone", "-d", &name, &killed][..], &sleep].concat()).success();
    daemon.template(&["rm", "--force", &name]).success();
    assert_eq!(world.regen(&["list", "-q"]).stdout(), "", "neither is there, whenever it was made");
}

#[test]
fn two_templates_stand_side_by_side() {
    let world = World::new("tpl-two");
    let daemon = world.daemon();
    let names = [daemon.name("a"), daemon.name("b")];
    for name in &names {
        daemon.create(name, &["--env", &format!("WHO={name}"), "--pool", "1"]);
    }
    let function = world.function("env", "import os\ndef who(event): return os.environ['WHO']\n");
    for name in &names {
        let answer = world.invoke(name, function.to_str().unwrap(), "app:who", &[]);
        assert_eq!(answer.success().stdout().trim(), json!(name).to_string());
    }
    daemon.template(&["rm", &names[0]]).success();
    world.invoke(&names[1], function.to_str().unwrap(), "app:who", &[]).success();
}

#[test]
fn what_the_daemons_shell_ignores_no_clone_ignores() {
    let world = World::new("tpl-ignored");
    let mut daemon = world.daemon();
    daemon.end(nix::sys::signal::Signal::SIGTERM);
    let plain = world.command(&["serve"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP INT QUIT USR1; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    shell.current_dir(world.base());
    daemon.start_as(shell);
    let name = daemon.name("py");
    daemon.create(&name, &["--pool", "1"]);
    let ignored = "import signal\ndef ignored(event): return [n.name for n in signal.valid_signals() \
                   if isinstance(n, signal.Signals) and signal.getsignal(n) == signal.SIG_IGN]\n";
    let function = world.function("ignored", ignored);
    let answer = world.invoke(&name, function.to_str().unwrap(), "app:ignored", &[]);
    let found: Vec<String> = serde_json::from_str(answer.success().stdout()).unwrap();
    // Those are the interpreter's own.
    assert!(found.iter().all(|name| ["SIGPIPE", "SIGXFSZ"].contains(&&**name)), "{found:?}");
}

/// A static program that is a template, as the only file of an image.
fn image(layout: &Layout, program: &[u8], tag: &str, release: &str) {
    let tar = Tar::new().busybox().file("primes", program).file("etc/release", release.as_bytes());
    layout.image(tag, vec![(tar, Form::Plain)], &json!({"Cmd": ["/primes"]}));
}

fn cat_release(world: &World, name: &str) -> String {
    let id = world.id("cat");
    world.regen(&["clone", name, &id, "--", "cat", "/etc/release"]).success().stdout().to_owned()
}

#[test]
fn another_image_under_the_tag_makes_the_template_anew() {
    let world = World::new("tpl-tag");
    let daemon = world.daemon();
    let (name, layout) = (daemon.name("c"), Layout::new(world.base().join("images")));
    let program = std::fs::read(world.primes()).unwrap();
    image(&layout, &program, "latest", "one");
    daemon.template(&["create", &name, "--image", &layout.reference("latest"), "--pool", "1"]).success();
    let before = daemon.template_show(&name);
    assert_eq!((&before["language"], cat_release(&world, &name).as_str()), (&json!("c"), "one"));
    // Another tag is another image.
    image(&layout, &program, "other", "other");
    image(&layout, &program, "latest", "two");
    // Until then each clone is of one of them, and nobody waits.
    for _ in 0..5 {
        assert!(["one", "two"].contains(&cat_release(&world, &name).as_str()));
    }
    let after = daemon.await_template(&name, "it is made anew", |show| show["generation"] == 2);
    assert_ne!(before["source"], after["source"]);
    assert_ne!(pid(&before, "pid"), pid(&after, "pid"));
    assert_eq!((&after["restarts"], &after["error"], &after["state"]), (&json!(0), &json!(null), &json!("ready")));
    assert_eq!(cat_release(&world, &name), "two");
    eventually("nothing is left of the old one", || {
        !world.state_directory(before["container"].as_str().unwrap()).exists()
    });
    // Half of an image changes nothing.
    std::fs::write(layout.directory().join("index.json"), "{").unwrap();
    for _ in 0..5 {
        assert_eq!(cat_release(&world, &name), "two");
    }
    assert_eq!(daemon.template_show(&name)["generation"], 2);
}

#[test]
fn an_image_that_does_not_work_leaves_the_template_as_it_was() {
    let world = World::new("tpl-bad-tag");
    let daemon = world.daemon();
    let (name, layout) = (daemon.name("c"), Layout::new(world.base().join("images")));
    let program = std::fs::read(world.primes()).unwrap();
    image(&layout, &program, "latest", "one");
    daemon.template(&["create", &name, "--image", &layout.reference("latest"), "--pool", "1"]).success();
    image(&layout, b"#!/bin/sh\nexit 7\n", "latest", "broken");
    let show = daemon.await_template(&name, "it has failed", |show| show["error"].is_string());
    assert_eq!((&show["state"], &show["generation"]), (&json!("ready"), &json!(1)), "{show:#}");
    assert!(show["retry"].is_string(), "{show:#}");
    assert_eq!(cat_release(&world, &name), "one");
    image(&layout, &program, "latest", "mended");
    let show = daemon.await_template(&name, "it is made anew", |show| show["error"].is_null());
    assert_eq!(show["state"], "ready");
    assert_eq!(cat_release(&world, &name), "mended");
}

#[test]
fn a_later_entry_of_the_ring_makes_the_template_anew() {
    let world = World::new("tpl-ring");
    let daemon = world.daemon();
    let (name, root) = (daemon.name("c"), world.rootfs());
    std::fs::copy(world.primes(), root.join("bin/primes")).unwrap();
    let root = root.to_str().unwrap().to_owned();
    let write = |text: &str| {
        let script = format!("echo {text} > /etc/release");
        world.regen(&["run", "--rootfs", &root, "--ring", "mid", &world.id("w"), "--", "sh", "-c", &script]).success();
    };
    write("one");
    // What the ring was made over is known.
    daemon.template(&["create", &name, "--ring", "mid", "--pool", "1", "--", "/bin/primes"]).success();
    assert_eq!(daemon.template_show(&name)["source"], "root/mid@1");
    assert_eq!(cat_release(&world, &name), "one\n");
    write("two");
    let show = daemon.await_template(&name, "it is made anew", |show| show["generation"] == 2);
    assert_eq!(show["source"], "root/mid@2");
    assert_eq!(cat_release(&world, &name), "two\n");
}

#[test]
fn what_a_bundle_says_later_changes_nothing() {
    let world = World::new("tpl-edited");
    let daemon = world.daemon();
    let (name, bundle) = (daemon.name("py"), world.middleware(|_| {}));
    daemon.template(&["create", &name, "--bundle", bundle.text(), "--pool", "1"]).success();
    std::fs::write(bundle.path().join("config.json"), "{").unwrap();
    for _ in 0..3 {
        let id = world.id("c");
        world.regen(&["clone", &name, &id, "--", "python3", "-c", "print('hi')"]).success();
    }
    assert_eq!(daemon.template_show(&name)["failed"], 0);
}
