//! What is known of a snapshot beside criu's images.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::bundle;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::ops::load;
use crate::ops::machine::Machine;
use crate::sys::fs::{Durability, read_capped, replace_file, sync_file_system};
use crate::sys::lock::{Lock, Sharing};
use crate::template::definition::Source;

const FILE: &str = "snapshot.json";
const CONFIG: &str = "config.json";
const FORMAT: u32 = 1;
const CAP: u64 = 16 << 20;

/// The link in a template's directory to the snapshot that clones are made of now.
const CURRENT: &str = "snapshot";
/// What the directories of a template's snapshots are called, before the generation.
const PREFIX: &str = "snapshot-";
const LOCK: &str = "lock";
/// How often a snapshot may be replaced while it is looked for.
const RETRIES: usize = 8;

/// A saved program, from which clones are restored. As long as this value lives, it is not removed.
#[derive(Debug)]
pub struct Snapshot {
    directory: PathBuf,
    record: Record,
    _lock: Lock,
}

/// The content of `snapshot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub format: u32,
    /// The container that was saved.
    pub container: ContainerId,
    /// What it was made from.
    pub source: Source,
    /// The fingerprint of its root file system.
    pub base: String,
    pub taken: DateTime<Utc>,
    /// Where it can come back.
    pub machine: Machine,
}

impl Record {
    pub(super) fn new(container: ContainerId, source: Source, base: String) -> Result<Self> {
        Ok(Self { format: FORMAT, container, source, base, taken: Utc::now(), machine: Machine::here()? })
    }

    /// Writes it and the specification into a directory that nobody else knows of yet.
    pub(super) fn write(&self, directory: &Path, spec: &Spec) -> Result<()> {
        let operation = || format!("write down snapshot {}", quote(directory));
        let text = serde_json::to_vec(spec).context(operation)?;
        replace_file(directory, CONFIG, &text, Durability::Volatile)?;
        // A snapshot that is there is whole, also after the power was cut.
        sync_file_system(directory)?;
        let text = serde_json::to_vec(self).context(operation)?;
        replace_file(directory, FILE, &text, Durability::Durable)
    }
}

impl Snapshot {
    /// Opens what [`super::take()`] has left in a directory.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if nothing is there, [`Kind::Damaged`] for what cannot be read, [`Kind::State`] if it cannot come
    /// back here: it was taken under another kernel or on another processor.
    pub fn open(directory: &Path) -> Result<Self> {
        let operation = || format!("open snapshot {}", quote(directory));
        let lock = Lock::wait(&directory.join(LOCK), Sharing::Shared).context(operation)?;
        let bytes = read_capped(&directory.join(FILE), CAP).context(operation)?;
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Kind::Damaged, operation(), error.to_string()))?;
        if record.format != FORMAT {
            let cause = format!("it has format {}, this regen knows {FORMAT}", record.format);
            return Err(Error::new(Kind::Damaged, operation(), cause));
        }
        let checked = record.machine.check(&Machine::here()?);
        checked.map_err(|error| error.next("make the template anew: 'regen template create'")).context(operation)?;
        Ok(Self { directory: directory.to_owned(), record, _lock: lock })
    }

    /// The one that clones of a template are made of now; `None` if it has none, as templates of another mode.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn of_template(directory: &Path) -> Result<Option<Self>> {
        for _ in 0..RETRIES {
            let target = match fs::read_link(directory.join(CURRENT)) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                other => other.context(|| format!("look into {}", quote(directory)))?,
            };
            match Self::open(&directory.join(target)) {
                // Another one has just taken its place.
                Err(error) if error.kind() == Kind::NotFound => {}
                other => return other.map(Some),
            }
        }
        Ok(None)
    }

    /// Where the snapshot of a keeper's generation goes, in a template's directory.
    #[must_use]
    pub fn place(directory: &Path, generation: u64) -> PathBuf {
        directory.join(format!("{PREFIX}{generation}"))
    }

    /// Makes this the one that clones of the template are made of, in whose directory it is, and removes all others.
    ///
    /// # Errors
    /// Those of making the link, and of removing.
    pub fn publish(&self, directory: &Path) -> Result<()> {
        let operation = || format!("make {} the snapshot of its template", quote(&self.directory));
        let name = self.directory.file_name().unwrap_or_default();
        let next = directory.join(format!(".{CURRENT}"));
        match fs::remove_file(&next) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other.context(operation)?,
        }
        symlink(name, &next).and_then(|()| fs::rename(&next, directory.join(CURRENT))).context(operation)?;
        let own = generation_of(&name.to_string_lossy());
        for entry in fs::read_dir(directory).context(operation)? {
            let entry = entry.context(operation)?;
            // Of what a newer keeper is at work on nothing is known yet.
            if generation_of(&entry.file_name().to_string_lossy()).is_some_and(|other| Some(other) < own) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// When it was taken.
    #[must_use]
    pub fn taken(&self) -> DateTime<Utc> {
        self.record.taken
    }

    /// How many bytes it takes on disk.
    ///
    /// # Errors
    /// Those of reading the directory.
    pub fn size(&self) -> Result<u64> {
        crate::sys::fs::disk_usage(&self.directory)
    }

    pub(super) fn images(&self) -> PathBuf {
        self.directory.join("images")
    }

    pub(super) fn empty_function(&self) -> PathBuf {
        self.directory.join("function")
    }

    pub(super) fn spec(&self) -> Result<Spec> {
        let path = self.directory.join(CONFIG);
        bundle::parse(&read_capped(&path, CAP)?).context(|| format!("read {}", quote(&path)))
    }
}

