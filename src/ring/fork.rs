//! A fork: a new ring that begins with an entry of another.
//!
//! Nothing is copied. The layers belong to the store, and the packs are the same files under further names. The new ring is
//! made beside its place and put there whole:
//!
//! ```text
//! source locked, collection kept out
//! rings/OWNER/.tmp-ID/{lock,blobs,oci-layout,index.json} ── ring.json ── to disk ── rename to rings/OWNER/NAME ── to disk
//! ```
//!
//! Only `ring.json` is waited for, and the two directories that lead to it: the layers are on disk already, and all else can
//! be made anew from these ([`super::mend`]).
//!
//! The manifest tells the ring and the number of its entry, so the fork has one of its own. If the source is packed, it is
//! written here; else the worker does that, and until then the entry is only sealed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::Utc;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::entry::{Entry, Outcome, Reason, tag};
use super::index;
use super::selector::{Selected, Selector};
use super::state::{self, LayerRecord, RingState};
use super::{LOCK, Locked, Ring};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{ContainerId, Digest, LayerId, RingName};
use crate::image::layout::{Layout, digest_of};
use crate::image::manifest::Index;
use crate::store::{Store, make_directory};
use crate::sys::fs::{TEMPORARY_PREFIX, random_id, remove_tree, sync_directory};
use crate::sys::lock::{Lock, Sharing};
use crate::sys::process::boot_id;

/// Where a ring's blobs are, below its directory.
const BLOBS: &str = "blobs/sha256";

/// The ring that a fork becomes.
#[derive(Debug, Clone, Copy)]
pub struct NewFork<'a> {
    /// Its name, which nobody has.
    pub name: &'a RingName,
    /// The container that it is made for, if it is: it goes with it unless that leaves something.
    pub made_for: Option<&'a ContainerId>,
}

impl Locked {
    /// The entry at which a fork begins: where the next run would start, if nothing else is said.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such entry, [`Kind::Invalid`] for the bare base, [`Kind::State`] for a ring that is
    /// elsewhere or an entry that a power cut may have torn, [`Kind::Busy`] if what a dead container left is still held.
    pub fn find_fork(&mut self, selector: &Selector) -> Result<Entry> {
        let operation = format!("fork '{}{}'", self.ring().name(), shown(selector));
        self.check_here("fork")?;
        self.settle_for(selector, "fork")?;
        match self.state.select_start(selector).context(|| operation.clone())? {
            Selected::Entry(entry) => {
                self.check_synced("fork", entry, selector)?;
                Ok(entry.clone())
            }
            Selected::Base if self.state.entries.is_empty() => {
                Err(Error::new(Kind::NotFound, operation, "the ring has no entries yet"))
            }
            Selected::Base => Err(Error::new(Kind::Invalid, operation, "the base is no entry")
                .next("a new ring begins at the base: 'regen run --ring NEW'")),
        }
    }

    /// Makes rings that begin with an entry of this one, all of them or none; each as [`Locked::fork_from`] does.
    ///
    /// # Errors
    /// [`Kind::Usage`] if a name is given twice; as [`Locked::fork_from`].
    pub fn fork_to(&self, entry: &Entry, names: &[RingName]) -> Result<Vec<Ring>> {
        for (index, name) in names.iter().enumerate() {
            let operation = || format!("make ring '{name}' as a fork of '{}'", self.ring().name());
            if names[..index].contains(name) {
                return Err(Error::new(Kind::Usage, operation(), "it is named twice").next("name each ring once"));
            }
            if Ring::at(self.ring().store(), name).is_there()? {
                return Err(taken(name, operation()));
            }
        }
        let mut forks = Vec::new();
        for name in names {
            match self.fork_from(Some(entry), NewFork { name, made_for: None }) {
                Ok(fork) => forks.push(fork),
                Err(error) => {
                    // Nobody was told of them. One that somebody has begun to use already is his.
                    for fork in forks.into_iter().rev() {
                        let _ = fork.remove();
                    }
                    return Err(error);
                }
            }
        }
        Ok(forks)
    }

