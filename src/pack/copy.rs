//! A layer that is still written, copied into another directory: as often as one wants, each time only what changed.
//!
//! ```text
//! pass, living   everything, then what changed since    the layer is used meanwhile: names come and go
//! pass, still    what changed since the last one        nobody changes it: afterwards both are the same
//! ```
//!
//! What changed is told by inode, times and size, which were looked at *before* the content was read. Two kinds of writes
//! hide from that, and are found out:
//! - the kernel notes a write through a mapping only when the page becomes dirty, so a page that is dirty can be written
//!   again unnoticed: before a file is copied, its pages are made clean. Where the kernel notes nothing (tmpfs), only a
//!   still layer is copied;
//! - the kernel's clock has ticks, and a write notes its time when it begins: a file that changed just now counts as
//!   changed again, and looking for a file's holes waits for the writer that has its inode.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, fstatfs, major, minor, openat, readlinkat, statat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::attribute::{Attribute, Handle, Reader};
use super::content::{Shared, Sharing, copy_piece, share};
use super::name;
use super::place::Place;
use super::reader::Entry;
use super::scan::open;
use super::seen::{Seen, kind_of};
use super::sparse::{self, Piece};
use super::trail::{self, DIRECTORY, Trail};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::{by_descriptor, start_writeback};
use crate::sys::xattr::OverlayClass;

/// File systems that note writes through mappings, by statfs(2)'s magic number: ext2 to 4, xfs, btrfs, f2fs.
const TELLING: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
/// After so many bytes it is asked again whether there is room for more.
const ROOM_STEP: u64 = 16 << 20;

/// Whether anybody may change the layer meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// Yes.
    Living,
    /// No: what changes all the same is an error.
    Still,
}

/// What a pass did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Names that it looked at.
    pub names: u64,
    /// Those that it made, made anew, or gave other attributes.
    pub changed: u64,
    /// Bytes of content that it copied; shared ones are none.
    pub bytes: u64,
}

/// Says whether there is room for so many bytes more.
pub type Room<'a> = dyn Fn(u64) -> Result<()> + 'a;

/// A copy that is being made.
#[derive(Debug)]
pub struct LayerCopy {
    source: OwnedFd,
    target: OwnedFd,
    class: OverlayClass,
    tells: Telling,
    sharing: Sharing,
    /// What the last pass saw.
    seen: Option<Node>,
    /// Files with several names that had changed just before they were looked at.
    fresh: HashSet<u64>,
}

/// Whether changes of content always show in the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    Yes,
    No,
}

/// What is known of a name, and below it if it is a directory.
#[derive(Debug)]
struct Node {
    seen: Seen,
    children: BTreeMap<Vec<u8>, Node>,
}

impl LayerCopy {
    /// Begins to copy `layer` into `target`, an empty directory on the same file system that nobody else uses.
    ///
    /// # Errors
    /// Those of opening both.
    pub fn new(layer: &Path, target: &Path, class: OverlayClass) -> Result<Self> {
        let open =
            |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty()).context(|| format!("open {}", quote(path)));
        let (source, target) = (open(layer)?, open(target)?);
        let kind = fstatfs(&source).context(|| format!("ask for the file system of {}", quote(layer)))?.f_type;
        let tells = if TELLING.contains(&u64::try_from(kind).unwrap_or_default()) { Telling::Yes } else { Telling::No };
        Ok(Self { source, target, class, tells, sharing: Sharing::Possible, seen: None, fresh: HashSet::new() })
    }

    /// Makes the copy what the layer is. After an error it is of no use any more.
    ///
    /// On a living layer where changes would not show later, nothing is done.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if a still layer changes, [`Kind::Unsupported`] for a file that the layer alone does not hold
    /// (overlay redirects), whatever `room` says, else those of reading and writing.
    pub fn pass(&mut self, upper: Upper, room: &Room<'_>) -> Result<Passed> {
        if upper == Upper::Living && self.tells == Telling::No {
            return Ok(Passed::default());
        }
        let again = |fd: &OwnedFd| fd.try_clone().context(|| "open the layer again");
        let mut pass = Pass {
            upper,
            room,
            unasked: 0,
            trail: Trail::new(again(&self.source)?)?,
            place: Place::new(again(&self.target)?, self.class)?,
            reader: Reader::new(self.class),
            path: Vec::new(),
            sharing: self.sharing,
            links: HashMap::new(),
            fresh_before: std::mem::take(&mut self.fresh),
            fresh: HashSet::new(),
            passed: Passed::default(),
        };
        let root = pass.run(self.seen.take()).map_err(|error| error.during(format!("copy {}", pass.quoted())))?;
        pass.place.finish()?;
        (self.seen, self.fresh, self.sharing) = (Some(root), pass.fresh, pass.sharing);
        Ok(pass.passed)
    }
}

