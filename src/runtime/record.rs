//! What we know of a container, on disk.
//!
//! Each file is written once and never replaced, so a reader without a lock sees it whole or not at all, and what is
//! there tells how far the container has come: `record.json` alone, it is being created; `init`, it was; and
//! `started`. (Replacing a file by rename would cost a write-back to disk each time on ext4.) What is short is the
//! target of a symlink: that appears whole in one call, and takes no block that would have to be freed again, which
//! costs milliseconds on a file system that discards at once.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use oci_spec::runtime::{Hook, Spec};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::bundle;
use crate::cgroup::{self, Cgroup, Directory};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::runtime::StateRoot;
use crate::sys::fs::{Durability, TEMPORARY_PREFIX, read_capped, replace_file};
use crate::sys::lock::DirectoryLock;
use crate::sys::process::Identity;

const FILE: &str = "record.json";
const INIT: &str = "init";
const RESTORED: &str = "restored";
const STARTED: &str = "started";
const CGROUP: &str = "cgroup";
const NAME: &str = "name";
const MEMO: &str = "memo";
const PROGRAM: &str = "program";
const CGROUPS: &str = "cgroups.json";
const FORMAT: u32 = 2;
/// No container's id begins like this.
pub(super) const TRASH: &str = "~";
/// Annotations and hooks are the user's, so there is no small bound.
const CAP: u64 = 32 << 20;

/// How far a container has come. That it has ended is not a phase: it is seen from its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// Its creator is at work, or died over it.
    #[default]
    Creating,
    /// Its process waits for `start`.
    Created,
    /// Its program was started.
    Running,
}

/// The content of `record.json`, and what the other files add.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub format: u32,
    pub id: ContainerId,
    /// What it was called when it was made, if it is called otherwise by now.
    #[serde(skip)]
    pub former: Option<ContainerId>,
    #[serde(skip)]
    pub phase: Phase,
    pub oci_version: String,
    /// The user's bundle.
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// The container's first process, from `Created` on.
    #[serde(skip)]
    pub init: Option<Identity>,
    /// Whether its processes came from files.
    #[serde(skip)]
    pub restored: bool,
    /// Its program, if that is another process, which the first one looks after.
    #[serde(skip)]
    pub program: Option<Identity>,
    pub created: DateTime<Utc>,
    /// The user who made it.
    pub owner: u32,
    pub cgroup: Cgroup,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<HashMap<String, String>>,
    /// Hooks for later: the others are run by the creator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
    /// Whether execs join the container's session keyring.
    pub keyring: bool,
    /// Whether its root was entered by chroot(2), so that an exec has to do so too.
    #[serde(default)]
    pub chroot: bool,
    /// Whatever the creator wants to find again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<serde_json::Value>,
    /// The specification that it is made with; most commands have no need to take it apart.
    pub spec: Box<RawValue>,
}

impl Record {
    /// A record at the very beginning.
    pub(super) fn format() -> u32 {
        FORMAT
    }

    /// Reads the record of a container; no lock is needed.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such container, [`Kind::Damaged`] if its record cannot be read.
    pub(super) fn load(root: &StateRoot, id: &ContainerId) -> Result<Self> {
        let directory = root.container(id);
        let operation = || format!("read the state of container '{id}'");
        let damaged = |cause: String| {
            Err(Error::new(Kind::Damaged, operation(), cause).next(format!("run 'regen delete --force {id}'")))
        };
        let bytes = match read_capped(&directory.join(FILE), CAP) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == Kind::NotFound && !directory.is_dir() => return Err(does_not_exist(id)),
            Err(error) if error.kind() == Kind::NotFound => {
                return damaged(format!("{FILE} is missing, its creation was cut short"));
            }
            Err(error) => return Err(error),
        };
        let mut record = match serde_json::from_slice::<Self>(&bytes) {
            Ok(record) if record.format > FORMAT => {
                return damaged(format!("{FILE} has format {}, this regen knows {FORMAT}", record.format));
            }
            Ok(record) if record.id == *id => record,
            Ok(record) if names(&directory, id) => Self { former: Some(record.id), id: id.clone(), ..record },
            Ok(record) => return damaged(format!("{FILE} belongs to '{}'", record.id)),
            Err(error) => return damaged(format!("{FILE} is damaged: {error}")),
        };
        match read_capped(&directory.join(CGROUPS), CAP) {
            Ok(bytes) => match serde_json::from_slice::<Vec<Directory>>(&bytes) {
                Ok(directories) => record.cgroup.directories = directories,
                Err(error) => return damaged(format!("{CGROUPS} is damaged: {error}")),
            },
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        record.init = match read_process(&directory, INIT) {
            Ok(None) => return Ok(record),
            Ok(process) => process,
            Err(cause) => return damaged(cause),
        };
        record.program = match read_process(&directory, PROGRAM) {
            Ok(process) => process,
            Err(cause) => return damaged(cause),
        };
        record.restored = directory.join(RESTORED).exists();
        record.phase = if directory.join(STARTED).exists() { Phase::Running } else { Phase::Created };
        Ok(record)
    }