    /// Makes a ring that begins with an entry of this one, or empty on the base if `entry` is `None`. It is on disk when this
    /// returns; what the entry shows is as safe as the entry itself.
    ///
    /// # Errors
    /// [`Kind::Exists`] if the name is taken, [`Kind::Damaged`] if a layer of the entry is lost; those of making files.
    /// Nothing is left then.
    pub fn fork_from(&self, entry: Option<&Entry>, new: NewFork<'_>) -> Result<Ring> {
        let operation = || format!("make ring '{}' as a fork of '{}'", new.name, self.ring().name());
        let store = self.ring().store();
        let fork = Ring::at(store, new.name);
        if fork.is_there()? {
            return Err(taken(new.name, operation()));
        }
        // Whoever collects reads all rings at one moment: this one is there then, or its source keeps the layers.
        let _lock = store.lock_against_collection()?;
        let state = self.state_of_fork(entry, new).context(operation)?;
        let mut stage = Stage::create(&fork).context(operation)?;
        stage.fill(state, self.ring(), &fork).context(operation)?;
        stage.commit(&fork, operation)?;
        Ok(fork)
    }

    fn state_of_fork(&self, entry: Option<&Entry>, new: NewFork<'_>) -> Result<RingState> {
        let mut state = RingState::new(self.state.limits());
        state.made_for = new.made_for.cloned();
        state.keep = self.state.keep;
        state.unflushed = Some(boot_id()?);
        let Some(entry) = entry else { return Ok(state) };
        for layer in &entry.layers {
            if let Some(record) = self.state.layers.get(layer) {
                let record = LayerRecord { folded_from: Vec::new(), ..record.clone() };
                state.layers.insert(layer.clone(), record);
            } else if !self.ring().store().layers().has(layer) {
                return Err(Error::new(Kind::Damaged, format!("look for layer {layer}"), "it is gone")
                    .next("fork another entry: 'regen ring log' lists them"));
            }
        }
        if let Some(directories) = self.state.bases.get(&entry.base) {
            state.bases.insert(entry.base.clone(), directories.clone());
        }
        state.entries.push(first_entry(entry, self.ring().name()));
        (state.last_seq, state.next) = (1, Some(1));
        Ok(state)
    }
}

impl Ring {
    /// The packs of a layer that the entry's source has packed by now, as further names in this ring; `None` if there are
    /// none. A layer that was only sealed when it was forked is packed once, not once for each fork.
    pub(super) fn packs_of_source(&self, entry: &Entry, layer: &LayerId) -> Result<Option<LayerRecord>> {
        let Some(source) = entry.forked_from.as_deref().and_then(|from| from.split_once('@')) else { return Ok(None) };
        let Ok(name) = RingName::parse(source.0, &self.name().owner) else { return Ok(None) };
        let locked = match Ring::open(self.store(), &name).and_then(|ring| ring.lock()) {
            Ok(locked) => locked,
            // What cannot be had from there is packed here.
            Err(_) => return Ok(None),
        };
        let Some(record) = locked.state.layers.get(layer) else { return Ok(None) };
        let (from, to) = (Layout::open(locked.ring().directory())?, Layout::open(self.directory())?);
        for pack in &record.packs {
            link(&from.blob_path(&pack.digest), &to.blob_path(&pack.digest))?;
        }
        sync_directory(&self.directory().join(BLOBS))?;
        Ok(Some(LayerRecord { folded_from: Vec::new(), ..record.clone() }))
    }
}

