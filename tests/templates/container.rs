//! Clones as containers.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{World, eventually};

#[test]
fn a_clone_in_the_foreground_is_as_if_its_command_were_run() {
    let world = World::new("tpl-fg");
    let daemon = world.daemon();
    let name = daemon.name("py");
    daemon.create(&name, &["--env", "A=template", "--env", "B=template"]);
    let run = |more: &[&str], code: &str| {
        let id = world.id("c");
        let output = world.regen(&[&["clone", &name, &id], more, &["--", "python3", "-c", code]].concat());
        assert!(!world.state_directory(&id).exists(), "nothing is left of it");
        output
    };
    let output = run(&[], "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)");
    assert_eq!((output.code, output.stdout(), output.stderr()), (7, "out\n", "err\n"));
    let print = "import os; print(os.environ['A'], os.environ['B'], os.getcwd())";
    assert_eq!(run(&["--env", "B=clone", "--workdir", "/tmp"], print).success().stdout(), "template clone /tmp\n");
    // It is warm: what the template has loaded is there before anything is imported.
    let loaded = run(&[], "import sys; print('decimal' in sys.modules, sys.argv)");
    assert_eq!(loaded.success().stdout(), "True ['-c']\n");
    assert_eq!(run(&[], "import os; os.kill(os.getpid(), 9)").code, 137);
    run(&["--workdir", "/nowhere"], "pass").fails_with(1, "/nowhere");
    let input = world
        .regen_with_input(&["clone", &name, &world.id("c"), "--", "python3", "-c", "print(input()[::-1])"], b"abc\n");
    assert_eq!(input.success().stdout(), "cba\n");
    // Any other program is executed.
    let id = world.id("c");
    let shell = world.regen(&["clone", &name, &id, "--", "sh", "-c", "echo $$; hostname"]);
    assert!(shell.success().stdout().starts_with(|first: char| first.is_ascii_digit()));
    world.regen(&["clone", &name, &id, "--", "nosuchprogram"]).code(127);
}

#[test]
fn a_clone_in_the_background_is_a_container_like_any_other() {
    let world = World::new("tpl-bg");
    let daemon = world.daemon();
    let (name, id) = (daemon.name("py"), world.id("c"));
    daemon.create(&name, &[]);
    let code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nprint('up', flush=True)\ntime.sleep(1000)";
    let clone = world.spawn(world.command(&["clone", "-d", &name, &id, "--", "python3", "-c", code]));
    eventually("it is up", || clone.so_far() == "up\n");
    clone.finish().success();
    assert_eq!(world.status(&id), "running");
    assert!(world.regen(&["list", "-q"]).stdout().lines().any(|line| line == id));
    let ps = world.regen(&["exec", &id, "sh", "-c", "hostname; echo inside"]);
    assert!(ps.success().stdout().ends_with("inside\n"));
    world.regen(&["clone", "-d", &name, &id, "--", "python3", "-c", "pass"]).fails_with(1, "exists");
    world.regen(&["delete", &id]).code(1);
    world.regen(&["pause", &id]).success();
    assert_eq!(world.status(&id), "paused");
    world.regen(&["resume", &id]).success();
    world.regen(&["kill", &id]).success();
    eventually("it has ended", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
    assert!(!world.state_directory(&id).exists());
}

#[test]
fn a_signal_to_who_waits_reaches_the_clone_and_a_kill_takes_it_along() {
    let world = World::new("tpl-signal");
    let daemon = world.daemon();
    let (name, id) = (daemon.name("py"), world.id("c"));
    daemon.create(&name, &[]);
    let code = "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(5))\nprint('up', flush=True)\ntime.sleep(1000)";
    for (signal, status) in [(Signal::SIGINT, 5), (Signal::SIGKILL, 1009)] {
        let mut clone = world.spawn(world.command(&["clone", &name, &id, "--", "python3", "-c", code]));
        clone.wait_for("up");
        clone.signal(signal);
        assert_eq!(clone.finish().code, status);
        eventually("its container is gone", || !world.state_directory(&id).exists());
    }
}

#[test]
fn two_clones_share_nothing_that_matters() {
    let world = World::new("tpl-apart");
    let daemon = world.daemon();
    let name = daemon.name("py");
    daemon.create(&name, &[]);
    let code = "import os, random, socket; print(random.random(), os.urandom(8).hex(), socket.gethostname(), open('/tmp/x', 'x').name)";
    let run = |id: &str| {
        world.regen(&["clone", &name, &world.id(id), "--", "python3", "-c", code]).success().stdout().to_owned()
    };
    let (one, other) = (run("a"), run("b"));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (words(&one), words(&other));
    assert!(one[0] != other[0] && one[1] != other[1], "{one:?} {other:?}");
}

#[test]
fn a_function_is_there_and_cannot_be_written() {
    let world = World::new("tpl-function");
    let daemon = world.daemon();
    let (name, id) = (daemon.name("py"), world.id("c"));
    daemon.create(&name, &[]);
    let function = world.function("f", "print('hello from', __file__)\n");
    let run = |command: &[&str]| {
        let arguments = ["clone", &name, &id, "--function", function.to_str().unwrap(), "--"];
        world.regen(&[&arguments, command].concat())
    };
    assert_eq!(run(&["python3", "/function/app.py"]).success().stdout(), "hello from /function/app.py\n");
    let touch = run(&["sh", "-c", "touch /function/x"]);
    assert!(touch.code != 0 && touch.stderr().contains("Read-only"), "{}", touch.stderr());
    let without = world.regen(&["clone", &name, &id, "--", "ls", "-A", "/function"]);
    assert_eq!(without.success().stdout(), "", "without one it is empty");
    run(&["true"]).success();
    let nothing = ["clone", &name, &id, "--function", "/nowhere", "--", "true"];
    world.regen(&nothing).fails_with(1, "open function '/nowhere': no such file or directory");
    let show = daemon.template_show(&name);
    assert_eq!(show["failed"], json!(0), "what is wrong with a function is found before a clone is made");
}