    /// Writes what is known before the container's first process exists. The caller holds the container's lock, for
    /// this as for the next ones.
    pub(super) fn begin(&self, root: &StateRoot) -> Result<()> {
        // For whoever finds the record damaged.
        let manager = self.cgroup.manager.word();
        self.link(root, CGROUP, &format!("{manager}:{}", self.cgroup.path.display()))?;
        self.write(root, FILE, &serde_json::to_vec(self).context(|| self.operation())?)
    }

    /// Writes what its creator wants whoever starts it to find.
    pub(super) fn note(&self, root: &StateRoot, memo: &str) -> Result<()> {
        self.link(root, MEMO, memo)
    }

    /// Writes where its cgroups are, which turned out otherwise than `begin` has it.
    pub(super) fn moved(&self, root: &StateRoot) -> Result<()> {
        self.write(root, CGROUPS, &serde_json::to_vec(&self.cgroup.directories).context(|| self.operation())?)
    }

    /// Writes what is known from then on: it is created.
    pub(super) fn complete(&mut self, root: &StateRoot, process: Identity) -> Result<()> {
        self.link(root, INIT, &process.to_string())?;
        self.init = Some(process);
        self.phase = Phase::Created;
        Ok(())
    }

    /// Writes that its processes came from files; before it is complete.
    pub(super) fn came_back(&mut self, root: &StateRoot) -> Result<()> {
        self.restored = true;
        fs::File::create(root.container(&self.id).join(RESTORED)).map(drop).context(|| self.operation())
    }

    /// Writes that its program is another process than its first one. It is started then.
    pub(super) fn adopted(&mut self, root: &StateRoot, program: Identity) -> Result<()> {
        self.link(root, PROGRAM, &program.to_string())?;
        self.program = Some(program);
        Ok(())
    }

    /// Writes that its program was started.
    pub(super) fn started(&mut self, root: &StateRoot) -> Result<()> {
        self.phase = Phase::Running;
        fs::File::create(root.container(&self.id).join(STARTED)).map(drop).context(|| self.operation())
    }

    fn write(&self, root: &StateRoot, name: &str, bytes: &[u8]) -> Result<()> {
        // The state root is rebuilt after a boot, so nothing has to outlive one.
        replace_file(&root.container(&self.id), name, bytes, Durability::Volatile).context(|| self.operation())
    }

    fn link(&self, root: &StateRoot, name: &str, target: &str) -> Result<()> {
        std::os::unix::fs::symlink(target, root.container(&self.id).join(name)).context(|| self.operation())
    }

    /// The specification.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is none.
    pub(super) fn spec(&self) -> Result<Spec> {
        bundle::parse(self.spec.get().as_bytes())
            .context(|| format!("read the specification of container '{}'", self.id))
    }

    fn operation(&self) -> String {
        format!("write the state of container '{}'", self.id)
    }

    /// The init process, which the container has from `Created` on.
    pub(super) fn init(&self) -> Result<&Identity> {
        self.init.as_ref().ok_or_else(|| {
            Error::new(Kind::State, format!("find the process of container '{}'", self.id), "container not running")
        })
    }
}

/// Writes that the program of a container, which is another process than its first one, was started. The caller holds its
/// lock.
pub(super) fn note_program(root: &StateRoot, id: &ContainerId, program: &Identity) -> Result<()> {
    let operation = || format!("write the state of container '{id}'");
    let directory = root.container(id);
    std::os::unix::fs::symlink(program.to_string(), directory.join(PROGRAM)).context(operation)?;
    fs::File::create(directory.join(STARTED)).map(drop).context(operation)
}

/// What the creator of a container wants whoever starts it to find; asking costs next to nothing.
///
/// # Errors
/// Those of readlink(2); that there is none, or no container, is no error.
pub fn memo(root: &StateRoot, id: &ContainerId) -> Result<Option<String>> {
    match fs::read_link(root.container(id).join(MEMO)) {
        Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("read the state of container '{id}'")),
    }
}

