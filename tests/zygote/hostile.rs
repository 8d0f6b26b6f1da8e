//! What a template does against its keeper, or by mistake, ends in an error and never in a copy with other rights.

use std::fs;

use regen::error::Kind;
use regen::sys::process::ExitStatus;
use regen::sys::signal::Signal;
use regen::template::proxy::{Control, End};

use crate::stage::{LIMIT, Stage, alone, attend_to_end, copy, fork, furnish, hear};

#[test]
fn a_template_that_changes_the_kernels_code_in_it_is_ended() {
    alone("hostile::a_template_that_changes_the_kernels_code_in_it_is_ended", || {
        let stage = Stage::new("zygote-spoil");
        let (mut held, template) = stage.template(&["/zygote", "spoil"], |_| {});
        let room = stage.room("a", |_| {});
        let error = room.prepare(&mut held).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
        assert!(!held.is_sound());
        assert_eq!(attend_to_end(&mut held), End::Exited(ExitStatus::Signal(9)));
        assert_eq!(room.prepare(&mut held).unwrap_err().kind(), Kind::State);
        stage.world.delete(&room.id);
        stage.close(held, template);
    });
}

#[test]
fn a_template_that_does_not_fork_in_time_is_ended() {
    alone("hostile::a_template_that_does_not_fork_in_time_is_ended", || {
        let stage = Stage::new("zygote-quiet");
        let (mut held, template) = stage.template(&["/zygote", "quiet"], |_| {});
        let room = stage.room("a", |_| {});
        let mut guest = room.prepare(&mut held).unwrap();
        furnish(&mut held, &mut guest).unwrap();
        assert!(held.channel().send(b"fork 1", &[]).unwrap());
        let error = held.fork(guest, Control::None, std::time::Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy, "{error}");
        assert_eq!(attend_to_end(&mut held), End::Exited(ExitStatus::Signal(9)));
        stage.world.delete(&room.id);
        stage.close(held, template);
    });
}

#[test]
fn a_template_that_ends_when_it_is_asked_is_told_of() {
    alone("hostile::a_template_that_ends_when_it_is_asked_is_told_of", || {
        let stage = Stage::new("zygote-die");
        let (mut held, template) = stage.template(&["/zygote", "die"], |_| {});
        let room = stage.room("a", |_| {});
        let guest = room.prepare(&mut held).unwrap();
        let error = fork(&mut held, guest).unwrap_err();
        assert!(error.to_string().contains("ended with status 9"), "{error}");
        assert_eq!(attend_to_end(&mut held), End::Exited(ExitStatus::Code(9)));
        stage.world.delete(&room.id);
        stage.close(held, template);
    });
}

#[test]
fn a_template_that_executes_another_program_is_of_no_use() {
    alone("hostile::a_template_that_executes_another_program_is_of_no_use", || {
        let stage = Stage::new("zygote-exec");
        let (mut held, template) = stage.unready(&["/zygote", "exec"], |_| {});
        assert_eq!(attend_to_end(&mut held), End::Executed);
        assert!(!held.is_sound());
        stage.close(held, template);
    });
}

#[test]
fn copies_go_on_when_their_template_is_killed() {
    alone("hostile::copies_go_on_when_their_template_is_killed", || {
        let stage = Stage::new("zygote-killed");
        let (mut held, template) = stage.template(&["/zygote", "stay"], |_| {});
        let (one, other) = (stage.room("a", |_| {}), stage.room("b", |_| {}));
        let guest = one.prepare(&mut held).unwrap();
        let running = fork(&mut held, guest).unwrap();
        let guest = other.prepare(&mut held).unwrap();
        held.process().signal(Signal::KILL).unwrap();
        let error = held.fork(guest, Control::None, LIMIT).unwrap_err();
        assert!(error.to_string().contains("ended by signal 9"), "{error}");
        assert_eq!(attend_to_end(&mut held), End::Exited(ExitStatus::Signal(9)));
        stage.close(held, template);
        assert!(running.signal(Signal::TERM).unwrap(), "it runs");
        assert_eq!(one.status(), 128 + 15);
        stage.world.delete(&one.id);
        stage.world.delete(&other.id);
    });
}

#[test]
fn a_template_whose_parked_process_is_killed_ends() {
    alone("hostile::a_template_whose_parked_process_is_killed_ends", || {
        let stage = Stage::new("zygote-parked");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        let parked = children().into_iter().find(|pid| *pid != held.process().pid()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(parked), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(attend_to_end(&mut held), End::Exited(ExitStatus::Signal(9)));
        assert!(!held.is_sound());
        stage.close(held, template);
    });
}

#[test]
fn a_container_that_ends_takes_its_place_for_a_copy_with_it() {
    alone("hostile::a_container_that_ends_takes_its_place_for_a_copy_with_it", || {
        let stage = Stage::new("zygote-ended");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        let (one, other) = (stage.room("a", |_| {}), stage.room("b", |_| {}));
        let guest = one.prepare(&mut held).unwrap();
        one.sandbox.init.signal(Signal::KILL).unwrap();
        // The kernel waits for the place's end to be seen before the first process is gone.
        let deadline = std::time::Instant::now() + LIMIT;
        while !one.sandbox.init.wait_end(std::time::Duration::from_millis(5)).unwrap() {
            assert_eq!(held.attend().unwrap(), None);
            assert!(std::time::Instant::now() < deadline);
        }
        let error = fork(&mut held, guest).unwrap_err();
        assert_eq!(error.kind(), Kind::State, "{error}");
        assert_eq!(hear(&mut held), "failed 1 11");
        assert_eq!(copy(&mut held, &other)["value"], "42", "the template goes on");
        stage.world.delete(&one.id);
        stage.world.delete(&other.id);
        stage.close(held, template);
    });
}

#[test]
fn an_unwanted_place_is_left_without_a_trace() {
    alone("hostile::an_unwanted_place_is_left_without_a_trace", || {
        let stage = Stage::new("zygote-dismiss");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        let room = stage.room("a", |_| {});
        let before = children().len();
        let guest = room.prepare(&mut held).unwrap();
        assert_eq!(children().len(), before + 1);
        held.dismiss(guest).unwrap();
        assert_eq!(children().len(), before);
        assert_eq!(copy(&mut held, &room)["value"], "42");
        stage.world.delete(&room.id);
        stage.close(held, template);
    });
}

/// Those of this process.
fn children() -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let text = fs::read_to_string(task.unwrap().path().join("children")).unwrap();
        found.extend(text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    found
}
