//! A container's root in a thread: `unshare(CLONE_NEWNS)` works for one thread alone, and what it mounts, and that it
//! pivots, is gone with it. So tests look at the inside with plain `std::fs`, beside each other, without a program.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::Spec;
use regen::rootfs::{Around, Entered, Hierarchy, Pivot, plan};
use rustix::mount::{MountPropagationFlags, mount_change};
use serde_json::{Value, json};

/// A directory with an empty root file system, and beside it what the host has.
pub struct Place {
    base: tempfile::TempDir,
    /// Of the container.
    pub cgroups: Vec<Hierarchy>,
    /// Namespaces besides the mount namespace that the thread gets.
    pub namespaces: CloneFlags,
    /// How the root is entered.
    pub pivot: Pivot,
    /// What the host is like: done in the thread, before anything else, with nothing shared.
    pub host_is: Option<fn()>,
}

impl Place {
    pub fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        for directory in ["rootfs", "bundle", "host"] {
            fs::create_dir(base.path().join(directory)).unwrap();
        }
        Self { base, cgroups: Vec::new(), namespaces: CloneFlags::empty(), pivot: Pivot::Pivot, host_is: None }
    }

    /// A path in the image.
    pub fn image(&self, path: &str) -> PathBuf {
        self.base.path().join("rootfs").join(path)
    }

    /// A path of the host that is not in the image.
    pub fn host(&self, path: &str) -> PathBuf {
        self.base.path().join("host").join(path)
    }

    /// Makes a directory of the image.
    pub fn directory(&self, path: &str) -> PathBuf {
        let path = self.image(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Enters a container and looks around in it; the failure's text if there is none to enter.
    pub fn enter<T: Send>(&self, spec: &Value, look: impl FnOnce() -> T + Send) -> Result<T, String> {
        self.enter_with(spec, |_| {}, look)
    }

    /// The same, with a step between the pivot and what comes last.
    pub fn enter_with<T: Send>(
        &self,
        spec: &Value,
        between: impl FnOnce(&Entered) + Send,
        look: impl FnOnce() -> T + Send,
    ) -> Result<T, String> {
        let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
        let (bundle, rootfs) = (self.base.path().join("bundle"), self.base.path().join("rootfs"));
        let around = Around { bundle: &bundle, rootfs: &rootfs, cgroups: &self.cgroups, pivot: self.pivot };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS | self.namespaces).unwrap();
                if let Some(change) = self.host_is {
                    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
                    change();
                }
                let mut plan = plan(&spec, &around).map_err(|error| error.to_string())?;
                plan.open_sources().map_err(|error| error.to_string())?;
                let mounted = plan.mount().map_err(|error| error.to_string())?;
                let entered = mounted.enter().map_err(|error| error.to_string())?;
                between(&entered);
                entered.finish().map_err(|error| error.to_string())?;
                Ok(look())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// A specification with these mounts, below the usual /proc and /dev.
pub fn spec(mounts: &Value) -> Value {
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
    ];
    all.extend(mounts.as_array().unwrap().iter().cloned());
    bare(&Value::Array(all))
}

/// A specification with exactly these mounts.
pub fn bare(mounts: &Value) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": "mount"}]},
    })
}

/// A line of the mount table, of the last mount at a path.
#[derive(Debug, Clone)]
pub struct Line {
    /// Of the mount: `rw,nosuid`.
    pub options: Vec<String>,
    /// `shared:1`, `master:2`.
    pub tags: Vec<String>,
    /// Type of the file system.
    pub kind: String,
    /// Of the file system.
    pub superblock: Vec<String>,
}

/// The mount at a path of the container, if there is one.
pub fn mounted(path: &str) -> Option<Line> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(path))?;
    let (head, tail) = line.split_once(" - ").unwrap();
    let words = |text: &str| text.split(',').map(str::to_owned).collect();
    Some(Line {
        options: words(head.split(' ').nth(5).unwrap()),
        tags: head.split(' ').skip(6).map(str::to_owned).collect(),
        kind: tail.split(' ').next().unwrap().to_owned(),
        superblock: words(tail.split(' ').nth(2).unwrap()),
    })
}

impl Line {
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|other| other == option)
    }
}

/// Names in a directory, sorted.
pub fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}
