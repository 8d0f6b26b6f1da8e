//! Walks a layer in the order of its names' bytes and writes it as tar entries.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat};
use rustix::io::Errno;
use tar::EntryType;

use super::attribute::{Handle, Reader};
use super::header::{BLOCK, Meta};
use super::name;
use super::pipeline::TarStream;
use super::sparse;
use super::trail::{self, DIRECTORY, Trail};
use crate::error::{Context, Result, quote};
use crate::sys::xattr::OverlayClass;

/// A path as it is, and as a pack stores it.
#[derive(Debug, Default, Clone)]
struct Names {
    real: Vec<u8>,
    stored: Vec<u8>,
}

impl Names {
    /// The lengths before `name` was appended, to go back to.
    fn push(&mut self, name: &[u8]) -> (usize, usize) {
        let before = (self.real.len(), self.stored.len());
        name::push(&mut self.real, name);
        name::push(&mut self.stored, &name::escape(name));
        before
    }

    fn truncate(&mut self, (real, stored): (usize, usize)) {
        self.real.truncate(real);
        self.stored.truncate(stored);
    }

    /// The real path, where the stored one does not say it.
    fn differing(&self) -> Option<&[u8]> {
        (self.real != self.stored).then_some(self.real.as_slice())
    }
}

/// A directory that is being read.
struct Level {
    names: std::vec::IntoIter<Vec<u8>>,
    /// Lengths of the path of its parent.
    before: (usize, usize),
    marked_whiteouts: bool,
}

struct Scan<'a, 's> {
    trail: Trail,
    path: Names,
    reader: Reader,
    /// The first path of every file that has more to come, and how many.
    links: HashMap<(u64, u64), (Names, u64)>,
    stream: &'a mut TarStream<'s>,
    sockets: Vec<PathBuf>,
}

/// Writes the layer in `root`, with the end of the archive; the sockets, which were left out.
pub(super) fn scan(root: OwnedFd, class: OverlayClass, stream: &mut TarStream<'_>) -> Result<Vec<PathBuf>> {
    let stat = fstat(&root).context(|| "look at its root")?;
    let trail = Trail::new(root)?;
    let mut scan = Scan {
        trail,
        path: Names::default(),
        reader: Reader::new(class),
        links: HashMap::new(),
        stream,
        sockets: Vec::new(),
    };
    let mut levels = vec![scan.directory(&stat, (0, 0)).context(|| "pack its root")?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            scan.path.truncate(level.before);
            scan.trail.ascend()?;
            levels.pop();
            continue;
        };
        let marked_whiteouts = level.marked_whiteouts;
        let before = scan.path.push(&name);
        match scan.entry(&name, before, marked_whiteouts) {
            Ok(Some(child)) => levels.push(child),
            Ok(None) => scan.path.truncate(before),
            Err(error) => return Err(error.during(format!("pack {}", quote(path(&scan.path.real))))),
        }
    }
    scan.stream.pad(2 * BLOCK)?;
    Ok(scan.sockets)
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

