//! Containers in rings, and looks at what is in a ring.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::inotify;
use serde_json::Value;

use super::{Output, World, eventually, leaks, limit, read_text};

impl World {
    /// The path of the shared root file system, as an argument.
    pub fn rootfs_text(&self) -> String {
        self.rootfs().to_str().unwrap().to_owned()
    }

    /// A container's id that this world has not used yet.
    pub fn fresh_id(&self) -> String {
        self.id(&format!("n{}", self.count()))
    }

    /// Runs a script on a ring, in the foreground, to its end.
    pub fn run_in(&self, ring: &str, script: &str) -> Output {
        self.run_with(&["--ring", ring], script)
    }

    /// Runs a script over the shared root file system with these flags of `run`.
    pub fn run_with(&self, flags: &[&str], script: &str) -> Output {
        let (rootfs, id) = (self.rootfs_text(), self.fresh_id());
        let mut arguments = vec!["run", "--rootfs", &rootfs];
        arguments.extend(flags);
        arguments.extend([&*id, "--", "sh", "-c", script]);
        self.regen(&arguments)
    }

    /// Starts a script on a ring and leaves it running.
    pub fn detach_in(&self, ring: &str, script: &str) -> String {
        let (rootfs, id) = (self.rootfs_text(), self.fresh_id());
        self.regen(&["run", "-d", "--rootfs", &rootfs, "--ring", ring, &id, "--", "sh", "-c", script]).success();
        id
    }

    /// A container in a ring that has appended a line to `/tmp/f`, and waits.
    #[track_caller]
    pub fn writer_in(&self, ring: &str, line: &str) -> String {
        let id = self.detach_in(ring, &format!("echo {line} >> /tmp/f; touch /dev/done; exec sleep 1000"));
        let done = PathBuf::from(format!("/proc/{}/root/dev/done", self.pid(&id)));
        eventually("it writes", || done.exists());
        id
    }

    /// Appends one more line to that file in a container.
    #[track_caller]
    pub fn append(&self, id: &str, line: &str) {
        self.regen(&["exec", id, "sh", "-c", &format!("echo {line} >> /tmp/f")]).success();
    }

    /// The lines of that file as a container sees them now.
    #[track_caller]
    pub fn lines_in(&self, id: &str) -> String {
        words(self.regen(&["exec", id, "cat", "/tmp/f"]).success().stdout())
    }

    /// The lines of that file as the next run in a ring finds them.
    #[track_caller]
    pub fn lines_found(&self, ring: &str) -> String {
        words(self.run_in(ring, "cat /tmp/f").success().stdout())
    }

    /// Runs `ring …`.
    pub fn ring(&self, arguments: &[&str]) -> Output {
        self.regen(&[&["ring"], arguments].concat())
    }

    /// What `ring … --json` prints.
    #[track_caller]
    pub fn ring_json(&self, arguments: &[&str]) -> Value {
        let output = self.ring(&[arguments, &["--json"]].concat());
        serde_json::from_str(output.success().stdout()).unwrap()
    }

    /// Waits until everything is packed and evicted, and nobody works in the background any more.
    #[track_caller]
    pub fn pack(&self) {
        self.ring(&["pack"]).success();
        leaks::wait_for_workers(self.base(), limit());
    }

    /// The entries of a ring, newest first.
    #[track_caller]
    pub fn log(&self, ring: &str) -> Vec<Value> {
        self.ring_json(&["log", ring]).as_array().unwrap().clone()
    }

    /// The numbers of a ring's entries, newest first.
    #[track_caller]
    pub fn seqs(&self, ring: &str) -> Vec<u64> {
        self.log(ring).iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
    }