/// The generation of a snapshot, or of one that was begun.
fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix('.').unwrap_or(name).strip_prefix(PREFIX)?.parse().ok()
}

/// Takes the snapshot of a keeper's generation away, and what was begun of it; clones are made of none then, unless a
/// newer keeper has taken its place.
///
/// # Errors
/// Those of unlink(2) and rmdir(2).
pub(super) fn withdraw(directory: &Path, generation: u64) -> Result<()> {
    let place = Snapshot::place(directory, generation);
    let link = directory.join(CURRENT);
    if fs::read_link(&link).is_ok_and(|target| directory.join(target) == place) {
        fs::remove_file(&link).context(|| format!("remove {}", quote(&link)))?;
    }
    let begun = directory.join(format!(".{PREFIX}{generation}"));
    [place, begun].iter().filter(|path| path.exists()).try_for_each(|path| remove(path))
}

/// Removes a snapshot, once nobody restores it any more.
fn remove(directory: &Path) -> Result<()> {
    let operation = || format!("remove snapshot {}", quote(directory));
    let _lock = Lock::wait(&directory.join(LOCK), Sharing::Exclusive).context(operation)?;
    fs::remove_dir_all(directory).context(operation)
}

/// What a container is made from, as the runtime has it.
pub(super) fn origin(source: &Source) -> Result<load::Source> {
    Ok(match source {
        Source::Bundle(directory) => load::Source::Bundle(directory.clone()),
        Source::Rootfs(directory) => load::Source::Rootfs(directory.clone()),
        Source::Image(image) => load::Source::Image(image.parse()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new("t-1".parse().unwrap(), Source::Rootfs("/srv".into()), "dir:/srv#1".into()).unwrap()
    }

    #[test]
    fn a_snapshot_is_found_again_and_says_where_it_cannot_come_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Snapshot::open(directory.path()).unwrap_err().kind(), Kind::NotFound);
        let mut record = record();
        record.write(directory.path(), &Spec::default()).unwrap();
        assert_eq!(Snapshot::open(directory.path()).unwrap().record, record);
        record.machine.kernel = "4.19.0".into();
        record.write(directory.path(), &Spec::default()).unwrap();
        let error = Snapshot::open(directory.path()).unwrap_err();
        assert!(error.kind() == Kind::State && error.to_string().contains("under Linux 4.19.0"), "{error}");
        record.format = 2;
        record.write(directory.path(), &Spec::default()).unwrap();
        assert_eq!(Snapshot::open(directory.path()).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_newer_snapshot_takes_the_place_of_the_one_before() {
        let template = tempfile::tempdir().unwrap();
        assert!(Snapshot::of_template(template.path()).unwrap().is_none());
        for generation in [1, 2] {
            let place = Snapshot::place(template.path(), generation);
            fs::create_dir(&place).unwrap();
            record().write(&place, &Spec::default()).unwrap();
            Snapshot::open(&place).unwrap().publish(template.path()).unwrap();
        }
        let found = Snapshot::of_template(template.path()).unwrap().unwrap();
        assert_eq!(found.directory, Snapshot::place(template.path(), 2));
        assert!(!Snapshot::place(template.path(), 1).exists());
    }
}
