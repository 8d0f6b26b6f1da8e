//! A part of one tree of directories is put back into another, in which others may be at work.
//!
//! ```text
//! plan    what is to be made, and what is in the way                    nothing is changed
//! stage   every new file and directory, under a name of its own         who looks sees what was there
//! sync    all of that is on disk
//! swap    each gets its name by rename(2), which is the old file or the new one
//! adjust  directories that were there get owner, mode, attributes and times
//! ```
//!
//! Whoever is at work in the target may be an enemy. So every directory is reached without following a link, what was made is
//! changed by descriptor only, and where something is mounted nothing is done. What the source does not have stays.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fdatasync, fstat, linkat, mkdirat, mknodat, openat, openat2,
    readlinkat, renameat, statat, symlinkat, syncfs, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::attribute::Reader;
use super::content::copy_piece;
use super::name::{self, components, split};
use super::seen::kind_of;
use super::sparse::{self, Piece};
use super::trail::{self, open_beneath, remove_tree};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::{TEMPORARY_PREFIX, by_descriptor};
use crate::sys::xattr::OverlayClass;

use finish::{finish_named, finish_open};

mod finish;

/// Up to so many files each is flushed by itself; beyond that, the whole file system is.
const FLUSHED_ALONE: usize = 64;
const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What restoring does about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is not there now.
    Added,
    /// A file takes the place of the one that is there.
    Replaced,
    /// A directory that is there gets back owner, mode, attributes and times.
    Adjusted,
    /// Something is mounted there: it is left alone, with all below it.
    Left,
}

/// What was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Files, links and devices.
    pub files: u64,
    /// Directories, those that were there included.
    pub directories: u64,
    /// Of content.
    pub bytes: u64,
}

/// What is to be restored; nothing is changed yet.
#[derive(Debug)]
pub struct Restoration {
    source: Side,
    target: Side,
    /// Where the source is, for people.
    above: PathBuf,
    reader: Reader,
    items: Vec<Item>,
    /// Files of the source with several names: where the first of them was made, and what that is.
    links: HashMap<Identity, (Vec<u8>, Identity)>,
    flush: Flush,
    done: Restored,
}

/// How what was made comes to be on disk before it gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Each,
    All,
}

/// Device and inode.
type Identity = (u64, u64);

/// One path.
#[derive(Debug)]
struct Item {
    path: Vec<u8>,
    stat: Stat,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// It is made under this path, and then renamed.
    Swap(Vec<u8>, Change),
    /// It is made under this path, inside of a directory that will be renamed.
    Inside(Vec<u8>),
    /// The directory is there.
    Adjust,
    Leave,
}

/// Where the parent of a path is in the target.
#[derive(Debug, Clone)]
enum Parent {
    Present,
    /// It will be made under this path.
    Made(Vec<u8>),
}

/// A path that is to be looked at.
struct Visit {
    path: Vec<u8>,
    parent: Parent,
    /// Names that lead on to what is wanted; without any, all below it is wanted.
    way: Vec<Vec<u8>>,
}

/// One of the two trees, with the directory in it that was used last.
#[derive(Debug)]
struct Side {
    root: OwnedFd,
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Side {
    fn new(root: OwnedFd) -> Self {
        Self { root, last: None }
    }

    /// A directory by its path below the root.
    fn enter(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let directory = open_beneath(self.root.as_fd(), path).context(|| format!("open {}", show(path)))?;
            self.last = Some((path.to_vec(), directory));
        }
        Ok(self.last.as_ref().map_or(self.root.as_fd(), |(_, directory)| directory.as_fd()))
    }
}

