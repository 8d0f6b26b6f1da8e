//! Containers that become files, and go on from them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Directory, Output, World, cgroup_of, eventually};

/// Counts on, in a file.
const COUNTER: &str =
    "i=0; while :; do i=$((i+1)); echo $i > /tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.1; done";

/// Runs its arguments between pipes. Nobody waits for those at the other ends, who stay as long as the container.
const PIPED: &str = "set -o pipefail; true | \"$@\" > >(cat) 2> >(cat >&2)";

fn counter(world: &World, change: impl FnOnce(&mut Value)) -> Directory {
    world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", COUNTER]);
        spec["linux"]["resources"]["pids"] = json!({"limit": 30});
        change(spec);
    })
}

/// Runs a verb with pipes as its standard streams: what else they may be is not the container's.
fn piped(world: &World, arguments: &[&str]) -> Output {
    let command = world.command(arguments);
    let words = command.get_args().map(|word| word.to_str().unwrap().to_owned());
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", PIPED, "bash", command.get_program().to_str().unwrap()]);
    shell.args(words).current_dir(world.base());
    let output = world.finish(shell);
    // The last words may still be on their way through the pipe: the log has them all.
    let log = arguments
        .iter()
        .position(|word| *word == "--image-path")
        .map(|at| format!("{}/restore.log", arguments[at + 1]));
    let log = log.and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
    assert!(output.code == 0, "{output:?}\n{}", errors.join("\n"));
    output
}

fn read(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn counted(world: &World) -> u64 {
    read(&world.rootfs().join("tmp/count"))
}

fn start(world: &World, bundle: &Directory, id: &str) {
    piped(world, &["run", "-d", "--bundle", bundle.text(), id]).success();
    eventually("it counts", || counted(world) > 2);
}

fn images(world: &World, name: &str) -> (PathBuf, String) {
    let path = world.base().join(name);
    (path.clone(), path.to_str().unwrap().to_owned())
}

#[test]
fn a_container_goes_on_where_it_was_saved() {
    let world = World::new("criu");
    let (id, bundle) = (world.id("a"), counter(&world, |_| {}));
    let (_, path) = images(&world, "images");
    start(&world, &bundle, &id);
    world.regen(&["checkpoint", "--image-path", &path, &id]).success();
    world.regen(&["state", &id]).fails_with(1, "does not exist");
    let saved = counted(&world);
    let other = world.id("b");
    let pid_file = world.base().join("pid");
    let pid_text = pid_file.to_str().unwrap();
    let restore = ["restore", "-d", "--image-path", &path, "--bundle", bundle.text(), "--pid-file", pid_text, &other];
    piped(&world, &restore).success();
    eventually("it counts on", || counted(&world) > saved + 3);
    assert_eq!(world.status(&other), "running");
    let pid = world.pid(&other);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    let cgroup = cgroup_of(pid);
    assert!(cgroup.ends_with(&other), "{}", cgroup.display());
    assert_eq!(fs::read_to_string(cgroup.join("pids.max")).unwrap(), "30\n");
    assert_eq!(
        world.regen(&["exec", &other, "sh", "-c", "echo $$ > /dev/null; cat /proc/1/comm"]).success().stdout(),
        "sh\n"
    );
    world.regen(&["pause", &other]).success();
    world.regen(&["resume", &other]).success();
    world.regen(&["kill", &other, "KILL"]).success();
    eventually("it ends", || world.status(&other) == "stopped");
    world.regen(&["delete", &other]).success();
}

#[test]
fn a_container_that_is_left_running_is_saved_again_with_less() {
    let world = World::new("predump");
    let (id, bundle) = (world.id("a"), counter(&world, |_| {}));
    start(&world, &bundle, &id);
    let (first, first_path) = images(&world, "first");
    let (second, second_path) = images(&world, "second");
    world.regen(&["checkpoint", "--pre-dump", "--image-path", &first_path, &id]).success();
    assert_eq!(world.status(&id), "running");
    let flags = ["checkpoint", "--leave-running", "--parent-path", "../first", "--image-path", &second_path, &id];
    world.regen(&flags).success();
    assert_eq!(world.status(&id), "running");
    let size = |directory: &Path| {
        let files = fs::read_dir(directory).unwrap().flatten();
        let pages = files.filter(|file| file.file_name().to_string_lossy().starts_with("pages-"));
        pages.map(|file| file.metadata().unwrap().len()).sum::<u64>()
    };
    assert!(size(&second) < size(&first), "{} after {}", size(&second), size(&first));
    let seen = counted(&world);
    eventually("it still counts", || counted(&world) > seen);
    world.delete(&id);
    // What it counted after it was saved, it counts again.
    piped(&world, &["restore", "-d", "--image-path", &second_path, "--bundle", bundle.text(), &id]).success();
    eventually("it goes on", || counted(&world) > seen);
    world.delete(&id);
}

#[test]
fn a_container_in_a_ring_is_restored_over_what_it_left() {
    let world = World::new("criuring");
    let (id, path) = (world.id("a"), images(&world, "images").1);
    let bundle = counter(&world, |spec| spec["annotations"] = json!({"run.regen.ring": "alice"}));
    piped(&world, &["run", "-d", "--bundle", bundle.text(), &id]).success();
    let count = |id: &str| {
        let output = world.regen(&["exec", id, "cat", "/tmp/count"]);
        output.stdout().trim().parse::<u64>().unwrap_or(0)
    };
    eventually("it counts", || count(&id) > 2);
    world.regen(&["checkpoint", "--image-path", &path, &id]).success();
    assert_eq!(world.log("alice").len(), 1, "its changes are an entry");
    let saved: u64 = world.ring(&["cat", "alice", "/tmp/count"]).stdout().trim().parse().unwrap_or(3);
    piped(&world, &["restore", "-d", "--image-path", &path, "--bundle", bundle.text(), &id]).success();
    eventually("it counts on", || count(&id) > saved + 2);
    world.regen(&["kill", &id, "KILL"]).success();
    eventually("it ends", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
    assert_eq!(world.log("alice").len(), 2);
    world.pack();
}
