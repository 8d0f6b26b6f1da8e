//! What a test may not leave behind, and how it is taken away if it did.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What was killed takes a moment to vanish.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lets the processes that pack in the background come to their end.
pub fn wait_for_workers(base: &Path, limit: Duration) {
    let deadline = Instant::now() + limit;
    let stores: Vec<_> = homes(base).iter().map(|home| home.join("store")).collect();
    let works = || {
        let processes = stores.iter().flat_map(|store| processes(store, "\0"));
        processes.into_iter().any(|(_, line)| line.trim_end().ends_with(" worker"))
    };
    while works() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything that is still there after a while.
pub fn find_lasting(base: &Path, prefix: &str) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = find(base, prefix);
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn find(base: &Path, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(mounts(base).iter().map(|path| format!("mount {}", path.display())));
    found.extend(cgroups(prefix).iter().map(|path| format!("cgroup {}", path.display())));
    found.extend(processes(base, prefix).into_iter().map(|(pid, text)| format!("process {pid}: {text}")));
    found.extend(zombies().into_iter().map(|pid| format!("zombie {pid}")));
    found.extend(loop_devices(base).into_iter().map(|name| format!("loop device {name}")));
    for home in homes(base) {
        found.extend(states(&home).iter().map(|path| format!("state {}", path.display())));
        found.extend(runs(&home).iter().map(|path| format!("run {}", path.display())));
        found.extend(temporary(&home.join("store")).iter().map(|path| format!("temporary {}", path.display())));
    }
    found
}

/// The directories with a root and a store: the world's, and those of the hosts of a site.
fn homes(base: &Path) -> Vec<PathBuf> {
    let hosts = fs::read_dir(base.join("hosts")).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(base.to_owned()).chain(hosts).collect()
}

/// Takes away what can be.
pub fn clean(base: &Path, prefix: &str) {
    for state in homes(base).iter().flat_map(|home| states(home)) {
        let (Some(root), Some(id)) = (state.parent(), state.file_name().and_then(|name| name.to_str())) else {
            continue;
        };
        let mut command = Command::new(super::REGEN);
        command.arg("--root").arg(root).args(["delete", "--force", id]);
        if let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            let deadline = Instant::now() + Duration::from_secs(20);
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
    for (pid, _) in processes(base, prefix) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for mount in mounts(base).iter().rev() {
        let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
    }
    let deadline = Instant::now() + PATIENCE;
    while !cgroups(prefix).is_empty() && Instant::now() < deadline {
        for cgroup in cgroups(prefix).iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn mounts(base: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(base)).collect()
}

/// Parents before children.
fn cgroups(prefix: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, prefix: &str, below: bool, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let ours = below || entry.file_name().to_string_lossy().contains(prefix);
                if ours {
                    found.push(entry.path());
                }
                walk(&entry.path(), prefix, ours, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), prefix, false, &mut found);
    found
}

fn processes(base: &Path, prefix: &str) -> Vec<(i32, String)> {
    let me = i32::try_from(std::process::id()).unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == me {
            continue;
        }
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let inside = |name: &str| fs::read_link(entry.path().join(name)).is_ok_and(|path| path.starts_with(base));
        // A keeper names its instance.
        let verbs = ["keeper", "template-keeper", "template-worker"];
        let keeper = verbs
            .iter()
            .any(|verb| line.starts_with(&format!("regen {verb} ")) || line.contains(&format!("/regen {verb} ")));
        let named =
            line.contains(&*base.to_string_lossy()) || groups.contains(prefix) || (keeper && line.contains(prefix));
        if named || inside("root") || inside("cwd") || inside("exe") {
            found.push((pid, line));
        }
    }
    found
}

/// Dead children of the test process that nobody has reaped. Another test may just be at it: see `find_lasting`.
fn zombies() -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')) {
                found.push(pid);
            }
        }
    }
    found
}

fn loop_devices(base: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end()).starts_with(base) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

fn states(base: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(base.join("run")).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    // No container's name begins so: it is where creators attach root file systems, and where keepers have their own.
    let others = |path: &PathBuf| path.ends_with("@rootfs") || (path.ends_with("@keepers") && is_empty(path));
    directories.map(|entry| entry.path()).filter(|path| !others(path)).collect()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Uppers that were neither sealed nor thrown away.
fn runs(base: &Path) -> Vec<PathBuf> {
    let runs = fs::read_dir(base.join("store/runs")).into_iter().flatten().flatten().map(|entry| entry.path());
    runs.filter(|run| run.join("upper").exists()).collect()
}

/// Half-written files and directories in the store: their names begin as `sys` names them.
fn temporary(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !directory.ends_with("layers") {
                pending.push(entry.path());
            }
        }
    }
    found
}
