//! What goes wrong while a template is loaded is told in one line, and leaves nothing.

use std::os::unix::fs::symlink;

use regen::template::definition::{Order, Source};
use regen::template::message::{Command, Phase};

use crate::harness::{World, eventually};
use crate::native;

/// Why a template is not loaded.
fn cause(world: &World, order: &Order) -> String {
    let kept = world.begin_keeping(order);
    let error = kept.outcome().expect_err("it was loaded");
    kept.gone();
    assert!(!error.contains('\n'), "{error}");
    let expected = format!("template '{}'", order.definition);
    assert!(error.contains(&expected), "{error}");
    error
}

#[test]
fn a_program_that_ends_is_told_of_with_what_it_said() {
    let world = World::new("ends");
    let error = cause(&world, &native(&world, "c", &["fail"]));
    assert!(
        error.contains("its program has ended with status 3; it said: first line; cannot load: nothing there"),
        "{error}"
    );
}

#[test]
fn a_program_that_is_never_ready_is_given_up() {
    let world = World::new("hangs");
    let mut order = native(&world, "c", &["hang"]);
    order.definition.ready_timeout_ms = 300;
    let error = cause(&world, &order);
    assert!(error.contains("was not ready after 0.3 s"), "{error}");
}

#[test]
fn a_program_of_another_protocol_is_refused_with_both_named() {
    let world = World::new("version");
    let error = cause(&world, &native(&world, "c", &["version"]));
    assert!(error.contains("version 2 of the zygote protocol, this is version 1"), "{error}");
}

#[test]
fn a_program_that_does_not_know_of_it_is_refused() {
    let world = World::new("foreign");
    let source = || Source::Rootfs(world.rootfs());
    let error = cause(&world, &world.template("a", source(), &["true"]));
    assert!(error.contains("has ended with status 0"), "{error}");
    let error = cause(&world, &world.template("b", source(), &["/nowhere"]));
    assert!(error.contains("/nowhere") && error.contains("no such file or directory"), "{error}");
    let error = cause(&world, &world.template("d", source(), &["sh", "-c", "exec sleep 100"]));
    assert!(error.contains("executed another"), "{error}");
    let error = cause(&world, &world.template("e", Source::Rootfs("/nowhere".into()), &["true"]));
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn a_container_that_does_not_fit_is_refused() {
    let world = World::new("fit");
    let program = world.rootfs().join("program");
    native(&world, "c", &[]);
    assert!(program.exists());
    let of = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let bundle = world.bundle(|spec| {
            spec["process"]["args"] = serde_json::json!(["/program"]);
            change(spec);
        });
        cause(&world, &world.template(name, Source::Bundle(bundle.path().to_owned()), &[]))
    };
    let error = of("a", &|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    assert!(error.contains("pid namespace"), "{error}");
    let error = of("b", &|spec| spec["process"]["scheduler"] = serde_json::json!({"policy": "SCHED_BATCH"}));
    assert!(error.contains("scheduler"), "{error}");
    let error = of("d", &|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({"type": "user"}));
        spec["linux"]["uidMappings"] = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        spec["linux"]["gidMappings"] = spec["linux"]["uidMappings"].clone();
    });
    assert!(error.contains("user namespace"), "{error}");
}

#[test]
fn a_bundle_is_not_written_to_and_its_root_may_be_read_only() {
    let world = World::new("bundle");
    native(&world, "c", &[]);
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = serde_json::json!(["/program"]);
        spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
        spec["hostname"] = serde_json::json!("given");
    });
    symlink("/etc", world.rootfs().join("link")).unwrap();
    let kept = world.keep_template(&world.template("b", Source::Bundle(bundle.path().to_owned()), &[]));
    let end = kept.clone_of(None, &["sh", "-c", "id -u; hostname; echo x > /tmp/y && echo written"]).end();
    assert!(end.output.starts_with("1000\ngiven\n"), "{end:?}");
    assert!(!world.rootfs().join("function").exists() && !world.rootfs().join("tmp/y").exists());
    kept.finish();
}

#[test]
fn a_template_and_its_clones_stand_on_an_entry_of_a_ring_as_it_was() {
    let world = World::new("ring");
    let mut order = native(&world, "c", &[]);
    let (ring, rootfs, id) = (world.id("ring"), world.rootfs(), world.id("run"));
    let rootfs = rootfs.to_str().unwrap();
    let save = |text: &str| {
        let script = format!("echo {text} > /said");
        world.regen(&["run", "--rootfs", rootfs, "--ring", &ring, &id, "--", "sh", "-c", &script]).success();
    };
    save("one");
    order.definition.ring = Some(ring.clone());
    let kept = world.keep_template(&order);
    let said = || kept.clone_of(None, &["cat", "/said"]).end().output;
    assert_eq!(said(), "one\n");
    save("two");
    kept.clone_of(None, &["sh", "-c", "echo three > /said"]).end();
    for _ in 0..4 {
        assert_eq!(said(), "one\n", "what is loaded is what clones see");
    }
    let mut next = order.clone();
    next.generation = 2;
    let newer = world.keep_template(&next);
    assert_eq!(newer.clone_of(None, &["cat", "/said"]).end().output, "two\n");
    kept.tell(Command::Stop);
    kept.child_has_ended();
    newer.finish();
    world.regen(&["ring", "rm", &ring]).success();
}

#[test]
fn a_keeper_whose_daemon_is_gone_before_it_is_ready_ends() {
    let world = World::new("orphan");
    let mut kept = world.begin_keeping(&native(&world, "c", &["hang"]));
    eventually("it loads", || kept.directory().join("control-1").exists());
    assert_eq!(kept.status().phase, Phase::Loading);
    let (_, other) = regen::sys::channel::Channel::pair().unwrap();
    kept.birth = other;
    kept.gone();
}

#[test]
fn a_keeper_is_stopped_while_it_loads() {
    let world = World::new("stopped");
    let kept = world.begin_keeping(&native(&world, "c", &["hang"]));
    eventually("it loads", || kept.directory().join("control-1").exists());
    kept.tell(Command::Stop);
    assert!(kept.outcome().is_err());
    kept.gone();
}

#[test]
fn of_two_keepers_of_one_generation_one_is_refused() {
    let world = World::new("twice");
    let order = native(&world, "c", &[]);
    let kept = world.keep_template(&order);
    let second = world.begin_keeping(&order);
    let error = second.outcome().unwrap_err();
    assert!(error.contains("lives already"), "{error}");
    second.child_has_ended();
    kept.clone_of(None, &["/program", "say", "x"]).end();
    kept.finish();
}
