//! Templates whose program is no good: their keeper goes on or ends with a reason, and no clone of them has more rights
//! than it should.

use std::path::Path;

use regen::template::client::Controller;
use regen::template::definition::Source;
use regen::template::job::Job;
use regen::template::message::{Answer, Command, Phase};
use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::template::{Cloned, Kept, compile, words};
use crate::rights::{confined, rights};

/// A template of the hostile program, whose clones have no rights and a filter.
fn keep(world: &World, mode: &str) -> Kept {
    let program = world.rootfs().join("hostile");
    if !program.exists() {
        compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/template/hostile.c"), &program);
    }
    let bundle = world.bundle(|spec| bounded(spec, &["/hostile", mode]));
    world.begin_keeping(&world.template(mode, Source::Bundle(bundle.path().to_owned()), &[]))
}

fn bounded(spec: &mut Value, arguments: &[&str]) {
    confined(spec);
    // With the right to load a filter until it is loaded.
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["process"]["args"] = json!(arguments);
    spec["linux"]["resources"]["pids"] = json!({"limit": 64});
}

/// The rights that every clone has to have: those of a cold container.
fn ordered(world: &World) -> Vec<(&'static str, String)> {
    let (bundle, id) = (world.bundle(|spec| bounded(spec, &["sleep", "1000"])), world.id("cold"));
    world.regen(&["run", "--detach", "--bundle", bundle.text(), &id]).success();
    let found = rights(world.pid(&id));
    world.delete(&id);
    found
}

/// Whether it is a clone, which has the rights that it should, or why there is none.
#[track_caller]
fn checked(cloned: &Cloned, ordered: &[(&'static str, String)]) -> Result<(), String> {
    match &cloned.answer {
        Answer::Taken { pid, .. } => {
            assert_eq!(rights(*pid), ordered);
            Ok(())
        }
        Answer::Failed { error, .. } => Err(error.to_string()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn a_template_that_makes_trouble_makes_its_clones_all_the_same() {
    let world = World::new("trouble");
    let ordered = ordered(&world);
    for mode in ["good", "signals", "traces", "hides", "forks", "kills", "untraced", "namespaces"] {
        let kept = keep(&world, mode);
        kept.outcome().unwrap_or_else(|error| panic!("{mode}: {error}"));
        for _ in 0..3 {
            let cloned = kept.clone_of(None, &["x"]);
            checked(&cloned, &ordered).unwrap_or_else(|error| panic!("{mode}: {error}"));
        }
        assert_eq!(kept.status().phase, Phase::Ready, "{mode}");
        kept.finish();
    }
}

/// Asks for clones until one is refused, and ends the keeper if it has not ended by itself. Why there are none.
#[track_caller]
fn exhaust(kept: Kept, ordered: &[(&'static str, String)]) -> Option<String> {
    let refused = || match kept.try_request(None, &Job { args: words(&["x"]), ..Job::default() }, |_| {}, None) {
        Ok(cloned) => checked(&cloned, ordered).err(),
        Err(error) => Some(error.to_string()),
    };
    let reason = kept.outcome().err().or_else(|| (0..20).find_map(|_| refused()));
    if let Ok(Some(controller)) = Controller::connect(&kept.directory(), 1) {
        // It may have ended meanwhile.
        let _ = controller.tell(Command::Stop);
    }
    kept.gone();
    reason
}

/// Templates that are of no use: it is said why in one line, and a neighbour serves.
fn useless(modes: &[(&str, &str)]) {
    let world = World::new("useless");
    let ordered = ordered(&world);
    let neighbour = keep(&world, "good");
    neighbour.outcome().unwrap();
    for (mode, words) in modes {
        let reason = exhaust(keep(&world, mode), &ordered).unwrap_or_else(|| panic!("{mode}: it makes clones"));
        // Or it had ended before it was asked.
        let told = reason.contains(words) || reason.contains("it is not ready");
        assert!(told && !reason.contains('\n'), "{mode}: {reason}");
        let cloned = neighbour.clone_of(None, &["x"]);
        checked(&cloned, &ordered).unwrap_or_else(|error| panic!("beside {mode}: {error}"));
    }
    neighbour.finish();
}

#[test]
fn a_template_that_says_what_it_should_not_ends_with_a_reason() {
    useless(&[
        ("flood", "zygote"),
        ("garbage", "it says 'dance'"),
        ("huge", ""),
        ("empty", "closed the zygote socket"),
        ("again", "what it was not asked"),
        ("early", ""),
        ("twice", ""),
    ]);
}

#[test]
fn a_template_that_cannot_be_forked_says_why() {
    useless(&[
        // It has used up how many processes it may have.
        ("bomb", "try again"),
        ("exits", "ended"),
        ("executes", "executed another"),
        ("stops", "does not fork in time"),
        ("forged", "does not fork in time"),
    ]);
}

#[test]
fn a_template_that_changes_the_kernels_code_in_it_ends_with_a_reason() {
    useless(&[
        ("code-early", "the kernel's code (vDSO) in it is another"),
        ("code", ""),
        ("loop", ""),
        ("compatible", ""),
        ("nothing", ""),
        ("unmaps", ""),
    ]);
}

#[test]
fn what_a_template_writes_where_its_clones_are_told_who_they_are_gives_them_nothing() {
    let world = World::new("writes");
    let ordered = ordered(&world);
    for mode in ["groups", "rights"] {
        let reasons: Vec<_> = (0..5).filter_map(|_| exhaust(keep(&world, mode), &ordered)).collect();
        assert!(reasons.iter().any(|reason| reason.contains("the template has interfered")), "{mode}: {reasons:?}");
    }
    for _ in 0..3 {
        exhaust(keep(&world, "shared-code"), &ordered);
    }
}
