//! The life of a container as Docker's users see it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::docker::Docker;
use crate::harness::{World, eventually};

/// A program that tells of signals and ends with 7 when it is told to.
const SERVANT: &str = "trap 'exit 7' TERM; trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done";

#[test]
fn a_container_of_docker_lives_through_all_its_verbs() {
    let world = World::new("dl");
    let docker = Docker::new(&world, &[]);
    let output = docker.run("regen", &["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((output.code(3).stdout(), output.stderr()), ("out\n", "err\n"));
    let name = docker.start("regen", &["--memory", "64m", "--pids-limit", "50"], SERVANT);
    assert_eq!(docker.inspect(&name, "{{.State.Status}} {{.HostConfig.Runtime}}"), "running regen");
    assert_eq!(docker.call(&["exec", &name, "sh", "-c", "echo in; exit 4"]).code(4).stdout(), "in\n");
    let limits = ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max"];
    let read = docker.call(&["exec", &name, "cat", limits[0], limits[1]]);
    assert_eq!(read.success().stdout(), format!("{}\n50\n", 64 << 20));
    let stats = docker.call(&["stats", "--no-stream", "--format", "{{.MemUsage}}", &name]);
    assert!(stats.success().stdout().ends_with("/ 64MiB\n"), "{stats:?}");
    docker.call(&["update", "--memory", "80m", "--memory-swap", "80m", &name]).success();
    let read = docker.call(&["exec", &name, "cat", limits[0]]);
    assert_eq!(read.success().stdout(), format!("{}\n", 80 << 20));
    docker.call(&["pause", &name]).success();
    assert_eq!(docker.inspect(&name, "{{.State.Status}}"), "paused");
    docker.call(&["unpause", &name]).success();
    assert_eq!(docker.inspect(&name, "{{.State.Status}}"), "running");
    let top = docker.call(&["top", &name, "-o", "pid,args"]);
    assert!(top.success().stdout().contains("usr1"), "{top:?}");
    docker.call(&["kill", "--signal", "USR1", &name]).success();
    eventually("the signal came", || docker.call(&["logs", &name]).stdout().ends_with("usr1\n"));
    docker.call(&["restart", "--time", "30", &name]).success();
    eventually("it is up again", || docker.call(&["logs", &name]).stdout().matches("up\n").count() == 2);
    docker.call(&["stop", "--time", "30", &name]).success();
    assert_eq!(docker.inspect(&name, "{{.State.Status}} {{.State.ExitCode}}"), "exited 7");
    let filter = format!("container={name}");
    let restarted = ["kill", "kill", "die", "stop", "start", "restart", "kill", "die", "stop"];
    let expected = [&["create", "start", "update", "pause", "unpause", "top"][..], &restarted].concat();
    eventually("the daemon has told of everything", || {
        // It prints what has happened until now, and ends.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let events = ["events", "--since", "0", "--until", &now, "--filter", &filter, "--format", "{{.Action}}"];
        let events = docker.call(&events);
        let events = events.success().stdout().lines().filter(|event| !event.starts_with("exec"));
        events.eq(expected.iter().copied())
    });
    docker.call(&["rm", &name]).success();
}

#[test]
fn docker_tells_its_user_why_regen_refused() {
    let world = World::new("de");
    let docker = Docker::new(&world, &[]);
    let missing = docker.run("regen", &["--rm"], &["nonesuch"]);
    assert!(missing.code(127).stderr().contains("executable file not found in"), "{missing:?}");
    let forbidden = docker.run("regen", &["--rm"], &["/etc/passwd"]);
    assert!(forbidden.code(126).stderr().contains("permission denied"), "{forbidden:?}");
    let name = docker.start("regen", &["--init"], SERVANT);
    let first = docker.call(&["exec", &name, "cat", "/proc/1/comm"]);
    assert_eq!(first.success().stdout(), "docker-init\n");
    docker.call(&["exec", &name, "nonesuch"]).code(126);
    let user = ["exec", "--user", "1000", "--env", "A=b", "--workdir", "/tmp", &name];
    let output = docker.call(&[&user[..], &["sh", "-c", "id -u; echo $A; pwd"]].concat());
    assert_eq!(output.success().stdout(), "1000\nb\n/tmp\n");
    let walls = ["--rm", "--read-only", "--tmpfs", "/x", "--cap-drop", "all", "--user", "1000"];
    let script = "echo y > /y || echo x > /x/x && grep -E '^(CapBnd|Seccomp):' /proc/self/status";
    let output = docker.run("regen", &walls, &["sh", "-c", script]);
    assert_eq!(output.success().stdout(), "CapBnd:\t0000000000000000\nSeccomp:\t2\n");
    docker.call(&["stop", "--time", "30", &name]).success();
    assert_eq!(docker.inspect(&name, "{{.State.ExitCode}}"), "7");
}
