//! The life of a container as podman's users see it.

use crate::harness::{World, eventually};
use crate::podman::{IMAGE, Podman};

/// A program that tells of signals and ends with 7 when it is told to.
const SERVANT: &str = "trap 'exit 7' TERM; trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done";

#[test]
fn a_run_of_podman_gives_output_and_status() {
    let world = World::new("ps");
    let podman = Podman::new(&world);
    let output = podman.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((output.code(3).stdout(), output.stderr()), ("out\n", "err\n"));
    let arguments = podman.run_arguments(&["--rm", "--interactive"], &["cat"]);
    let typed = podman.path("typed");
    std::fs::write(&typed, "typed\n").unwrap();
    let mut command = podman.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    command.stdin(std::fs::File::open(typed).unwrap());
    assert_eq!(world.spawn(command).finish().success().stdout(), "typed\n");
}

#[test]
fn a_container_of_podman_lives_through_all_its_verbs() {
    let world = World::new("pv");
    let podman = Podman::new(&world);
    let name = podman.start(&[], SERVANT);
    assert_eq!(podman.inspect(&name, "{{.State.Status}} {{.State.ExitCode}}"), "running 0");
    let pid: u32 = podman.inspect(&name, "{{.State.Pid}}").parse().unwrap();
    assert!(
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("usr1"),
        "the pid is the program's"
    );

    assert_eq!(podman.call(&["exec", &name, "sh", "-c", "echo in; exit 4"]).code(4).stdout(), "in\n");
    let options = ["exec", "--user", "1000", "--env", "A=b", "--workdir", "/tmp", &name];
    let output = podman.call(&[&options[..], &["sh", "-c", "id -u; echo $A; pwd"]].concat());
    assert_eq!(output.success().stdout(), "1000\nb\n/tmp\n");
    podman.call(&["exec", &name, "nonesuch"]).code(127);
    podman.call(&["exec", &name, "/etc/passwd"]).code(126);
    podman.call(&["exec", "--detach", &name, "sh", "-c", "echo done > /root/detached"]).success();
    let written = || podman.call(&["exec", &name, "cat", "/root/detached"]).stdout() == "done\n";
    eventually("the detached process has run", written);

    podman.call(&["kill", "--signal", "USR1", &name]).success();
    eventually("the signal came", || podman.call(&["logs", &name]).stdout().ends_with("usr1\n"));
    let top = podman.call(&["top", &name, "pid", "args"]);
    assert!(top.success().stdout().lines().any(|line| line.starts_with("1 ") && line.contains("usr1")), "{top:?}");

    podman.call(&["restart", "--time", "30", &name]).success();
    eventually("it is up again", || podman.call(&["logs", &name]).stdout().matches("up\n").count() == 2);
    podman.call(&["stop", "--time", "30", &name]).success();
    assert_eq!(podman.inspect(&name, "{{.State.Status}} {{.State.ExitCode}}"), "exited 7");
    podman.call(&["start", &name]).success();
    eventually("it is up again", || podman.call(&["logs", &name]).stdout().matches("up\n").count() == 3);
    podman.call(&["kill", &name]).success();
    assert_eq!(podman.call(&["wait", &name]).success().stdout(), "137\n");
    podman.call(&["rm", &name]).success();
}

#[test]
fn podman_has_terminals_for_containers_and_for_processes_in_them() {
    let world = World::new("pt");
    let podman = Podman::new(&world);
    let arguments = podman.run_arguments(&["--rm", "-it"], &["sh", "-c", "tty; test -t 0 && stty size; exit 5"]);
    let (text, status) = podman.at_terminal(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(text.contains("/dev/pts/0") && status == 5, "{status}: {text}");
    let name = podman.start(&[], SERVANT);
    let (text, status) = podman.at_terminal(&["exec", "-it", &name, "sh", "-c", "tty; exit 6"]);
    assert!(text.contains("/dev/pts/0") && status == 6, "{status}: {text}");
    podman.call(&["rm", "--force", "--time", "30", &name]).success();
}

#[test]
fn podman_pauses_a_container_and_lets_it_go_on() {
    let world = World::new("pp");
    let podman = Podman::new(&world);
    let name = podman.start(&[], "i=0; echo up; while :; do i=$((i+1)); echo $i > /root/count; done");
    let root = format!("/proc/{}/root/root/count", podman.inspect(&name, "{{.State.Pid}}"));
    let count = || std::fs::read_to_string(&root).unwrap();
    podman.call(&["pause", &name]).success();
    assert_eq!(podman.inspect(&name, "{{.State.Status}}"), "paused");
    let before = count();
    assert!(podman.call(&["exec", &name, "true"]).code != 0, "an exec in a paused container has to be refused");
    assert_eq!(count(), before);
    podman.call(&["unpause", &name]).success();
    assert_eq!(podman.inspect(&name, "{{.State.Status}}"), "running");
    eventually("it goes on", || count() != before);
    podman.call(&["pause", &name]).success();
    podman.call(&["rm", "--force", "--time", "0", &name]).success();
}

#[test]
fn a_process_that_podman_starts_first_reaps_and_passes_signals_on() {
    let world = World::new("pi");
    let podman = Podman::new(&world);
    let output = podman.run(&["--rm", "--init"], &["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; echo; echo $$"]);
    let lines: Vec<_> = output.success().stdout().lines().collect();
    assert!(lines[0].contains("podman-init") && lines[1] != "1", "{output:?}");
    let name = podman.start(&["--init"], SERVANT);
    podman.call(&["stop", "--time", "30", &name]).success();
    assert_eq!(podman.inspect(&name, "{{.State.ExitCode}}"), "7");
    assert!(podman.call(&["ps", "--all", "--format", "{{.Image}}"]).stdout().contains(IMAGE));
}
