//! A look at a state that takes its time: nobody is kept from the ring meanwhile, and the state stays.
//!
//! Who looks makes a run on which nobody runs. Its record names the layers, so nothing collects them, whatever becomes of the
//! entry; its holder is who looks. A mount outlives whoever made it, and may end by umount(8) or a reboot, of which nobody
//! tells: so it is a mount of the run's upper too, although nothing can be written through it. The kernel tells of an upper
//! whether any mount of it is left, and a run whose holder is dead and whose upper is free is swept like any other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use chrono::Utc;
use rustix::mount::{UnmountFlags, unmount as unmount_at};

use super::selector::Selector;
use super::view::{Parts, View};
use super::{Ring, holder, seal};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::overlay::{Detached, Fate, Stack, Upper};
use crate::store::{Run, RunRecord, Store};
use crate::sys::mount_table;
use crate::sys::process::Identity;

/// What stands in the record where a container's id would.
const NOBODY: &str = "ring-look";

/// How long to wait for copies of a mount to go.
const COPIES: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);

/// A state that stays as long as this value, or a mount of it.
#[derive(Debug)]
pub struct Look {
    store: Store,
    run: Run,
    /// For error texts: `'root/alice@42'`.
    subject: String,
    keep: Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// As long as the value.
    Value,
    /// As long as the mount.
    Mount,
}

impl Ring {
    /// Keeps the state that `selector` means. Lost layers are rebuilt; the ring is locked for as long as that takes.
    /// `state_root` goes into the record.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such entry or its base is gone, else those of rebuilding and of writing.
    pub fn look(&self, selector: &Selector, state_root: &Path) -> Result<Look> {
        let locked = self.lock()?;
        let Parts { entry, fingerprint, base, layers } = locked.parts(selector)?;
        let subject = match &entry {
            Some(entry) => format!("'{}@{}'", self.name(), entry.seq),
            None => format!("'{}@base'", self.name()),
        };
        locked.ensure_layers(&layers, &subject)?;
        let container: ContainerId = NOBODY.parse()?;
        let record = RunRecord {
            volumes: Vec::new(),
            version: 1,
            container,
            state_root: state_root.to_owned(),
            ring: None,
            revives: None,
            parent: entry.as_ref().map(|entry| entry.seq),
            layers,
            base: fingerprint,
            base_lasting: base.clone(),
            base_directories: base,
            class: self.store().class(),
            id_map: entry.and_then(|entry| entry.id_map),
            mount_points: Vec::new(),
            holders: vec![Identity::of(nix::unistd::getpid().as_raw())?],
            cgroups: Vec::new(),
            device: None,
            mount_namespace: None,
            mounted_at: None,
            started: Utc::now(),
        };
        let store = self.store().clone();
        let lock = store.lock_against_collection()?;
        let run = Run::create(&store, record)?;
        drop(lock);
        Ok(Look { store, run, subject, keep: Keep::Value })
    }
}

impl Look {
    /// The number of the entry; `None` for the bare base.
    #[must_use]
    pub fn entry(&self) -> Option<u64> {
        self.run.record.parent
    }

    /// How ids inside a container are those on disk; `None` if they are the same.
    #[must_use]
    pub fn id_map(&self) -> Option<&str> {
        self.run.record.id_map.as_deref()
    }

    /// What is looked at, quoted, for error texts.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// An empty directory that goes with this value.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn nothing(&self) -> Result<PathBuf> {
        self.run.empty()
    }

    /// The file system, for this process alone.
    ///
    /// # Errors
    /// Those of the mount.
    pub fn view(&self) -> Result<View> {
        View::of(self.run.record.lowers(&self.store), self.store.class(), &self.subject)
    }

    /// Mounts it at a directory of the caller's mount namespace, read-only, without devices and set-user-id programs. It stays
    /// when this process ends.
    ///
    /// # Errors
    /// Those of the mount; nothing is mounted then.
    pub fn mount(mut self, directory: &Path) -> Result<()> {
        let operation = || format!("mount {} at {}", self.subject, quote(directory));
        let upper = Upper { directory: self.run.upper(), work: self.run.work(), fate: Fate::ThrownAway };
        let lowers = self.run.record.lowers(&self.store);
        let stack = Stack { lowers, upper: Some(upper), class: self.run.record.class };
        let mount = Detached::overlay(&stack, &self.subject)?;
        mount.restrict().context(operation)?;
        let device = fs::metadata(mount.path()).context(operation)?.dev();
        self.run.record.device = Some(device);
        self.run.record.mounted_at = Some(directory.to_owned());
        self.run.write()?;
        mount.attach(directory)?;
        self.keep = Keep::Mount;
        Ok(())
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if self.keep == Keep::Value {
            // A leftover is swept by the worker: its holder is dead by then.
            let _ = self.run.remove();
        }
    }
}

