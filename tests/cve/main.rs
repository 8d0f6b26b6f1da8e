//! Ways out of a container that other runtimes once left open, each tried by a hostile bundle, image or neighbour. It is
//! refused or contained; docs/security.md has the table. A module per door, a test per way through it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod binary;
mod console;
mod descriptor;
mod device;
mod masked;
mod procfs;
mod race;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use harness::{Directory, Output, REGEN, World};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

/// A directory of the host's that nobody in a container has any business with.
fn host_directory(world: &World) -> PathBuf {
    let host = world.base().join("host");
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("secret"), "of the host").unwrap();
    host
}

/// It is as [`host_directory`] made it.
#[track_caller]
fn assert_untouched(host: &Path) {
    use std::os::unix::fs::MetadataExt;
    assert_eq!(harness::ring::names(host), ["secret"], "something was made on the host");
    assert_eq!(fs::read_to_string(host.join("secret")).unwrap(), "of the host");
    let owner = fs::metadata(host.join("secret")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (0, 0));
}

/// A root file system of this test's own, beside the shared one.
fn image(world: &World, name: &str) -> PathBuf {
    let image = world.base().join(name);
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(world.rootfs()).arg(&image);
    world.finish(copy).success();
    image
}

/// A bundle over a root file system, whose program is a script.
fn shell_in(world: &World, image: &Path, script: &str, change: impl FnOnce(&mut Value)) -> Directory {
    world.bundle(|spec| {
        spec["root"]["path"] = image.to_str().unwrap().into();
        spec["process"]["args"] = json!(["sh", "-c", script]);
        change(spec);
    })
}

fn run(world: &World, bundle: &Directory) -> Output {
    world.regen(&["run", "--bundle", bundle.text(), &world.fresh_id()])
}

/// It ended with 1 and one line, or ran and printed exactly this.
#[track_caller]
fn assert_refused_or_prints(output: &Output, expected: &str) {
    match output.code {
        0 => assert_eq!(output.stdout(), expected, "{output:?}"),
        _ => drop(output.fails_with(1, "")),
    }
}

/// Creates a container while two names in its image change places, and starts it once they stay where they are: a
/// mount goes with the directory that it is on, so only then is there something to look at. Gives what its script
/// left in `/tmp/answer`, `None` if the container was refused; and how often the two have changed places.
fn create_amid(world: &World, image: &Path, bundle: &Directory, exchanged: (&str, &str)) -> (Option<String>, u64) {
    let (id, answer) = (world.fresh_id(), image.join("tmp/answer"));
    let exchange = Exchange::start(image.join(exchanged.0), image.join(exchanged.1));
    let output = world.regen(&["create", "--bundle", bundle.text(), &id]);
    let count = exchange.finish();
    if output.code != 0 {
        output.fails_with(1, "");
        return (None, count);
    }
    world.regen(&["start", &id]).success();
    harness::eventually("its script has ended", || world.status(&id) == "stopped");
    world.delete(&id);
    let text = fs::read_to_string(&answer).unwrap();
    fs::remove_file(answer).unwrap();
    (Some(text), count)
}

/// Without the mounts whose destination this chooses.
fn drop_mounts(spec: &mut Value, which: impl Fn(&str) -> bool) {
    spec["mounts"].as_array_mut().unwrap().retain(|mount| !which(mount["destination"].as_str().unwrap()));
}

fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

/// Runs the program with directories of the host open that it was not told of, as a careless engine does.
fn with_leaked_descriptors(world: &World, host: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    let script = "exec 3<\"$1\" 4<\"$1\" 5<\"$1\" 6<\"$1\" 7<\"$1\" 8<\"$1\" 9<\"$1\"; shift; exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(host).arg(REGEN);
    command.arg("--root").arg(world.root()).arg("--store").arg(world.store()).args(arguments);
    world.finish(command)
}

/// Two names that change places as fast as they can, until this is dropped.
struct Exchange {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Exchange {
    fn start(one: PathBuf, other: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !told.load(Ordering::Relaxed) {
                // While it is mounted on it cannot move.
                count += u64::from(renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok());
            }
            count
        });
        Self { stop, thread: Some(thread) }
    }

    /// How often they have changed places.
    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