impl Restoration {
    /// Looks at both trees. `way` are the names that lead from `source` to what is wanted, the last of them; those before it
    /// are directories that are made where `target` lacks them. Without any, all of `source` is wanted. Errors name paths as those
    /// below `above`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such path, [`Kind::Exists`] if a directory is where a file is to be, or the other
    /// way round; else those of reading.
    pub fn plan(
        (source, above): (OwnedFd, PathBuf),
        target: OwnedFd,
        way: &[OsString],
        class: OverlayClass,
    ) -> Result<Self> {
        let mut restoration = Self {
            source: Side::new(source),
            target: Side::new(target),
            above,
            reader: Reader::new(class),
            items: Vec::new(),
            links: HashMap::new(),
            flush: Flush::Each,
            done: Restored::default(),
        };
        let mut way: Vec<_> = way.iter().map(|name| name.as_bytes().to_vec()).collect();
        let first = if way.is_empty() { Vec::new() } else { way.remove(0) };
        let mut pending = vec![Visit { path: first, parent: Parent::Present, way }];
        while let Some(visit) = pending.pop() {
            let path = visit.path.clone();
            let below = restoration.visit(visit).context(|| restoration.operation(&path))?;
            pending.extend(below.into_iter().rev());
        }
        let files = restoration.items.iter().filter(|item| kind_of(item.stat.st_mode).is_file()).count();
        restoration.flush = if files > FLUSHED_ALONE { Flush::All } else { Flush::Each };
        Ok(restoration)
    }

    /// Every path, relative to the source, and what is done about it; a directory comes before what is in it.
    pub fn changes(&self) -> impl Iterator<Item = (Change, PathBuf)> {
        self.items.iter().map(|item| {
            let change = match &item.step {
                Step::Swap(_, change) => *change,
                Step::Inside(_) => Change::Added,
                Step::Adjust => Change::Adjusted,
                Step::Leave => Change::Left,
            };
            (change, PathBuf::from(OsString::from_vec(item.path.clone())))
        })
    }

    /// Does it. Until everything is made, nothing that was there is touched, and an error leaves nothing behind.
    ///
    /// # Errors
    /// Those of reading and writing. If one comes when files already get their names, it says how many are back.
    pub fn carry_out(mut self) -> Result<Restored> {
        let items = std::mem::take(&mut self.items);
        if let Err(error) = self.stage(&items) {
            self.clear(&items);
            return Err(error);
        }
        self.swap(&items)?;
        for item in items.iter().rev().filter(|item| matches!(item.step, Step::Adjust)) {
            self.finish_directory(item, &item.path).context(|| self.operation(&item.path))?;
        }
        Ok(self.done)
    }

    fn operation(&self, path: &[u8]) -> String {
        format!("restore {}", show(&joined(self.above.as_os_str().as_bytes(), path)))
    }

    /// Decides about one path, and gives those below it.
    fn visit(&mut self, Visit { path, parent, mut way }: Visit) -> Result<Vec<Visit>> {
        let (above, name) = split(&path);
        let stat = match name {
            b"" => fstat(&self.source.root),
            name => statat(self.source.enter(above)?, name, AtFlags::SYMLINK_NOFOLLOW),
        }
        .context(|| "look for it in the saved state")?;
        let kind = kind_of(stat.st_mode);
        // Nobody listens at a socket any more, and a pack has none.
        if kind == FileType::Socket || (kind == FileType::CharacterDevice && stat.st_rdev == 0) {
            return Ok(Vec::new());
        }
        let step = match &parent {
            Parent::Present => self.decide(&path, kind)?,
            Parent::Made(made) => Step::Inside(joined(made, name)),
        };
        let parent = match &step {
            Step::Leave => {
                self.items.push(Item { path, stat, step });
                return Ok(Vec::new());
            }
            Step::Adjust => Parent::Present,
            Step::Swap(made, _) | Step::Inside(made) => Parent::Made(made.clone()),
        };
        self.items.push(Item { path: path.clone(), stat, step });
        if kind != FileType::Directory {
            return match way.first() {
                None => Ok(Vec::new()),
                Some(_) => Err(Errno::NOTDIR).context(|| "look for what is wanted in it"),
            };
        }
        let below = |name: &[u8], way| Visit { path: joined(&path, name), parent: parent.clone(), way };
        if !way.is_empty() {
            let next = way.remove(0);
            return Ok(vec![below(&next, way)]);
        }
        Ok(trail::names(self.source.enter(&path)?)?.iter().map(|name| below(name, Vec::new())).collect())
    }

