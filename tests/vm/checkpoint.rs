//! Containers that become files, and go on from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Directory, Output, World, cgroup_of, eventually, process_status};

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

/// The same with the null device as the standard input.
const WITHOUT_INPUT: &str = "\"$@\" > >(cat) 2> >(cat >&2) < /dev/null";

/// A verb with pipes as its standard streams: what else they may be is not the container's.
pub fn through_pipes(world: &World, arguments: &[&str]) -> Command {
    through(PIPED, world, arguments)
}

fn through(script: &str, world: &World, arguments: &[&str]) -> Command {
    let command = world.command(arguments);
    let words = command.get_args().map(|word| word.to_str().unwrap().to_owned());
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "bash", command.get_program().to_str().unwrap()]);
    shell.args(words).current_dir(world.base());
    shell
}

pub fn piped(world: &World, arguments: &[&str]) -> Output {
    let output = world.finish(through_pipes(world, arguments));
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
    // What stays as it is outweighs what a shell happens to touch.
    let script = format!("x=$(printf %1000000d 0); {COUNTER}");
    let (id, bundle) = (world.id("a"), counter(&world, |spec| spec["process"]["args"] = json!(["sh", "-c", script])));
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

#[test]
fn a_restore_in_the_foreground_passes_signals_on_and_ends_as_the_program_does() {
    let world = World::new("criufg");
    let id = world.id("a");
    let log = |name: &str| world.base().join(format!("{name}.mask"));
    let hook = |name: &str| {
        let command = format!("/SigBlk/w {}", log(name).display());
        json!([{"path": "/bin/sed", "args": ["sed", "-n", command, "/proc/self/status"]}])
    };
    let hooks = ["prestart", "createRuntime", "poststart"];
    let bundle = counter(&world, |spec| {
        spec["hooks"] = hooks.into_iter().map(|name| (name.to_owned(), hook(name))).collect();
        spec["process"]["args"] = json!(["sh", "-c", format!("trap 'echo over; exit 3' TERM; {COUNTER}")]);
    });
    let path = images(&world, "images").1;
    start(&world, &bundle, &id);
    world.regen(&["checkpoint", "--image-path", &path, &id]).success();
    let saved = counted(&world);
    for name in hooks {
        fs::remove_file(log(name)).unwrap();
    }
    let mut command = through_pipes(&world, &["restore", "--image-path", &path, "--bundle", bundle.text(), &id]);
    command.stdin(Stdio::null());
    let mut restore = world.spawn(command);
    eventually("it counts on", || {
        let ended = restore.child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?} {}", restore.complaints());
        counted(&world) > saved + 3
    });
    // Its parent is who waits for it.
    let parent = process_status(world.pid(&id), "PPid").parse().unwrap();
    assert!(fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap().contains("restore"));
    signal::kill(Pid::from_raw(parent), signal::Signal::SIGTERM).unwrap();
    eventually("its last word arrives", || restore.so_far() == "over\n");
    restore.finish().code(3);
    // That signals wait for the container is none of the hooks' business.
    for name in hooks {
        assert_eq!(fs::read_to_string(log(name)).unwrap(), "SigBlk:\t0000000000000000\n", "{name}");
    }
    world.regen(&["state", &id]).fails_with(1, "does not exist");
}

#[test]
fn a_restore_runs_the_hooks_of_the_host_once_its_processes_are_there() {
    let world = World::new("criuhooks");
    let (id, plain, path) = (world.id("a"), counter(&world, |_| {}), images(&world, "images").1);
    start(&world, &plain, &id);
    world.regen(&["checkpoint", "--image-path", &path, &id]).success();
    let log = world.base().join("hooks.log");
    let hook = |name: &str| {
        let script = format!("cat > {0}.{name}; echo {name} >> {0}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let bundle = counter(&world, |spec| {
        spec["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "createContainer": hook("createContainer"), "startContainer": hook("startContainer"),
            "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
    });
    piped(&world, &["restore", "-d", "--image-path", &path, "--bundle", bundle.text(), &id]).success();
    let pid = world.pid(&id);
    world.delete(&id);
    assert_eq!(fs::read_to_string(&log).unwrap(), "prestart\ncreateRuntime\npoststart\npoststop\n");
    for (name, status) in [("prestart", "creating"), ("createRuntime", "creating"), ("poststart", "running")] {
        let text = fs::read_to_string(format!("{}.{name}", log.display())).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((state["status"].as_str(), state["pid"].as_i64()), (Some(status), Some(pid.into())), "{name}");
    }
}

#[test]
fn a_restored_container_has_the_volumes_of_its_new_bundle() {
    let world = World::new("criuvolume");
    let (id, path) = (world.id("a"), images(&world, "images").1);
    let file = world.base().join("greeting");
    fs::write(&file, "hello\n").unwrap();
    let bundle = |volume: &str| {
        let volume = world.base().join(volume);
        fs::create_dir(&volume).unwrap();
        let bundle = counter(&world, |spec| {
            spec["process"]["args"] = json!(["sh", "-c", COUNTER.replace("/tmp/", "/data/")]);
            spec["mounts"].as_array_mut().unwrap().extend([
                json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"]}),
                json!({"destination": "/greeting", "type": "bind", "source": file, "options": ["bind", "ro"]}),
            ]);
        });
        (bundle, volume.join("count"))
    };
    let (before, count) = bundle("before");
    piped(&world, &["run", "-d", "--bundle", before.text(), &id]).success();
    eventually("it counts", || read(&count) > 2);
    world.regen(&["checkpoint", "--image-path", &path, &id]).success();
    let saved = read(&count);
    let (after, count) = bundle("after");
    piped(&world, &["restore", "-d", "--image-path", &path, "--bundle", after.text(), &id]).success();
    eventually("it counts on", || read(&count) > saved + 2);
    let script = "cat /greeting; echo > /greeting || echo refused";
    assert_eq!(world.regen(&["exec", &id, "sh", "-c", script]).success().stdout(), "hello\nrefused\n");
    world.delete(&id);
}

#[test]
fn a_restored_container_has_the_null_device_of_its_own_as_before() {
    let world = World::new("criunull");
    let (id, bundle, path) = (world.id("a"), counter(&world, |_| {}), images(&world, "images").1);
    world.finish(through(WITHOUT_INPUT, &world, &["run", "-d", "--bundle", bundle.text(), &id])).success();
    eventually("it counts", || counted(&world) > 2);
    world.regen(&["checkpoint", "--image-path", &path, &id]).success();
    piped(&world, &["restore", "-d", "--image-path", &path, "--bundle", bundle.text(), &id]).success();
    let places = ["exec", &id, "stat", "-L", "-c", "%d:%i", "/proc/1/fd/0", "/dev/null"];
    let output = world.regen(&places);
    let lines: Vec<&str> = output.success().stdout().lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{lines:?}");
    world.delete(&id);
}