impl Scan<'_, '_> {
    /// Writes one name of the current directory; a directory is then the current one.
    fn entry(&mut self, name: &[u8], before: (usize, usize), marked_whiteouts: bool) -> Result<Option<Level>> {
        let stat = statat(self.trail.current(), name, AtFlags::SYMLINK_NOFOLLOW).context(|| "look at it")?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            self.whiteout(name, before)?;
            return Ok(None);
        }
        if kind == FileType::Directory {
            let child = openat(self.trail.current(), name, DIRECTORY, Mode::empty()).context(|| "open it")?;
            self.trail.descend(child, &stat);
            return self.directory(&stat, before).map(Some);
        }
        if kind == FileType::Socket {
            self.sockets.push(OsString::from_vec(self.path.real.clone()).into());
            return Ok(None);
        }
        if self.hard_link(&stat)? {
            return Ok(None);
        }
        match kind {
            FileType::RegularFile => self.regular(name, before, &stat, marked_whiteouts)?,
            FileType::Symlink => {
                let target = readlinkat(self.trail.current(), name, Vec::new()).context(|| "read the link")?;
                self.special(name, &stat, EntryType::Symlink, Some(target.as_bytes()))?;
            }
            FileType::Fifo => self.special(name, &stat, EntryType::Fifo, None)?,
            FileType::CharacterDevice => self.special(name, &stat, EntryType::Char, None)?,
            FileType::BlockDevice => self.special(name, &stat, EntryType::Block, None)?,
            FileType::Directory | FileType::Socket | FileType::Unknown => {}
        }
        Ok(None)
    }

    /// Writes the current directory and reads its names.
    fn directory(&mut self, stat: &Stat, before: (usize, usize)) -> Result<Level> {
        let (attributes, notes) = self.reader.read(Handle::Open(self.trail.current()))?;
        notes.check()?;
        self.stream
            .write(&Meta { attributes: &attributes, ..meta(&self.path, stat, EntryType::Directory) }.encode()?)?;
        if notes.opaque {
            self.mark(name::OPAQUE, name::OPAQUE, &self.path.clone())?;
        }
        let names = trail::names(self.trail.current())?.into_iter();
        Ok(Level { names, before, marked_whiteouts: notes.marked_whiteouts })
    }

    fn whiteout(&mut self, name: &[u8], before: (usize, usize)) -> Result<()> {
        let mut parent = self.path.clone();
        parent.truncate(before);
        self.mark(&name::whiteout(name), &name::whiteout(&name::escape(name)), &parent)
    }

    /// Writes an empty file of a meaning into `parent`.
    fn mark(&mut self, real: &[u8], stored: &[u8], parent: &Names) -> Result<()> {
        let mut mark = parent.clone();
        name::push(&mut mark.real, real);
        name::push(&mut mark.stored, stored);
        self.stream.write(&Meta::mark(&mark.stored, mark.differing()).encode()?)
    }

    /// Writes a link if the file was written under another name; if it will be met again, remembers it.
    fn hard_link(&mut self, stat: &Stat) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let inode = (stat.st_dev, stat.st_ino);
        let Some((first, left)) = self.links.get_mut(&inode) else {
            self.links.insert(inode, (self.path.clone(), stat.st_nlink - 1));
            return Ok(false);
        };
        *left -= 1;
        let (first, is_last) = (first.clone(), *left == 0);
        if is_last {
            self.links.remove(&inode);
        }
        let link = Some((first.stored.as_slice(), first.differing()));
        self.stream.write(&Meta { link, ..meta(&self.path, stat, EntryType::Link) }.encode()?)?;
        Ok(true)
    }

    fn regular(&mut self, name: &[u8], before: (usize, usize), stat: &Stat, marked_whiteouts: bool) -> Result<()> {
        let file = open(self.trail.current(), name, OFlags::NOFOLLOW)?;
        let (attributes, notes) = self.reader.read(Handle::Open(file.as_fd()))?;
        if notes.whiteout && marked_whiteouts && stat.st_size == 0 {
            return self.whiteout(name, before);
        }
        notes.check()?;
        let size = stat.st_size.unsigned_abs();
        let meta = Meta { attributes: &attributes, size, ..meta(&self.path, stat, EntryType::Regular) };
        let pieces = match stat.st_blocks.unsigned_abs() * 512 < size {
            true => sparse::map(file.as_fd(), size)?,
            false => None,
        };
        let Some(pieces) = pieces else {
            self.stream.write(&meta.encode()?)?;
            self.stream.copy(file.as_fd(), 0, size)?;
            return self.stream.pad(padding(size));
        };
        let map = sparse::encode(&pieces, size);
        let data: u64 = pieces.iter().map(|piece| piece.length).sum();
        self.stream.write(&Meta { size: map.len() as u64 + data, sparse: Some(size), ..meta }.encode()?)?;
        self.stream.write(&map)?;
        for piece in pieces {
            self.stream.copy(file.as_fd(), piece.offset, piece.length)?;
        }
        self.stream.pad(padding(data))
    }

    fn special(&mut self, name: &[u8], stat: &Stat, kind: EntryType, target: Option<&[u8]>) -> Result<()> {
        let (attributes, notes) = self.reader.read(Handle::Named(self.trail.current(), name))?;
        notes.check()?;
        let device = match kind {
            EntryType::Char | EntryType::Block => (major(stat.st_rdev), minor(stat.st_rdev)),
            _ => (0, 0),
        };
        let link = target.map(|target| (target, None));
        self.stream.write(&Meta { attributes: &attributes, device, link, ..meta(&self.path, stat, kind) }.encode()?)
    }
}

/// What a file's status says about it.
fn meta<'a>(path: &'a Names, stat: &Stat, kind: EntryType) -> Meta<'a> {
    Meta {
        kind,
        stored: &path.stored,
        real: path.differing(),
        link: None,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        device: (0, 0),
        attributes: &[],
        size: 0,
        sparse: None,
    }
}

/// Opens a regular file for reading, without a change of its access time where that is allowed.
pub(super) fn open(directory: BorrowedFd<'_>, name: &[u8], follow: OFlags) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | follow;
    match openat(directory, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(directory, name, flags, Mode::empty()),
        result => result,
    }
    .context(|| "open it")
}

/// Bytes that follow content of this length, up to the next block.
fn padding(length: u64) -> usize {
    usize::try_from(length.next_multiple_of(BLOCK as u64) - length).unwrap_or(0)
}