/// The name of the ring that a run with `--fork` goes on in: `alice.box1`, in which a second run of that container goes on.
#[must_use]
pub fn name_for(ring: &RingName, container: &ContainerId) -> RingName {
    let plain = format!("{}.{container}", ring.name);
    let name = plain.parse().unwrap_or_else(|_| {
        // Ids may be longer, and have a '+', which names have not.
        let digest = crate::image::layout::digest_of(container.as_str().as_bytes()).hex();
        let own: String = ring.name.as_str().chars().take(160).collect();
        // Letters, digits and a dot between them are a name.
        format!("{own}.{}", &digest[..32]).parse().unwrap_or_else(|_| ring.name.clone())
    });
    RingName { owner: ring.owner.clone(), name }
}

fn first_entry(source: &Entry, ring: &RingName) -> Entry {
    let created = Utc::now();
    Entry {
        seq: 1,
        id: tag(created, 1),
        parent: None,
        created,
        reason: Reason::Fork,
        exit_code: None,
        // Somebody chose it: runs that fail do not push it out.
        outcome: Outcome::Good,
        pinned: false,
        side: false,
        forked_from: Some(format!("{ring}@{}", source.seq)),
        // Two containers that go on as one would take each other for themselves.
        memory_bytes: None,
        manifest: None,
        ..source.clone()
    }
}

fn shown(selector: &Selector) -> String {
    match selector {
        Selector::Unsaid => String::new(),
        Selector::Latest
        | Selector::Seq(_)
        | Selector::Back(_)
        | Selector::At(_)
        | Selector::Ago(_)
        | Selector::Id(_)
        | Selector::Base => selector.to_string(),
    }
}

fn taken(name: &RingName, operation: String) -> Error {
    Error::new(Kind::Exists, operation, "there is a ring of that name")
        .next(format!("give another name, or remove that one with 'regen ring rm {name}'"))
}

/// One more name for a blob. Files have a limit to that: 65,000 on ext4.
pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    let operation = || format!("link {}", quote(from));
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::TooManyLinks => {
            fs::copy(from, to).and_then(|_| File::open(to)?.sync_all()).context(operation)
        }
        other => other.context(operation),
    }
}

/// A ring that is being made beside its place; it goes if it does not get there.
struct Stage {
    directory: PathBuf,
    state: Unfinished,
    /// Says that its maker lives, to whoever sweeps. It becomes the ring's own.
    _lock: Lock,
}

#[derive(PartialEq, Eq)]
enum Unfinished {
    Yes,
    No,
}