/// One walk through the layer.
struct Pass<'a> {
    upper: Upper,
    room: &'a Room<'a>,
    /// Bytes that were copied since `room` was asked.
    unasked: u64,
    trail: Trail,
    place: Place,
    reader: Reader,
    path: Vec<u8>,
    sharing: Sharing,
    /// Files with several names, by inode: the first name of each in this pass.
    links: HashMap<u64, Link>,
    fresh_before: HashSet<u64>,
    fresh: HashSet<u64>,
    passed: Passed,
}

/// Where a file with several names is in the copy.
#[derive(Debug, Clone)]
struct Link {
    path: Vec<u8>,
    /// Whether this pass made it: other names then still lead to an older one.
    is_new: bool,
}

/// A directory that is being read.
struct Level {
    names: std::vec::IntoIter<Vec<u8>>,
    /// Length of the path of its parent.
    before: usize,
    name: Vec<u8>,
    seen: Seen,
    marked_whiteouts: bool,
    /// What the last pass saw in it and this one has not met yet.
    old: BTreeMap<Vec<u8>, Node>,
    new: BTreeMap<Vec<u8>, Node>,
}

/// What a name turned out to be.
enum Met {
    Directory(Box<Level>),
    Other(Seen),
    /// It is gone, or nothing that a layer keeps.
    Nothing,
}

