//! A process that comes into a container from outside and becomes its first process's child.
//!
//! It comes by nsenter(1) and a shell that leaves it behind.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{eventually, process_status};

/// Runs a program in the namespaces and cgroups of a container's first process, with these standard streams, as its child.
/// Its pid there.
pub fn enter(init: i32, stdio: [BorrowedFd<'_>; 3], program: &[&str]) -> i32 {
    let target = init.to_string();
    let [stdin, stdout, stderr] = stdio.map(|stream| Stdio::from(stream.try_clone_to_owned().unwrap()));
    let mut command = Command::new("nsenter");
    // The shell gives what it leaves behind another standard input.
    let leave = "exec 3<&0; \"$@\" <&3 3<&- & :";
    // And would take its status if it were fast.
    let wait = "until grep -q '^PPid:.1$' /proc/$$/status; do sleep 0.01; done; exec \"$@\"";
    command.args(["-t", &target, "-p", "-m", "-n", "-i", "-u", "/bin/sh", "-c", leave, "sh"]);
    command.args(["/bin/sh", "-c", wait, "sh"]).args(program);
    command.env_clear().env("PATH", "/bin:/usr/bin");
    let status = command.stdin(stdin).stdout(stdout).stderr(stderr).status().unwrap();
    assert!(status.success());
    let mut found = None;
    eventually("it is left behind", || {
        found = children(init).first().copied();
        found.is_some()
    });
    let host = found.unwrap();
    for directory in fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap().lines() {
        let (controllers, path) = directory.split_once(':').unwrap().1.split_once(':').unwrap();
        let mounted = Path::new("/sys/fs/cgroup").join(controllers.trim_start_matches("name="));
        let file = mounted.join(&path[1..]).join("cgroup.procs");
        if file.exists() {
            // One that has ended already is in no need of it.
            let _ = fs::write(file, host.to_string());
        }
    }
    process_status(host, "NSpid").split_whitespace().next_back().unwrap().parse().unwrap()
}

/// The children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