    /// What is to be done about a path whose parent is there.
    fn decide(&mut self, path: &[u8], kind: FileType) -> Result<Step> {
        let (above, name) = split(path);
        if name.is_empty() {
            return Ok(Step::Adjust);
        }
        let staged = || joined(above, temporary(name).as_bytes());
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let there = match openat2(self.target.enter(above)?, name, HANDLE, Mode::empty(), resolve) {
            Err(Errno::NOENT) => return Ok(Step::Swap(staged(), Change::Added)),
            Err(Errno::XDEV) => return Ok(Step::Leave),
            other => other.and_then(fstat).context(|| "look at what is there")?,
        };
        match (kind_of(there.st_mode) == FileType::Directory, kind == FileType::Directory) {
            (true, true) => Ok(Step::Adjust),
            (false, false) => Ok(Step::Swap(staged(), Change::Replaced)),
            (true, false) => Err(in_the_way("a directory is there, and the saved state has a file")),
            (false, true) => Err(in_the_way("a file is there, and the saved state has a directory")),
        }
    }

    fn stage(&mut self, items: &[Item]) -> Result<()> {
        for item in items {
            let made = match &item.step {
                Step::Swap(made, _) => self.clear_one(made).and_then(|()| self.make(item, made)),
                Step::Inside(made) => self.make(item, made),
                Step::Adjust | Step::Leave => Ok(()),
            };
            made.context(|| self.operation(&item.path))?;
        }
        for item in items.iter().rev().filter(|item| kind_of(item.stat.st_mode).is_dir()) {
            if let Step::Swap(made, _) | Step::Inside(made) = &item.step {
                self.finish_directory(item, made).context(|| self.operation(&item.path))?;
            }
        }
        if self.flush == Flush::All {
            syncfs(&self.target.root).context(|| "write what was restored to the disk")?;
        }
        Ok(())
    }

    /// Makes what an item says under another path.
    fn make(&mut self, item: &Item, made: &[u8]) -> Result<()> {
        let kind = kind_of(item.stat.st_mode);
        if kind == FileType::Directory {
            let (above, name) = split(made);
            return mkdirat(self.target.enter(above)?, name, Mode::RWXU).context(|| "make it");
        }
        self.done.files += 1;
        let identity = (item.stat.st_dev, item.stat.st_ino);
        if let Some((first, found)) = self.links.get(&identity).cloned() {
            return self.link(&first, found, made);
        }
        let stat = if kind.is_file() { self.regular(item, made)? } else { self.special(item, made)? };
        if item.stat.st_nlink > 1 {
            self.links.insert(identity, (made.to_vec(), (stat.st_dev, stat.st_ino)));
        }
        Ok(())
    }

    fn regular(&mut self, item: &Item, made: &[u8]) -> Result<Stat> {
        let (above, name) = split(&item.path);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = openat(self.source.enter(above)?, name, flags, Mode::empty()).context(|| "open it")?;
        let source = File::from(source);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (above, name) = split(made);
        let target = openat(self.target.enter(above)?, name, flags, Mode::RUSR | Mode::WUSR).context(|| "make it")?;
        let target = File::from(target);
        let size = item.stat.st_size.unsigned_abs();
        let whole = Piece { offset: 0, length: size };
        for piece in sparse::map(source.as_fd(), size)?.unwrap_or_else(|| vec![whole]) {
            self.done.bytes += copy_piece(&source, &target, piece)?;
        }
        target.set_len(size).context(|| "set its size")?;
        finish_open(&mut self.reader, source.as_fd(), target.as_fd(), &item.stat)?;
        if self.flush == Flush::Each {
            fdatasync(&target).context(|| "write it to the disk")?;
        }
        fstat(&target).context(|| "look at it")
    }