impl Pass<'_> {
    fn run(&mut self, old: Option<Node>) -> Result<Node> {
        let stat = fstat(self.trail.current()).context(|| "look at its root")?;
        let seen = Seen::of(&stat, SystemTime::now());
        let mut levels = vec![self.directory(&stat, seen, old)?];
        loop {
            let Some(level) = levels.last_mut() else {
                return Err(Error::new(Kind::System, "walk through the layer", "it has no root"));
            };
            if let Some(name) = level.names.next() {
                let (old, before, marked) = (level.old.remove(&name), self.path.len(), level.marked_whiteouts);
                name::push(&mut self.path, &name);
                match self.meet(&name, old, marked)? {
                    Met::Directory(child) => levels.push(Level { before, name, ..*child }),
                    Met::Other(seen) => {
                        level.new.insert(name, Node { seen, children: BTreeMap::new() });
                        self.path.truncate(before);
                    }
                    Met::Nothing => self.path.truncate(before),
                }
                continue;
            }
            let Some(done) = levels.pop() else { continue };
            let node = self.leave(done)?;
            match levels.last_mut() {
                Some(parent) => parent.new.insert(node.0, node.1),
                None => return Ok(node.1),
            };
            self.trail.ascend()?;
        }
    }

    /// What was there before and is not any more goes from the copy too.
    fn leave(&mut self, level: Level) -> Result<(Vec<u8>, Node)> {
        for name in level.old.keys() {
            let before = self.path.len();
            name::push(&mut self.path, name);
            self.place.remove(&self.path)?;
            self.passed.changed += 1;
            self.path.truncate(before);
        }
        self.path.truncate(level.before);
        Ok((level.name, Node { seen: level.seen, children: level.new }))
    }

    /// Takes one name over. While the layer lives, a name that goes under our hands was never there.
    fn meet(&mut self, name: &[u8], old: Option<Node>, marked_whiteouts: bool) -> Result<Met> {
        let had = old.is_some();
        let met = match self.take_over(name, old, marked_whiteouts) {
            Err(error) if self.upper == Upper::Living && is_gone(&error) => Met::Nothing,
            other => other?,
        };
        if matches!(met, Met::Nothing) && (had || self.upper == Upper::Living) {
            self.place.remove(&self.path)?;
        }
        Ok(met)
    }

    fn take_over(&mut self, name: &[u8], mut old: Option<Node>, marked_whiteouts: bool) -> Result<Met> {
        self.passed.names += 1;
        let now = SystemTime::now();
        let stat = statat(self.trail.current(), name, AtFlags::SYMLINK_NOFOLLOW).context(|| "look at it")?;
        let (seen, kind) = (Seen::of(&stat, now), kind_of(stat.st_mode));
        if old.as_ref().is_some_and(|old| old.seen.is_another_file(&seen)) {
            self.place.remove(&self.path)?;
            old = None;
        }
        if kind == FileType::Directory {
            let child = openat(self.trail.current(), name, DIRECTORY, Mode::empty()).context(|| "open it")?;
            check_same(&fstat(&child).context(|| "look at it")?, &stat)?;
            self.trail.descend(child, &stat);
            let level = self.directory(&stat, seen, old);
            if level.is_err() {
                self.trail.ascend()?;
            }
            return level.map(|level| Met::Directory(Box::new(level)));
        }
        if kind == FileType::Socket {
            return Ok(Met::Nothing);
        }
        let several = stat.st_nlink > 1;
        let fresh = several && self.fresh_before.contains(&stat.st_ino);
        if several && seen.just_now {
            self.fresh.insert(stat.st_ino);
        }
        let is_new = fresh || old.is_none_or(|old| old.seen.shows_a_change(&seen));
        if several && let Some(link) = self.links.get(&stat.st_ino).cloned() {
            if link.is_new || is_new {
                self.passed.changed += 1;
                self.place.remove(&self.path)?;
                self.place.hard_link(&self.path, &link.path)?;
            }
            return Ok(Met::Other(seen));
        }
        if is_new {
            self.passed.changed += 1;
            self.copy(name, &stat, marked_whiteouts)?;
        }
        if several && !is_whiteout(&stat) {
            self.links.insert(stat.st_ino, Link { path: self.path.clone(), is_new });
        }
        Ok(Met::Other(seen))
    }

    /// Takes over the current directory itself, and reads its names.
    fn directory(&mut self, stat: &Stat, seen: Seen, old: Option<Node>) -> Result<Level> {
        let (attributes, notes) = self.reader.read(Handle::Open(self.trail.current()))?;
        notes.check()?;
        if old.as_ref().is_none_or(|old| old.seen.shows_a_change(&seen)) {
            self.passed.changed += 1;
            self.place.directory(&self.path, &entry(stat, EntryType::Directory, attributes))?;
            match notes.opaque {
                true if !self.path.is_empty() => self.place.opaque(&self.path)?,
                // A new directory can have the number of an old one.
                false if old.is_some() => self.place.transparent(&self.path)?,
                true | false => {}
            }
        }
        let names = match trail::names(self.trail.current()) {
            // It was removed, and is read by us alone.
            Err(error) if self.upper == Upper::Living && is_gone(&error) => Vec::new(),
            other => other?,
        };
        Ok(Level {
            names: names.into_iter(),
            before: 0,
            name: Vec::new(),
            seen,
            marked_whiteouts: notes.marked_whiteouts,
            old: old.map(|old| old.children).unwrap_or_default(),
            new: BTreeMap::new(),
        })
    }

    /// Copies what is no directory.
    fn copy(&mut self, name: &[u8], stat: &Stat, marked_whiteouts: bool) -> Result<()> {
        if is_whiteout(stat) {
            self.place.remove(&self.path)?;
            return self.place.whiteout(&self.path);
        }
        let kind = match kind_of(stat.st_mode) {
            FileType::RegularFile => return self.regular(name, stat, marked_whiteouts),
            FileType::Symlink => EntryType::Symlink,
            FileType::Fifo => EntryType::Fifo,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Directory | FileType::Socket | FileType::Unknown => return Ok(()),
        };
        let (attributes, notes) = self.reader.read(Handle::Named(self.trail.current(), name))?;
        notes.check()?;
        let mut entry = entry(stat, kind, attributes);
        if kind == EntryType::Symlink {
            let target = match readlinkat(self.trail.current(), name, Vec::new()) {
                // It is no link any more.
                Err(Errno::INVAL) => Err(Errno::STALE),
                other => other,
            };
            entry.link = target.context(|| "read the link")?.into_bytes();
        }
        self.place.special(&self.path, &entry)
    }

    fn regular(&mut self, name: &[u8], stat: &Stat, marked_whiteouts: bool) -> Result<()> {
        let source = self.open(name, stat)?;
        let now = fstat(&source).context(|| "look at it")?;
        let (attributes, notes) = self.reader.read(Handle::Open(source.as_fd()))?;
        if notes.whiteout && marked_whiteouts && now.st_size == 0 {
            self.place.remove(&self.path)?;
            return self.place.whiteout(&self.path);
        }
        notes.check()?;
        let target = File::from(self.place.file(&self.path)?);
        if now.st_size > 0 {
            self.content(&source, &target, now.st_size.unsigned_abs())?;
        }
        self.place.set_open(target.as_fd(), &entry(&now, EntryType::Regular, attributes))
    }

    /// Opens a regular file that was looked at. Whoever writes a living layer may put a device in its place at any moment, and
    /// to open one can do something: so it is looked at again before it is opened.
    fn open(&self, name: &[u8], stat: &Stat) -> Result<File> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = openat(self.trail.current(), name, flags, Mode::empty()).context(|| "open it")?;
        check_same(&fstat(&handle).context(|| "look at it")?, stat)?;
        open(CWD, by_descriptor(&handle).as_os_str().as_bytes(), OFlags::empty()).map(File::from)
    }

    fn content(&mut self, source: &File, target: &File, size: u64) -> Result<()> {
        if share(source, target, &mut self.sharing)? == Shared::Yes {
            return Ok(());
        }
        if self.upper == Upper::Living {
            start_writeback(source)?;
        }
        let whole = Piece { offset: 0, length: size };
        let pieces = sparse::map(source.as_fd(), size)?.unwrap_or_else(|| vec![whole]);
        for piece in &pieces {
            self.ask_for_room(piece.length)?;
            let copied = copy_piece(source, target, *piece)?;
            self.passed.bytes += copied;
            if copied < piece.length && self.upper == Upper::Still {
                return Err(Error::new(Kind::Damaged, "read it", "it became shorter: somebody still writes it"));
            }
        }
        target.set_len(size).context(|| "set its size")
    }

    fn ask_for_room(&mut self, length: u64) -> Result<()> {
        self.unasked += length;
        if self.unasked < ROOM_STEP {
            return Ok(());
        }
        // What was copied since is no longer free, so it is not asked for again.
        self.unasked = 0;
        (self.room)(length)
    }

    fn quoted(&self) -> String {
        quote(Path::new(std::ffi::OsStr::from_bytes(&self.path)))
    }
}

/// What was opened has to be what was looked at, or the next pass would not see the difference.
fn check_same(opened: &Stat, looked_at: &Stat) -> Result<()> {
    // A number that became free is given to the next file, also to one of another kind.
    let identity = |stat: &Stat| (stat.st_dev, stat.st_ino, kind_of(stat.st_mode));
    if identity(opened) == identity(looked_at) {
        return Ok(());
    }
    Err(Errno::STALE).context(|| "open it")
}

/// Whether a name stands for something else now than it did, or for nothing.
fn is_gone(error: &Error) -> bool {
    let errno = error.errno().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE))
}

fn is_whiteout(stat: &Stat) -> bool {
    kind_of(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// What the copy gets.
fn entry(stat: &Stat, kind: EntryType, attributes: Vec<Attribute>) -> Entry {
    let device = match kind {
        EntryType::Char | EntryType::Block => (major(stat.st_rdev), minor(stat.st_rdev)),
        _ => (0, 0),
    };
    Entry {
        kind,
        stored: Vec::new(),
        real: None,
        link: Vec::new(),
        real_link: None,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        device,
        attributes,
        data: 0,
        sparse: None,
    }
}