    /// Waits until others have looked at one of root's rings again and again: a look opens its file four times at most.
    #[track_caller]
    pub fn await_looks(&self, ring: &str) {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, self.ring_directory(ring), inotify::WatchFlags::OPEN).unwrap();
        let mut opened = 0;
        eventually("it is looked at", || {
            let mut buffer = [MaybeUninit::uninit(); 1024];
            let mut events = inotify::Reader::new(&watch, &mut buffer);
            while let Ok(event) = events.next() {
                opened += usize::from(event.file_name() == Some(c"ring.json"));
            }
            opened > 8
        });
    }

    /// Whether a process lives that makes snapshots by itself.
    pub fn makes_snapshots(&self) -> bool {
        let line = format!("{} snapshots", self.store().display());
        Command::new("pgrep").args(["-f", &line]).output().unwrap().status.success()
    }

    /// The layers of an entry, lowest first.
    #[track_caller]
    pub fn layers_of(&self, target: &str) -> Vec<String> {
        let entry = self.ring_json(&["show", target]);
        entry["layers"].as_array().unwrap().iter().map(|layer| layer.as_str().unwrap().to_owned()).collect()
    }

    /// The directory of one of root's rings.
    pub fn ring_directory(&self, ring: &str) -> PathBuf {
        self.store().join("rings/root").join(ring)
    }

    /// A file of a ring, parsed.
    pub fn ring_file(&self, ring: &str, name: &str) -> Value {
        serde_json::from_str(&read_text(&self.ring_directory(ring).join(name))).unwrap()
    }

    /// Changes a file of a ring as somebody with an editor would.
    pub fn edit_ring_file(&self, ring: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.ring_file(ring, name);
        change(&mut value);
        fs::write(self.ring_directory(ring).join(name), value.to_string()).unwrap();
    }

    /// The names of the sealed and unpacked layers that are there.
    pub fn layers(&self) -> Vec<String> {
        names(&self.store().join("layers"))
    }

    /// The content of a layer.
    pub fn layer(&self, id: &str) -> PathBuf {
        self.store().join("layers").join(id).join("diff")
    }

    /// The hex digests of a ring's blobs.
    pub fn blobs(&self, ring: &str) -> Vec<String> {
        names(&self.ring_directory(ring).join("blobs/sha256"))
    }

    /// The digests of an entry's manifest, its config and its layers' blobs.
    pub fn closure(&self, target: &str) -> Vec<String> {
        let hex = |digest: &Value| digest.as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let digest = hex(&self.ring_json(&["show", target])["digest"]);
        let ring = target.split('@').next().unwrap();
        let manifest = self.ring_file(ring, &format!("blobs/sha256/{digest}"));
        let layers = manifest["layers"].as_array().unwrap().iter().map(|layer| hex(&layer["digest"]));
        let mut all: Vec<_> = layers.chain([digest, hex(&manifest["config"]["digest"])]).collect();
        all.sort();
        all
    }

    /// Everything below state root and store that could tell one moment from another, except locks and output.
    pub fn picture(&self) -> BTreeMap<PathBuf, String> {
        let mut picture = picture(&self.root());
        picture.extend(picture_without_locks(&self.store()));
        picture
    }
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn picture_without_locks(directory: &Path) -> BTreeMap<PathBuf, String> {
    let lock = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.ends_with("lock") || ["worker.next", "worker.json", "worker.seen", "metrics.json"].contains(&name.as_str())
    };
    let mut all = picture(directory);
    all.retain(|path, _| !lock(path));
    all
}

/// Each path below a directory, with all that stat says of it but the times that looking changes. Directories are known
/// by their content: a lock file that comes and goes in one is no change.
pub fn picture(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            let (mode, owner) = (metadata.mode(), (metadata.uid(), metadata.gid()));
            let content = if metadata.is_dir() {
                pending.push(entry.path());
                String::new()
            } else {
                let time = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
                format!("{} {} {} {time:?}", metadata.ino(), metadata.nlink(), metadata.len())
            };
            found.insert(entry.path(), format!("{mode:o} {owner:?} {content}"));
        }
    }
    found
}

/// The names in a directory, sorted; none if it is not there.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
