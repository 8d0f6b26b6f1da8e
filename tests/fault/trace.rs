//! strace(1) as the hand that kills: first it lists the calls that change something, then it ends the program at one.
//!
//! The program is killed on entering the call, so each point is the moment after one change and before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Running, World};

/// Calls that change something that outlives the process: files, mounts, processes, cgroups.
pub const CALLS: &str = "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,open,openat,creat,write,writev,\
    pwrite64,pwritev,copy_file_range,sendfile,fsync,fdatasync,syncfs,ftruncate,truncate,fallocate,link,linkat,symlink,\
    symlinkat,mknod,mknodat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,chmod,fchmod,fchmodat,\
    chown,lchown,fchown,fchownat,utimensat,mount,umount2,move_mount,fsmount,pivot_root,unshare,setns,clone,clone3,\
    fork,vfork,kill,pidfd_send_signal,connect,sendto,sendmsg,setsid";

/// The one call among them that mostly only looks.
const OPENS: [&str; 2] = ["open", "openat"];
const WRITABLE: [&str; 3] = ["O_CREAT", "O_WRONLY", "O_RDWR"];

/// A program to be killed.
#[derive(Debug)]
pub struct Victim {
    /// What it is called with.
    pub arguments: Vec<String>,
    /// Which of its processes and threads are killed.
    pub follow: Follow,
}

/// How far the killing reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// The program's own process, as long as it has one thread. What it forks lives on.
    Process,
    /// Whichever thread or child comes to the call first.
    Everything,
}

/// Entering the nth call of a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The call.
    pub call: String,
    /// From 1.
    pub number: usize,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.call, self.number)
    }
}

/// A program that ended, or was killed, and strace beside it: with children traced, that stays as long as one of them.
#[derive(Debug)]
pub struct Traced {
    strace: Running,
    /// Whether it was killed.
    pub killed: bool,
}

impl Traced {
    /// Everything of the program ends.
    pub fn finish(self) {
        let output = self.strace.finish();
        assert!(self.killed || output.code == 0, "it failed without being killed: {output:?}");
    }
}

/// Runs the program unharmed, and gives the points at which it can be killed.
pub fn record(world: &World, victim: &Victim) -> Vec<Point> {
    let log = log(world);
    let mut command = strace(victim, &log);
    command.args(["-e", &format!("trace={CALLS}")]);
    spawn(world, command, victim).finish().success();
    let points = parse(&fs::read_to_string(&log).unwrap());
    assert!(points.len() > 2, "strace saw nothing of {:?}", victim.arguments);
    points.into_iter().collect()
}

/// Runs the program and kills it at a point, if it comes that far.
pub fn kill_at(world: &World, victim: &Victim, point: &Point) -> Traced {
    let log = log(world);
    let mut command = strace(victim, &log);
    let Point { call, number } = point;
    command.args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=SIGKILL:when={number}")]);
    let mut strace = spawn(world, command, victim);
    while strace.child.try_wait().unwrap().is_none() && !(was_killed(&log) && children(strace.pid()).is_empty()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    Traced { strace, killed: was_killed(&log) }
}

fn log(world: &World) -> PathBuf {
    world.base().join("out/strace.log")
}

fn strace(victim: &Victim, log: &Path) -> Command {
    let _ = fs::remove_file(log);
    let mut command = Command::new("strace");
    command.arg("-o").arg(log).args(["-e", "signal=KILL", "-s", "0"]);
    if victim.follow == Follow::Everything {
        command.arg("-f");
    }
    command
}

fn spawn(world: &World, mut command: Command, victim: &Victim) -> Running {
    let arguments: Vec<&str> = victim.arguments.iter().map(String::as_str).collect();
    let program = world.command(&arguments);
    command.arg("--").arg(program.get_program()).args(program.get_args());
    command.current_dir(world.base()).stdin(Stdio::null());
    world.spawn(command)
}

/// The program itself is strace's only child.
fn children(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
}

fn was_killed(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains("+++ killed by SIGKILL +++"))
}

/// Counts the calls as strace does when it injects: by name, and for each thread on its own.
pub fn parse(log: &str) -> BTreeSet<Point> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut points = BTreeSet::new();
    for line in log.lines() {
        let (thread, rest) = match line.split_once(' ') {
            Some((first, rest)) if first.bytes().all(|byte| byte.is_ascii_digit()) => (first, rest.trim_start()),
            _ => ("", line),
        };
        let Some((call, arguments)) = rest.split_once('(') else { continue };
        if call.is_empty() || !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let count = counts.entry((thread, call)).or_default();
        *count += 1;
        if !OPENS.contains(&call) || WRITABLE.iter().any(|flag| arguments.contains(flag)) {
            points.insert(Point { call: call.to_owned(), number: *count });
        }
    }
    points
}

#[test]
fn calls_are_counted_by_name_and_thread() {
    let log = "12 openat(AT_FDCWD, \"\"..., O_RDONLY) = 3\n12 rename(\"\"..., \"\"...) = 0\n13 rename( <unfinished ...>\n\
        12 openat(AT_FDCWD, \"\"..., O_WRONLY|O_CREAT, 0600) = 3\n13 <... rename resumed>) = 0\n12 +++ exited with 0 +++\n";
    let found: Vec<String> = parse(log).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["openat#2", "rename#1"]);
    assert_eq!(parse("rename(\"\"..., \"\"...) = 0\nrename(\"\"..., \"\"...) = 0\n").len(), 2);
}
