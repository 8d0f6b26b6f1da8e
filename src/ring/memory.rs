//! The processes that an entry was saved with: criu's images, and what their maker notes beside them.
//!
//! ```text
//! rings/OWNER/NAME/memory/     0700
//!   .tmp-ID/                   is being written
//!   TAG/                       of the entry with that tag: appears whole, by rename, before the journal names the entry
//! rings/OWNER/NAME/memory.log  what criu said when processes could not be saved last
//! ```
//!
//! Who writes there has the ring's lock, and so has what it lets write: what no entry names is garbage to whoever gets the
//! lock next. It goes after its entry has.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::entry::Entry;
use super::snapshot::Floor;
use super::{Locked, Ring};
use crate::error::{Context, Result, quote};
use crate::ids::LayerId;
use crate::sys::fs::{TEMPORARY_PREFIX, disk_usage, random_id, remove_tree};

const DIRECTORY: &str = "memory";
const LOG: &str = "memory.log";

/// Saves processes that stand still into a directory. Whoever it has do that keeps the descriptor open meanwhile.
pub type Dump<'a> = dyn FnMut(&Path, BorrowedFd<'_>) -> Result<()> + 'a;

/// How the processes of a container are saved with a snapshot of it.
pub struct Processes<'a> {
    /// About how many bytes that takes.
    pub expected: u64,
    /// Does it.
    pub dump: &'a mut Dump<'a>,
}

impl std::fmt::Debug for Processes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processes").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// A directory that is being filled; goes unless it is published.
#[derive(Debug)]
pub(super) struct Stage(PathBuf);

impl Stage {
    /// Makes it, and removes what others left that were killed.
    pub(super) fn make(locked: &Locked, processes: &Processes<'_>, floor: &Floor<'_>) -> Result<Self> {
        locked.sweep_memory()?;
        let room = locked.ring().check_space(processes.expected, floor);
        room.map_err(|error| error.next("free that much, then try again"))?;
        let name = format!("{TEMPORARY_PREFIX}{}", LayerId::from_random(random_id()?));
        let path = locked.ring().directory().join(DIRECTORY).join(name);
        // Memory holds what files do not: keys, passwords.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.context(|| format!("make directory {}", quote(&path)))?;
        Ok(Self(path))
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it the entry's, and says how many bytes it takes on disk.
    pub(super) fn publish(self, ring: &Ring, entry: &Entry) -> Result<u64> {
        let bytes = disk_usage(&self.0)?;
        let place = ring.memory_of(entry);
        fs::rename(&self.0, &place).context(|| format!("rename {}", quote(&self.0)))?;
        Ok(bytes)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // One that was published is not there any more; what cannot be removed is swept.
        let _ = remove_tree(&self.0);
    }
}

impl Ring {
    /// Where the processes are that an entry was saved with.
    #[must_use]
    pub fn memory_of(&self, entry: &Entry) -> PathBuf {
        self.memory_at(&entry.id)
    }

    /// The same for the entry with this tag.
    #[must_use]
    pub fn memory_at(&self, tag: &str) -> PathBuf {
        self.directory().join(DIRECTORY).join(tag)
    }

    /// Where criu's log is kept if processes cannot be saved.
    #[must_use]
    pub fn memory_log(&self) -> PathBuf {
        self.directory().join(LOG)
    }
}

impl Locked {
    /// Directories of processes whose entries are gone, or never came to be.
    pub(super) fn unneeded_memory(&self) -> Result<Vec<PathBuf>> {
        let directory = self.ring().directory().join(DIRECTORY);
        let operation = || format!("list {}", quote(&directory));
        let children = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context(operation)?,
        };
        let journal = self.state.journal.iter().map(|journal| &journal.entry);
        let entries: Vec<&Entry> = self.state.entries.iter().chain(journal).collect();
        let mut unneeded = Vec::new();
        for child in children {
            let child = child.context(operation)?;
            let is_of = |entry: &&Entry| entry.memory_bytes.is_some() && child.file_name() == *entry.id;
            if !entries.iter().any(is_of) {
                unneeded.push(child.path());
            }
        }
        Ok(unneeded)
    }

    /// Removes them.
    pub(super) fn sweep_memory(&self) -> Result<()> {
        self.unneeded_memory()?.iter().try_for_each(|path| remove_tree(path))
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::super::keep::Keep;
    use super::super::slot::Limits;
    use super::*;
    use crate::ids::RingName;
    use crate::store::Store;

    fn ring(directory: &Path) -> Ring {
        let store = Store::open(directory).unwrap();
        let name = RingName::parse("root/a", &"root".parse().unwrap()).unwrap();
        Ring::open_or_create(&store, &name, Limits { depth: 2, max_bytes: None }, Keep::default()).unwrap()
    }

    /// Saves something with an entry.
    fn save(locked: &mut Locked, seq: u64) {
        let mut entry = entry(seq, Outcome::Good);
        let mut dump = |_: &Path, _: BorrowedFd<'_>| Ok(());
        let processes = Processes { expected: 0, dump: &mut dump };
        let stage = Stage::make(locked, &processes, &|_| 0).unwrap();
        fs::write(stage.path().join("pages"), vec![1; 10_000]).unwrap();
        entry.memory_bytes = Some(stage.publish(locked.ring(), &entry).unwrap());
        locked.state.entries.push(entry);
        (locked.state.last_seq, locked.state.next) = (seq, Some(seq));
        locked.commit().unwrap();
    }

    fn saved(locked: &Locked) -> Vec<String> {
        let names = fs::read_dir(locked.ring().directory().join(DIRECTORY)).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn processes_are_counted_and_go_with_their_entry() {
        let directory = tempfile::tempdir().unwrap();
        let ring = ring(directory.path());
        let mut locked = ring.lock().unwrap();
        for seq in 1..=3 {
            save(&mut locked, seq);
        }
        let tags: Vec<_> = locked.state.entries.iter().map(|entry| entry.id.clone()).collect();
        assert_eq!(saved(&locked), tags);
        assert!(locked.state.bytes() >= 30_000, "{}", locked.state.bytes());
        assert_eq!(locked.evict().unwrap(), [1]);
        assert_eq!(saved(&locked), tags[1..]);
        locked.sweep_memory().unwrap();
        assert_eq!(saved(&locked), tags[1..]);
        // A limit of bytes counts them, too.
        locked.state.max_bytes = Some(15_000);
        assert_eq!(locked.evict().unwrap(), [2]);
        assert_eq!(saved(&locked), tags[2..]);
    }

    #[test]
    fn what_was_begun_is_swept_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let ring = ring(directory.path());
        let mut locked = ring.lock().unwrap();
        save(&mut locked, 1);
        let left = ring.directory().join(DIRECTORY).join(".tmp-1");
        fs::create_dir(&left).unwrap();
        let unnamed = ring.memory_of(&entry(2, Outcome::Good));
        fs::create_dir(&unnamed).unwrap();
        assert_eq!(locked.unneeded_memory().unwrap().len(), 2);
        save(&mut locked, 2);
        assert!(!left.exists() && unnamed.join("pages").is_file());
        drop(locked);
        let mut dump = |_: &Path, _: BorrowedFd<'_>| Ok(());
        let locked = ring.lock().unwrap();
        let full = Processes { expected: 1 << 60, dump: &mut dump };
        assert!(Stage::make(&locked, &full, &|_| 0).unwrap_err().to_string().contains("free"));
        assert_eq!(saved(&locked).len(), 2);
    }
}