/// A process that a link in a container's directory names. The error is a cause.
fn read_process(directory: &Path, name: &str) -> std::result::Result<Option<Identity>, String> {
    match fs::read_link(directory.join(name)) {
        Ok(target) => match target.to_str().and_then(|text| text.parse().ok()) {
            Some(process) => Ok(Some(process)),
            None => Err(format!("{name} is damaged")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{name} is damaged: {error}")),
    }
}

/// Whether a container's directory was given this name.
fn names(directory: &Path, id: &ContainerId) -> bool {
    fs::read_link(directory.join(NAME)).is_ok_and(|target| target == Path::new(id.as_str()))
}

/// Gives a container's directory another name, which must be free. The caller holds its lock.
///
/// The name is in the directory before the directory has it: whoever is interrupted in between has changed nothing, and
/// may try again with the same name or another one.
///
/// # Errors
/// [`Kind::Exists`] if there is a container of that name; those of symlink(2) and rename(2).
pub(super) fn rename(root: &StateRoot, from: &ContainerId, to: &ContainerId) -> Result<()> {
    let operation = || format!("rename container '{from}' to '{to}'");
    let directory = root.container(from);
    let temporary = directory.join(format!("{TEMPORARY_PREFIX}{NAME}"));
    let link = || std::os::unix::fs::symlink(to.as_str(), &temporary);
    match link() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::remove_file(&temporary).and_then(|()| link()).context(operation)?;
        }
        other => other.context(operation)?,
    }
    fs::rename(&temporary, directory.join(NAME)).context(operation)?;
    match renameat_with(CWD, &directory, CWD, root.container(to), RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(taken(root, to).during(operation())),
        other => other.context(operation),
    }
}

/// Holding this, nobody else changes the container.
#[derive(Debug)]
pub(super) struct Locked {
    _lock: DirectoryLock,
}

/// Refuses an id that is taken, before anything else of a new container is looked at. [`claim`] says it for sure.
///
/// # Errors
/// [`Kind::Exists`] if there is a container of that id.
pub(super) fn check_free(root: &StateRoot, id: &ContainerId) -> Result<()> {
    if root.container(id).exists() { Err(taken(root, id)) } else { Ok(()) }
}

fn taken(root: &StateRoot, id: &ContainerId) -> Error {
    let cause = format!("container with given ID already exists: in {}", root.path().display());
    Error::new(Kind::Exists, format!("create container '{id}'"), cause)
        .next("choose another id or delete that container")
}

/// Makes the directory of a new container: of several callers one gets it, and holds its lock.
///
/// # Errors
/// [`Kind::Exists`] if there is a container of that id.
pub(super) fn claim(root: &StateRoot, id: &ContainerId) -> Result<Locked> {
    let operation = || format!("create container '{id}'");
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o711).create(root.path()).context(operation)?;
    let directory = root.container(id);
    builder.recursive(false).mode(0o700);
    match builder.create(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(taken(root, id));
        }
        Err(error) => return Err(error).context(operation),
    }
    match DirectoryLock::wait(&directory).context(operation)? {
        Some(lock) => Ok(Locked { _lock: lock }),
        // Somebody forced the half-made container away between the two calls.
        None => Err(does_not_exist(id)),
    }
}

/// Takes the lock of a container, waiting for whoever holds it.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such container, or not any more once the lock is free.
pub(super) fn lock(root: &StateRoot, id: &ContainerId) -> Result<Locked> {
    match DirectoryLock::wait(&root.container(id)) {
        Ok(Some(lock)) => Ok(Locked { _lock: lock }),
        Ok(None) => Err(does_not_exist(id)),
        Err(error) if error.kind() == Kind::NotFound => Err(does_not_exist(id)),
        Err(error) => Err(error.during(format!("lock container '{id}'"))),
    }
}

/// Takes a container's directory away, in one step for everybody else. The caller holds its lock.
pub(super) fn discard(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let operation = || format!("remove the state of container '{id}'");
    let trash = root.path().join(format!("{TRASH}{id}.{}", std::process::id()));
    match fs::rename(root.container(id), &trash) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(operation)?,
    }
    let removed = fs::remove_dir_all(&trash);
    sweep(root);
    match removed {
        // Another one's sweep was faster.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context(operation),
    }
}

/// Removes what others were killed over while they removed it.
fn sweep(root: &StateRoot) {
    for entry in fs::read_dir(root.path()).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(TRASH.as_bytes()) {
            // Its owner may be at it too; between the two of them it goes.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The words that engines look for.
pub(super) fn does_not_exist(id: &ContainerId) -> Error {
    Error::new(Kind::NotFound, format!("find container '{id}'"), "container does not exist")
}

/// The cgroup of a container whose record is unreadable. A pid from there could belong to anybody by now; a cgroup's
/// name could not.
///
/// # Errors
/// [`Kind::Damaged`] if not even that is left.
pub(super) fn salvage_cgroup(root: &StateRoot, id: &ContainerId) -> Result<Cgroup> {
    let link = root.container(id).join(CGROUP);
    let operation = || format!("find the cgroup of container '{id}'");
    let target = match fs::read_link(&link) {
        Ok(target) => target,
        // It was never made.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => PathBuf::from("disabled:"),
        Err(error) => return Err(error).context(operation),
    };
    let (manager, path) = target.to_str().and_then(|text| text.split_once(':')).unwrap_or_default();
    let damaged = |_| Error::new(Kind::Damaged, operation(), format!("{} is damaged", quote(&link)));
    let manager = manager.parse().map_err(damaged)?;
    cgroup::plan(cgroup::Request { id, path: Some(Path::new(path)), manager })
}
