//! Runs: the writable part of a container while it lives, and the record of who holds it.
//!
//! The record lies in the store because `/run` vanishes with a reboot and every engine uses a root of its own.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Store, make_directory};
use crate::error::{Context, Kind, Result, quote};
use crate::ids::{ContainerId, LayerId, RingName};
use crate::sys::fs::{Durability, copy_attributes, random_id, read_capped, remove_tree, replace_file};
use crate::sys::process::Identity;
use crate::sys::xattr::OverlayClass;

const RECORD: &str = "run.json";
const CAP: u64 = 4 * 1024 * 1024;

/// What `run.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Always 1.
    pub version: u32,
    /// The container that runs on it.
    pub container: ContainerId,
    /// The runtime's state root in which that container is.
    pub state_root: PathBuf,
    /// The ring that takes what it leaves; `None` if that is thrown away.
    pub ring: Option<RingName>,
    /// The entry it started from; `None` for the bare base.
    pub parent: Option<u64>,
    /// The tag of that entry, if the run brings back the processes that it was saved with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revives: Option<String>,
    /// The ring's layers below it, lowest first.
    pub layers: Vec<LayerId>,
    /// The fingerprint of what those stand on.
    pub base: String,
    /// The directories of the base, uppermost first.
    pub base_directories: Vec<PathBuf>,
    /// Directories that show the same and outlive the container.
    pub base_lasting: Vec<PathBuf>,
    /// How overlay attributes are spelled in the upper.
    pub class: OverlayClass,
    /// How ids inside the container are those on disk, `0:100000:65536/0:100000:65536`; `None` if they are the same.
    #[serde(default)]
    pub id_map: Option<String>,
    /// Places inside the container that the runtime or engine fills: what appears there is no change.
    pub mount_points: Vec<PathBuf>,
    /// Who answers for the container: its maker at first, then its first process, and with it the `regen run` that
    /// waits for it in the foreground.
    pub holders: Vec<Identity>,
    /// The container's cgroup directories, once it has any.
    pub cgroups: Vec<PathBuf>,
    /// `st_dev` of the mounted overlay, by which files that hold it are recognised.
    pub device: Option<u64>,
    /// The inode of the container's mount namespace, by which those who keep it are recognised.
    #[serde(default)]
    pub mount_namespace: Option<u64>,
    /// Where a state is mounted for people to look at. Nobody runs on such a run, and nothing is ever written into its upper:
    /// the kernel tells by it whether the mount is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounted_at: Option<PathBuf>,
    /// Bind mounts whose changes are in the upper, too, at the place where the container sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// When the run was claimed.
    pub started: DateTime<Utc>,
}

/// A bind mount that belongs to a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where the container sees it, absolute.
    pub place: PathBuf,
    /// The directory of the host's that it stands on, and that is never written.
    pub source: PathBuf,
    /// What identifies that: entries are bound to it.
    pub fingerprint: String,
}

impl Volume {
    /// Where it is below the root of an upper or a layer.
    #[must_use]
    pub fn inside(&self) -> &Path {
        self.place.strip_prefix("/").unwrap_or(&self.place)
    }
}

/// A directory `STORE/runs/ID` with its record.
#[derive(Debug, Clone)]
pub struct Run {
    id: LayerId,
    directory: PathBuf,
    /// What its record said when it was last read or written.
    pub record: RunRecord,
}

impl Run {
    /// Makes the directories and the record. The record comes last: a run without one was never used.
    ///
    /// # Errors
    /// Those of mkdir and write; nothing refers to the run yet.
    pub fn create(store: &Store, record: RunRecord) -> Result<Self> {
        let id = LayerId::from_random(random_id()?);
        let directory = store.runs().join(id.as_str());
        let run = Self { id, directory, record };
        make_directory(&run.directory)?;
        make_directory(&run.work())?;
        // The upper's own mode becomes that of the container's "/".
        fs::create_dir(run.upper()).context(|| format!("create {}", quote(run.upper())))?;
        copy_root_attributes(&run.record.lower_root(store), &run.upper())?;
        run.write()?;
        Ok(run)
    }

