//! A layer that is still written, copied into another directory: as often as one wants, each time only what changed.
//!
//! ```text
//! pass, living   everything, then what changed since    the layer is used meanwhile: names come and go
//! pass, still    what changed since the last one        nobody changes it: afterwards both are the same
//! ```
//!
//! Or only what changed since a copy that was made before: the new one is then a layer to be put over that one, with
//! whiteouts for what went. `known` is what a copy knows and can write down, `suspect` finds what may have changed since,
//! `walk` goes there and brings the copy up to date.
//!
//! What changed is told by inode, times and size, which were looked at *before* the content was read. Two kinds of writes
//! hide from that, and are found out:
//! - the kernel notes a write through a mapping only when the page becomes dirty, so a page that is dirty can be written
//!   again unnoticed: before a file is copied, its pages are made clean. Where the kernel notes nothing (tmpfs), only a
//!   still layer is copied. What was copied of a still layer was not made clean, and counts as changed from then on;
//! - the kernel's clock has ticks, and a write notes its time when it begins: a file that changed just now counts as
//!   changed again, and looking for a file's holes waits for the writer that has its inode.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, fstatfs, major, minor, openat, readlinkat};
use rustix::io::Errno;
use tar::EntryType;

use super::attribute::{Attribute, Handle, Reader};
use super::content::{Shared, Sharing, copy_piece, share};
use super::known::{Node, What};
use super::outlook::Outlook;
use super::place::Place;
use super::reader::Entry;
use super::scan::open;
use super::seen::kind_of;
use super::sparse::{self, Piece};
use super::suspect;
use super::trail::{DIRECTORY, Trail};
use super::walk::Pass;
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
    /// Those of them of which nothing tells that they changed, but for that it could not be told.
    pub doubtful: u64,
    /// Bytes of content that it copied; shared ones are none.
    pub bytes: u64,
    /// Bytes of files that it took over and that had changed just before, so that they will be taken over again.
    pub fresh: u64,
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
    /// What is in the copy that this one is to be put over.
    former: Option<Node>,
    /// What the last pass saw.
    seen: Option<Node>,
    /// What the next pass looks at, if that was got ready.
    outlook: Option<Outlook>,
    /// What the last one looked at: to close it takes time that nobody should wait for.
    spent: Option<Outlook>,
    /// Files with several names that had changed just before they were looked at.
    fresh: HashSet<u64>,
}

/// Whether changes of content always show in the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    Yes,
    No,
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
        let (former, seen, outlook, spent, fresh) = (None, None, None, None, HashSet::new());
        Ok(Self { source, target, class, tells, sharing: Sharing::Possible, former, seen, outlook, spent, fresh })
    }

    /// Begins to copy what changed in `layer` since another copy of it was complete, of which this is [`LayerCopy::known`].
    /// What comes to be in `target` is a layer to be put over that copy.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if `known` is not what regen wrote; those of opening both.
    pub fn over(layer: &Path, target: &Path, class: OverlayClass, known: &[u8]) -> Result<Self> {
        let former = Node::decode(known)?;
        Ok(Self { seen: Some(former.clone()), former: Some(former), ..Self::new(layer, target, class)? })
    }

    /// What a later copy has to know to begin where this one ended; `None` if changes do not show in this layer, or nothing
    /// was copied yet.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for more names in a directory than can be counted.
    pub fn known(&self) -> Result<Option<Vec<u8>>> {
        match (&self.seen, self.tells) {
            (Some(seen), Telling::Yes) => seen.encode(&self.fresh).map(Some),
            (None, _) | (_, Telling::No) => Ok(None),
        }
    }

    /// Gets everything ready that the next pass can be spared: to be called before the layer stands still. It changes nothing
    /// but how long that takes. Descriptors are held from here on until the copy is dropped or passes again, as many as this
    /// process may have but for some.
    pub fn get_ready(&mut self) {
        self.spent = None;
        self.outlook = self.seen.as_ref().map(Outlook::of);
        if let Some(outlook) = &mut self.outlook {
            outlook.open(self.source.as_fd());
        }
    }

    /// Makes the copy what the layer is. After an error it is of no use any more.
    ///
    /// On a living layer where changes would not show later, nothing is done.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if a still layer changes, [`Kind::Unsupported`] for a file that the layer alone does not hold
    /// (overlay redirects) and for what cannot be said over the former copy, whatever `room` says, else those of reading and writing.
    pub fn pass(&mut self, upper: Upper, room: &Room<'_>) -> Result<Passed> {
        if upper == Upper::Living && self.tells == Telling::No {
            return Ok(Passed::default());
        }
        let again = |fd: &OwnedFd| fd.try_clone().context(|| "open the layer again");
        let (suspects, names) = match &self.seen {
            Some(seen) => {
                let outlook = self.outlook.take().unwrap_or_else(|| Outlook::of(seen));
                let (mut suspects, names) = (suspect::find(self.source.as_fd(), &outlook), outlook.names());
                // What is put over another layer has a root of its own, changed or not.
                suspects.itself |= self.former.is_some();
                self.spent = Some(outlook);
                (Some(suspects), names as u64)
            }
            None => (None, 0),
        };
        let mut pass = Pass {
            upper,
            room,
            unasked: 0,
            source: self.source.as_fd(),
            target: self.target.as_fd(),
            former: self.former.as_ref(),
            trail: Trail::new(again(&self.source)?)?,
            place: Place::new(again(&self.target)?, self.class)?,
            reader: Reader::new(self.class),
            path: Vec::new(),
            led: None,
            sharing: self.sharing,
            links: HashMap::new(),
            fresh_before: std::mem::take(&mut self.fresh),
            fresh: HashSet::new(),
            passed: Passed { names, ..Passed::default() },
        };
        let root = pass.run(self.seen.take(), suspects);
        let root = root.map_err(|error| error.during(format!("copy {}", pass.quoted())))?;
        pass.place.finish()?;
        (self.seen, self.fresh, self.sharing) = (Some(root), pass.fresh, pass.sharing);
        Ok(pass.passed)
    }
}