impl Stage {
    fn create(ring: &Ring) -> Result<Self> {
        let owner = owner_directory(ring.store(), ring.name());
        if !owner.is_dir() {
            make_directory(&owner)?;
            sync_directory(&ring.store().rings())?;
        }
        loop {
            let directory = owner.join(format!("{TEMPORARY_PREFIX}{}", LayerId::from_random(random_id()?)));
            fs::DirBuilder::new().mode(0o700).create(&directory).context(|| format!("create {}", quote(&directory)))?;
            // A sweep may come between the two steps and take it: the next one has another name.
            let path = directory.join(LOCK);
            match Lock::try_take(&path, Sharing::Exclusive) {
                Ok(Some(lock)) if lock.is_at(&path)? => {
                    return Ok(Self { directory, state: Unfinished::Yes, _lock: lock });
                }
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all files, and waits for the one that everything else can be made of.
    fn fill(&self, mut state: RingState, source: &Ring, ring: &Ring) -> Result<()> {
        for blobs in ["blobs", BLOBS] {
            self.make_directory(blobs)?;
        }
        let packs = source.directory().join(BLOBS);
        for pack in state.layers.values().flat_map(|record| &record.packs) {
            let name = pack.digest.hex();
            link(&packs.join(&name), &self.directory.join(BLOBS).join(&name))?;
        }
        // Never changed, only replaced: one file serves both.
        link(&source.directory().join("oci-layout"), &self.directory.join("oci-layout"))?;
        let index = self.write_manifest(&mut state, ring)?;
        self.write_file("index.json", &index.to_json()?)?;
        let file = self.write_file(state::NAME, &state.text()?)?;
        file.sync_all().context(|| format!("sync {}", quote(&self.directory)))?;
        sync_directory(&self.directory)
    }

    /// The manifest of its entry, if all its layers are packed, and the index that lists it.
    fn write_manifest(&self, state: &mut RingState, ring: &Ring) -> Result<Index> {
        let mut index = Index::default();
        let Some(entry) = state.entries.first().cloned() else { return Ok(index) };
        if !entry.layers.iter().all(|layer| state.layers.contains_key(layer)) {
            return Ok(index);
        }
        let mut put = |content: &[u8]| self.write_blob(content);
        let manifest = index::put_manifest(ring, state, &entry, &mut put)?;
        index.set(index::describe_entry(&entry, &manifest)?);
        state.entries[0].manifest = Some(manifest.0);
        Ok(index)
    }

    fn write_blob(&self, content: &[u8]) -> Result<(Digest, u64)> {
        let digest = digest_of(content);
        self.write_file(&format!("{BLOBS}/{}", digest.hex()), content)?;
        Ok((digest, content.len() as u64))
    }

    fn make_directory(&self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).context(|| format!("create {}", quote(&path)))
    }

    /// Nobody but us knows of the directory, so a file may appear in parts.
    fn write_file(&self, name: &str, content: &[u8]) -> Result<File> {
        let path = self.directory.join(name);
        let operation = || format!("write {}", quote(&path));
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).context(operation)?;
        file.write_all(content).context(operation)?;
        Ok(file)
    }

    fn commit(&mut self, ring: &Ring, operation: impl Fn() -> String) -> Result<()> {
        let mut renamed = renameat_with(CWD, &self.directory, CWD, &ring.directory, RenameFlags::NOREPLACE);
        if renamed == Err(Errno::EXIST) && !ring.is_there()? {
            // What is left of a ring whose making was cut short.
            match ring.wait_lock() {
                // A sweep was faster.
                Err(error) if error.kind() == Kind::NotFound => {}
                lock => {
                    let _lock = lock?;
                    if !ring.is_there()? {
                        ring.discard()?;
                    }
                }
            }
            renamed = renameat_with(CWD, &self.directory, CWD, &ring.directory, RenameFlags::NOREPLACE);
        }
        match renamed {
            Err(Errno::EXIST) => return Err(taken(ring.name(), operation())),
            other => other.context(&operation)?,
        }
        self.state = Unfinished::No;
        sync_directory(&owner_directory(ring.store(), ring.name()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.state == Unfinished::Yes {
            // What cannot be removed is swept by the worker.
            let _ = remove_tree(&self.directory);
        }
    }
}

fn owner_directory(store: &Store, name: &RingName) -> PathBuf {
    store.rings().join(name.owner.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    #[test]
    fn a_forked_entry_is_the_first_of_its_ring_and_says_where_it_came_from() {
        let ring = RingName::parse("alice", &"root".parse().unwrap()).unwrap();
        let mut source = entry(7, Outcome::Failed);
        (source.pinned, source.side, source.manifest) = (true, true, None);
        let first = first_entry(&source, &ring);
        assert_eq!((first.seq, first.parent, first.reason), (1, None, Reason::Fork));
        assert_eq!(
            (first.layers, first.base, first.forked_from.as_deref()),
            (source.layers, source.base, Some("root/alice@7"))
        );
        assert_eq!((first.outcome, first.pinned, first.side), (Outcome::Good, false, false));
    }

    #[test]
    fn every_container_has_a_name_for_its_fork_that_no_other_has() {
        let ring = RingName::parse("alice", &"root".parse().unwrap()).unwrap();
        let name = |id: &str| name_for(&ring, &id.parse().unwrap()).to_string();
        assert_eq!(name("box1"), "root/alice.box1");
        let long = [name("a+b"), name("a+c"), name(&"x".repeat(199)), name(&"y".repeat(199))];
        for (index, one) in long.iter().enumerate() {
            assert!(one.len() <= 205 && !long[..index].contains(one), "{long:?}");
        }
    }
}