/// Takes away what [`Look::mount`] has mounted at a directory.
///
/// # Errors
/// [`Kind::Invalid`] if that is nothing of the kind, [`Kind::Busy`] with those who use it, else those of umount(2).
pub fn unmount(store: &Store, directory: &Path) -> Result<()> {
    let operation = || format!("unmount {}", quote(directory));
    let table = mount_table::read().context(operation)?;
    let device = fs::metadata(directory).context(operation)?.dev();
    let is_mount = mount_table::parse(&table).any(|mount| mount.point == directory);
    let run = if is_mount { mounted(store, device).context(operation)? } else { None };
    let Some(run) = run else {
        let cause = if is_mount { "'regen ring mount' has not mounted it" } else { "nothing is mounted there" };
        let error = Error::new(Kind::Invalid, operation(), cause);
        return Err(if is_mount { error.next("use umount(8), or name the --store that it is of") } else { error });
    };
    match unmount_at(directory, UnmountFlags::NOFOLLOW).context(operation) {
        Err(error) if error.errno() == Some(nix::errno::Errno::EBUSY as i32) => {
            let cause = format!("in use: {}", holder::name(&holder::of_files(device)));
            return Err(Error::new(Kind::Busy, operation(), cause).next("end what uses it, then try again"));
        }
        other => other?,
    }
    // Mount namespaces that others have just made have a copy of it, as a rule for a moment.
    let began = Instant::now();
    while seal::is_held(&run)? {
        if began.elapsed() > COPIES {
            // Whoever keeps one keeps the layers; a worker forgets it later.
            return Ok(());
        }
        sleep(PAUSE);
    }
    run.remove()
}

/// The run of the mounted state that has this `st_dev`. Numbers are given anew, but not that of a mount that lives.
fn mounted(store: &Store, device: u64) -> Result<Option<Run>> {
    for id in Run::list(store)? {
        let Some(run) = Run::load(store, &id)? else { continue };
        if run.record.mounted_at.is_some() && run.record.device == Some(device) && seal::is_held(&run)? {
            return Ok(Some(run));
        }
    }
    Ok(None)
}

/// Makes sure that a mount at `directory` hides nothing of `own`, the directories in which regen keeps its own files: with
/// these out of sight, rings and containers would seem to be gone.
///
/// # Errors
/// [`Kind::Invalid`] if it is one of these, in one or above one.
pub fn check_hides_nothing(directory: &Path, own: [&Path; 2]) -> Result<()> {
    for own in own {
        // One that is not there cannot be hidden.
        let Ok(own) = fs::canonicalize(own) else { continue };
        if own.starts_with(directory) || directory.starts_with(&own) {
            let operation = format!("mount at {}", quote(directory));
            let cause = format!("it would hide what regen keeps in {}", quote(&own));
            return Err(Error::new(Kind::Invalid, operation, cause).next("name a directory elsewhere"));
        }
    }
    Ok(())
}

/// Makes sure that nothing is written into `own`, the directories in which regen keeps its own files.
///
/// # Errors
/// [`Kind::Invalid`] if `path` is in one of these, or would be if it were made; those of asking for the working directory.
pub fn check_is_not_ours(path: &Path, own: [&Path; 2]) -> Result<()> {
    let operation = || format!("write to {}", quote(path));
    let whole = std::path::absolute(path).context(operation)?;
    // What is not there yet comes to be where the deepest directory on its way is.
    let Some(there) = whole.ancestors().find_map(|above| fs::canonicalize(above).ok()) else { return Ok(()) };
    match own.into_iter().filter_map(|own| fs::canonicalize(own).ok()).find(|own| there.starts_with(own)) {
        None => Ok(()),
        Some(own) => {
            let cause = format!("regen keeps its own files in {}", quote(&own));
            Err(Error::new(Kind::Invalid, operation(), cause).next("name a place elsewhere"))
        }
    }
}

/// A directory by the path that the mount table has for it.
///
/// # Errors
/// [`Kind::NotFound`] or [`Kind::Invalid`] if it is none.
pub fn mount_point(directory: &Path) -> Result<PathBuf> {
    let operation = || format!("look for the directory {}", quote(directory));
    let path = fs::canonicalize(directory).context(operation)?;
    if path.is_dir() { Ok(path) } else { Err(Error::new(Kind::Invalid, operation(), "it is no directory")) }
}