impl Pass<'_> {
    /// Copies what is no directory and no whiteout, unless it turns out to be one.
    pub(super) fn copy(&mut self, name: &[u8], stat: &Stat, marked_whiteouts: bool) -> Result<What> {
        let kind = match kind_of(stat.st_mode) {
            FileType::RegularFile => return self.regular(name, stat, marked_whiteouts),
            FileType::Symlink => EntryType::Symlink,
            FileType::Fifo => EntryType::Fifo,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Directory | FileType::Socket | FileType::Unknown => return Ok(What::File),
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
        self.place.special(&self.path, &entry)?;
        Ok(What::File)
    }

    fn regular(&mut self, name: &[u8], stat: &Stat, marked_whiteouts: bool) -> Result<What> {
        let source = self.open(name, stat)?;
        let now = fstat(&source).context(|| "look at it")?;
        let (attributes, notes) = self.reader.read(Handle::Open(source.as_fd()))?;
        if notes.whiteout && marked_whiteouts && now.st_size == 0 {
            self.place.remove(&self.path)?;
            self.place.whiteout(&self.path)?;
            return Ok(What::Whiteout);
        }
        notes.check()?;
        let target = File::from(self.place.file(&self.path)?);
        if now.st_size > 0 {
            self.content(&source, &target, now.st_size.unsigned_abs())?;
        }
        self.place.set_open(target.as_fd(), &entry(&now, EntryType::Regular, attributes))?;
        Ok(What::File)
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

    pub(super) fn quoted(&self) -> String {
        quote(Path::new(std::ffi::OsStr::from_bytes(&self.path)))
    }
}

/// What was opened has to be what was looked at, or the next pass would not see the difference.
pub(super) fn check_same(opened: &Stat, looked_at: &Stat) -> Result<()> {
    // A number that became free is given to the next file, also to one of another kind.
    let identity = |stat: &Stat| (stat.st_dev, stat.st_ino, kind_of(stat.st_mode));
    if identity(opened) == identity(looked_at) {
        return Ok(());
    }
    Err(Errno::STALE).context(|| "open it")
}

/// Whether a name stands for something else now than it did, or for nothing.
pub(super) fn is_gone(error: &Error) -> bool {
    let errno = error.errno().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE))
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind_of(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// What the copy gets.
pub(super) fn entry(stat: &Stat, kind: EntryType, attributes: Vec<Attribute>) -> Entry {
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