    /// Reads a run; `None` if there is none of that id, or none that was ever used, or only in the seconds before a power
    /// cut, from which no record reached the disk: its upper can have no more than that.
    ///
    /// # Errors
    /// Those of reading, [`Kind::Invalid`] if the record is not one.
    pub fn load(store: &Store, id: &LayerId) -> Result<Option<Self>> {
        let directory = store.runs().join(id.as_str());
        let path = directory.join(RECORD);
        let content = match read_capped(&path, CAP) {
            Ok(content) => content,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if content.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let record = serde_json::from_slice(&content).context(|| format!("read {}", quote(&path)))?;
        Ok(Some(Self { id: id.clone(), directory, record }))
    }

    /// The ids of all runs, used or not.
    ///
    /// # Errors
    /// Those of readdir.
    pub fn list(store: &Store) -> Result<Vec<LayerId>> {
        let operation = || format!("list {}", quote(store.runs()));
        let mut ids = Vec::new();
        for entry in fs::read_dir(store.runs()).context(operation)? {
            let name = entry.context(operation)?.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Replaces the record by what is in [`Run::record`].
    ///
    /// # Errors
    /// Those of write.
    pub fn write(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.record).context(|| "write the record of a run")?;
        // Containers wait for this, and a flush is a large part of their start. After a power cut every holder is dead,
        // whatever an older record says of them; a torn one is told from a real one when it is read.
        replace_file(&self.directory, RECORD, &text, Durability::Volatile)
    }

    /// The name of the run, and of the layer that its upper becomes.
    #[must_use]
    pub fn id(&self) -> &LayerId {
        &self.id
    }

    /// The directory of the run, in which all else is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory that takes the changes.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    /// The kernel's scratch space.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// The kernel's scratch space for the volume of that number.
    #[must_use]
    pub fn volume_work(&self, index: usize) -> PathBuf {
        self.directory.join(format!("work-{index}"))
    }

    /// An empty directory beside the upper, made if it is not there, for a trial mount to stand on.
    ///
    /// # Errors
    /// Those of mkdir.
    pub fn empty(&self) -> Result<PathBuf> {
        self.make_inside("empty")
    }

    /// What a trial mount stands on that nobody looks into: an empty directory, or where there is no room for one that of all
    /// layers, which no mount writes into.
    ///
    /// # Errors
    /// Those of mkdir.
    pub fn trial_lower(&self) -> Result<PathBuf> {
        match (self.empty(), self.directory.ancestors().nth(2)) {
            (Err(error), Some(store)) if error.kind() == Kind::NoSpace => Ok(store.join("layers")),
            (empty, _) => empty,
        }
    }

    /// Another empty directory beside the upper, for a trial mount to work in.
    ///
    /// # Errors
    /// Those of mkdir.
    pub fn trial(&self) -> Result<PathBuf> {
        self.make_inside("trial")
    }

    /// A run that somebody has removed is not made again by it.
    fn make_inside(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).context(|| format!("create {}", quote(&path)))
            }
            Ok(()) | Err(_) => Ok(path),
        }
    }

    /// Whether its upper has become a layer, or was thrown away: nothing in the run is needed any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !self.upper().exists()
    }

    /// Throws the upper away, in one step however much is in it: it goes with the next sweep.
    ///
    /// # Errors
    /// Those of rename.
    pub fn throw_away(&self) -> Result<()> {
        let operation = || format!("throw the upper of run {} away", self.id);
        fs::rename(self.upper(), self.directory.join("thrown-away")).context(operation)
    }

    /// Removes the run with whatever is still in it.
    ///
    /// # Errors
    /// Those of unlink; that it is gone is none.
    pub fn remove(&self) -> Result<()> {
        // The record goes last, so that a crash leaves a run that is still known to be a dead one.
        for part in [self.upper(), self.work(), self.directory.join("empty")] {
            remove_tree(&part)?;
        }
        remove_tree(&self.directory)
    }
}

impl RunRecord {
    /// The directories under the upper, uppermost first.
    #[must_use]
    pub fn lowers(&self, store: &Store) -> Vec<PathBuf> {
        let layers = store.layers();
        let own = self.layers.iter().rev().map(|id| layers.content(id));
        own.chain(self.base_directories.iter().cloned()).collect()
    }

    /// The first of the holders that is still alive.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub fn living_holder(&self) -> Result<Option<&Identity>> {
        for holder in &self.holders {
            if holder.is_alive()? {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }

    fn lower_root(&self, store: &Store) -> PathBuf {
        self.lowers(store).into_iter().next().unwrap_or_else(|| PathBuf::from("/"))
    }
}

/// Makes a directory of a new upper, its root as a rule, look like the one that it covers.
///
/// # Errors
/// Those of reading one and changing the other.
pub fn copy_root_attributes(from: &Path, to: &Path) -> Result<()> {
    let foreign = ["trusted.overlay.", "user.overlay.", "security.selinux"];
    copy_attributes(from, to, |name| !foreign.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_record_never_reached_the_disk_was_never_used() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let id: LayerId = "ab".repeat(16).parse().unwrap();
        let home = store.runs().join(id.as_str());
        fs::create_dir(&home).unwrap();
        assert!(Run::load(&store, &id).unwrap().is_none());
        for torn in [&b""[..], &[0; 300]] {
            fs::write(home.join(RECORD), torn).unwrap();
            assert!(Run::load(&store, &id).unwrap().is_none());
        }
        fs::write(home.join(RECORD), "not a record").unwrap();
        assert!(Run::load(&store, &id).is_err(), "what somebody wrote there is not thrown away");
    }
}