    /// A symbolic link, a fifo or a device.
    fn special(&mut self, item: &Item, made: &[u8]) -> Result<Stat> {
        let (from_above, from) = split(&item.path);
        let (above, name) = split(made);
        let kind = kind_of(item.stat.st_mode);
        if kind == FileType::Symlink {
            let text = readlinkat(self.source.enter(from_above)?, from, Vec::new()).context(|| "read the link")?;
            symlinkat(text, self.target.enter(above)?, name).context(|| "make it")?;
        } else {
            let directory = self.target.enter(above)?;
            mknodat(directory, name, kind, Mode::empty(), item.stat.st_rdev).context(|| "make it")?;
        }
        let source = (self.source.enter(from_above)?, from);
        finish_named(&mut self.reader, source, (self.target.enter(above)?, name), &item.stat)
    }

    /// Another name of a file that was made.
    fn link(&mut self, first: &[u8], identity: Identity, made: &[u8]) -> Result<()> {
        let (above, name) = split(first);
        let handle =
            openat(self.target.enter(above)?, name, HANDLE, Mode::empty()).context(|| "open its other name")?;
        let stat = fstat(&handle).context(|| "look at its other name")?;
        if (stat.st_dev, stat.st_ino) != identity {
            return Err(changed_meanwhile());
        }
        let (above, name) = split(made);
        let directory = self.target.enter(above)?;
        linkat(rustix::fs::CWD, by_descriptor(&handle), directory, name, AtFlags::SYMLINK_FOLLOW)
            .context(|| "link it to its other name")
    }

    fn finish_directory(&mut self, item: &Item, made: &[u8]) -> Result<()> {
        self.done.directories += 1;
        let source = open_beneath(self.source.root.as_fd(), &item.path).context(|| "open it in the saved state")?;
        let target = open_beneath(self.target.root.as_fd(), made).context(|| "open it")?;
        finish_open(&mut self.reader, source.as_fd(), target.as_fd(), &item.stat)
    }

    fn swap(&mut self, items: &[Item]) -> Result<()> {
        let mut swaps = items.iter().filter_map(|item| match &item.step {
            Step::Swap(made, _) => Some((item, made)),
            Step::Inside(_) | Step::Adjust | Step::Leave => None,
        });
        let all = swaps.clone().count();
        let mut back = 0;
        let result = swaps.try_for_each(|(item, made)| {
            let ((above, from), (_, to)) = (split(made), split(&item.path));
            let directory = self.target.enter(above)?;
            back += 1;
            renameat(directory, from, directory, to).context(|| self.operation(&item.path))
        });
        result.map_err(|error: Error| {
            self.clear(items);
            match back {
                0 | 1 => error,
                back => error.next(format!("{} of {all} are back; the others are as they were", back - 1)),
            }
        })
    }

    /// Removes what was made and did not get its name. What can't be removed is overwritten by the next attempt.
    fn clear(&mut self, items: &[Item]) {
        for item in items {
            if let Step::Swap(made, _) = &item.step {
                let _ = self.clear_one(made);
            }
        }
    }

    fn clear_one(&mut self, made: &[u8]) -> Result<()> {
        let (above, name) = split(made);
        let directory = self.target.enter(above)?;
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => remove_tree(directory, name),
            Err(errno) => Err(errno).context(|| "remove what an earlier attempt left"),
        }
    }
}

/// The name under which a file is made. It is always the same, so that a second attempt takes away what the first one left.
fn temporary(name: &[u8]) -> String {
    let hash = Sha256::digest(name);
    let hex: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{TEMPORARY_PREFIX}restore-{hex}")
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = path.to_vec();
    name::push(&mut path, name);
    path
}

fn in_the_way(cause: &str) -> Error {
    Error::new(Kind::Exists, "look at what is there", cause).next("move it away, or restore to another place")
}

fn changed_meanwhile() -> Error {
    Error::new(Kind::Busy, "look at what was made", "somebody else has changed it meanwhile").next("try again")
}

fn show(path: &[u8]) -> String {
    let shown: Vec<u8> = components(path).flat_map(|name| [b"/", name].concat()).collect();
    quote(std::ffi::OsStr::from_bytes(if shown.is_empty() { b"/" } else { &shown }))
}
