//! Puts the entries of a pack into a directory, never outside of it.
//!
//! Every name is used in an open directory that was reached from the root without following a link. While a
//! directory is on the way to the current one, its time is kept to be set again when it is left, and its default
//! access list is taken away, so that new children do not inherit from it what their own entries do not say.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, fchmod,
    fchown, fremovexattr, fstat, futimens, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::attribute::{self, Attribute, DEFAULT_ACL, Handle};
use super::name::{components, split};
use super::reader::Entry;
use super::trail::{DIRECTORY, Trail, open_beneath, remove_tree};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::xattr::OverlayClass;

/// What a directory on the trail gets back when it is left.
#[derive(Debug)]
struct Kept {
    mtime: Timespec,
    default_acl: Option<Vec<u8>>,
}

/// A directory that is being filled.
#[derive(Debug)]
pub(super) struct Place {
    class: OverlayClass,
    root: OwnedFd,
    trail: Trail,
    /// The names of the directories below the root, on the trail.
    names: Vec<Vec<u8>>,
    /// Of the root and of each of them.
    kept: Vec<Kept>,
    reader: attribute::Reader,
}

fn refused(cause: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, "check it", cause)
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}

fn show(name: &[u8]) -> String {
    use std::os::unix::ffi::OsStrExt;
    quote(std::ffi::OsStr::from_bytes(name))
}

impl Place {
    /// Fills `root`, an empty directory.
    pub(super) fn new(root: OwnedFd, class: OverlayClass) -> Result<Self> {
        let trail = Trail::new(root.try_clone().context(|| "open the root again")?)?;
        let reader = attribute::Reader::new(class);
        let mut place = Self { class, root, trail, names: Vec::new(), kept: Vec::new(), reader };
        place.keep()?;
        Ok(place)
    }

    /// Leaves the last directories.
    pub(super) fn finish(mut self) -> Result<()> {
        while !self.names.is_empty() {
            self.leave()?;
        }
        self.give_back()
    }

    /// Makes a directory, or takes the one that is there and gives it the entry's fields.
    pub(super) fn directory(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let (parent, name) = split(path);
        self.enter(parent)?;
        if name.is_empty() {
            self.kept.pop();
            self.set_open(self.trail.current(), entry)?;
            return self.keep();
        }
        let existing = self.status(name)?;
        if !existing.as_ref().is_some_and(is_directory) {
            self.make_directory(name, existing.as_ref())?;
        }
        let directory = openat(self.trail.current(), name, DIRECTORY, Mode::empty()).context(|| "open it")?;
        if existing.as_ref().is_some_and(is_directory) {
            for attribute in self.reader.read(Handle::Open(directory.as_fd()))?.0 {
                fremovexattr(&directory, attribute.name.as_slice()).context(|| "remove an attribute of it")?;
            }
        }
        self.set_open(directory.as_fd(), entry)
    }

    /// Makes a regular file for the content to be written to.
    pub(super) fn file(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = self.enter_parent(path)?;
        self.make(name, |directory| openat(directory, name, flags, Mode::RUSR | Mode::WUSR))
    }

    /// Gives an open file the entry's fields; the last thing done to it.
    pub(super) fn set_open(&self, file: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        // Changing the owner takes away setuid bits and capabilities, so these come after it.
        let (uid, gid) = owner(entry);
        fchown(file, uid, gid).context(|| "set its owner")?;
        fchmod(file, Mode::from_raw_mode(entry.mode)).context(|| "set its mode")?;
        self.set_attributes(Handle::Open(file), &entry.attributes)?;
        futimens(file, &times(entry.mtime)).context(|| "set its time")
    }

    /// Makes a symbolic link, a fifo or a device.
    pub(super) fn special(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let (major, minor) = entry.device;
        let kind = match entry.kind {
            EntryType::Symlink => FileType::Symlink,
            EntryType::Fifo => FileType::Fifo,
            EntryType::Block => FileType::BlockDevice,
            EntryType::Char if entry.device == (0, 0) => {
                return Err(refused("a device 0:0 is overlay's whiteout, which only a '.wh.' name may make"));
            }
            EntryType::Char => FileType::CharacterDevice,
            other => return Err(refused(format!("an entry of unknown type {:#04x}", other.as_byte()))),
        };
        let name = self.enter_parent(path)?;
        self.make(name, |directory| match kind {
            FileType::Symlink => symlinkat(entry.link.as_slice(), directory, name),
            kind => mknodat(directory, name, kind, Mode::empty(), makedev(major, minor)),
        })?;
        let (directory, (uid, gid)) = (self.trail.current(), owner(entry));
        chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).context(|| "set its owner")?;
        if kind != FileType::Symlink {
            chmodat(directory, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()).context(|| "set its mode")?;
        }
        self.set_attributes(Handle::Named(directory, name), &entry.attributes)?;
        utimensat(directory, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).context(|| "set its time")
    }

    /// Gives a file of this layer another name.
    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let (parent, target_name) = split(target);
        let missing = || refused(format!("a hard link to {}, which the layer does not hold", show(target)));
        let directory = match open_beneath(self.root.as_fd(), parent) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            result => result.context(|| format!("find its target {}", show(target)))?,
        };
        let stat = match statat(&directory, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            result => result.context(|| format!("look at its target {}", show(target)))?,
        };
        if is_directory(&stat) || is_whiteout(&stat) {
            return Err(refused(format!("a hard link to {}, which is no file", show(target))));
        }
        let name = self.enter_parent(path)?;
        if self.status(name)?.is_some_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        self.make(name, |here| linkat(&directory, target_name, here, name, AtFlags::empty()))
    }

    /// Takes away what is at a path, with everything below it; that there is nothing is no error.
    pub(super) fn remove(&mut self, path: &[u8]) -> Result<()> {
        let name = self.enter_parent(path)?;
        match self.status(name)? {
            Some(stat) if is_directory(&stat) => remove_tree(self.trail.current(), name),
            Some(_) => unlinkat(self.trail.current(), name, AtFlags::empty()).context(|| "remove it"),
            None => Ok(()),
        }
    }

    /// Says that what the layers below have at a path is deleted.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let name = self.enter_parent(path)?;
        match self.status(name)? {
            // Whiteouts are about the layers below: what this layer has there itself stays, and hides them.
            Some(stat) if is_directory(&stat) => {
                let directory = openat(self.trail.current(), name, DIRECTORY, Mode::empty()).context(|| "open it")?;
                self.make_opaque(directory.as_fd())
            }
            Some(_) => Ok(()),
            None => mknodat(self.trail.current(), name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
                .context(|| "make its whiteout"),
        }
    }

    /// Says that a directory hides the one below.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            let cause = "an opaque root: overlayfs cannot hide whole layers";
            return Err(Error::new(Kind::Unsupported, "check it", cause).next("squash the image"));
        }
        self.enter(path)?;
        self.make_opaque(self.trail.current())
    }

    /// Takes back that a directory hides the one below.
    pub(super) fn transparent(&mut self, path: &[u8]) -> Result<()> {
        self.enter(path)?;
        match fremovexattr(self.trail.current(), self.class.opaque()) {
            Err(Errno::NODATA) => Ok(()),
            other => other.context(|| "make it show the one below"),
        }
    }

    fn make_opaque(&self, directory: BorrowedFd<'_>) -> Result<()> {
        Handle::Open(directory).set(self.class.opaque().as_bytes(), b"y")
    }

    fn set_attributes(&self, file: Handle<'_>, attributes: &[Attribute]) -> Result<()> {
        for Attribute { name, value } in attributes {
            // In a user namespace, nobody can set or see these.
            let invisible = self.class == OverlayClass::User && name.starts_with(b"trusted.");
            if attribute::is_portable(name) && !invisible {
                file.set(name, value)?;
            }
        }
        Ok(())
    }

    /// Makes something new under a name; what is there already gives way, for the last entry of a name counts.
    fn make<T>(&self, name: &[u8], make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>) -> Result<T> {
        let directory = self.trail.current();
        match make(directory) {
            Err(Errno::EXIST) => {
                match self.status(name)? {
                    Some(stat) if is_directory(&stat) => remove_tree(directory, name)?,
                    Some(_) | None => {
                        unlinkat(directory, name, AtFlags::empty()).context(|| "replace an earlier entry")?;
                    }
                }
                make(directory)
            }
            result => result,
        }
        .context(|| "create it")
    }

    fn status(&self, name: &[u8]) -> Result<Option<Stat>> {
        match statat(self.trail.current(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            result => result.map(Some).context(|| "look at it"),
        }
    }

    /// Makes a directory where `existing`, if anything, is none.
    fn make_directory(&self, name: &[u8], existing: Option<&Stat>) -> Result<()> {
        self.make(name, |directory| mkdirat(directory, name, Mode::RWXU))?;
        let directory = openat(self.trail.current(), name, DIRECTORY, Mode::empty()).context(|| "open it")?;
        if existing.is_some_and(is_whiteout) {
            // Deleted below, and new here.
            self.make_opaque(directory.as_fd())?;
        }
        fchown(&directory, Some(Uid::ROOT), Some(Gid::ROOT)).context(|| "set its owner")?;
        fchmod(&directory, Mode::from_raw_mode(0o755)).context(|| "set its mode")?;
        futimens(&directory, &times((0, 0))).context(|| "set its time")
    }

    /// Goes to the directory of a path; the name in it.
    fn enter_parent<'p>(&mut self, path: &'p [u8]) -> Result<&'p [u8]> {
        let (parent, name) = split(path);
        if name.is_empty() {
            return Err(refused("the root of a layer is a directory"));
        }
        self.enter(parent)?;
        Ok(name)
    }

    /// Goes to a directory, which is made if it is missing.
    fn enter(&mut self, path: &[u8]) -> Result<()> {
        let common = self.names.iter().zip(components(path)).take_while(|(have, want)| have == want).count();
        while self.names.len() > common {
            self.leave()?;
        }
        components(path).skip(common).try_for_each(|name| self.step(name))
    }

    fn step(&mut self, name: &[u8]) -> Result<()> {
        let open = |trail: &Trail| openat(trail.current(), name, DIRECTORY, Mode::empty());
        let directory = match open(&self.trail) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                let existing = self.status(name)?;
                if existing.as_ref().is_some_and(|stat| !is_whiteout(stat)) {
                    return Err(refused(format!("its parent {} is not a directory", show(name))));
                }
                self.make_directory(name, existing.as_ref())?;
                open(&self.trail)
            }
            result => result,
        }
        .context(|| format!("open its parent {}", show(name)))?;
        let stat = fstat(&directory).context(|| "look at its parent")?;
        self.trail.descend(directory, &stat);
        self.names.push(name.to_vec());
        self.keep()
    }

    fn leave(&mut self) -> Result<()> {
        self.give_back()?;
        self.names.pop();
        self.trail.ascend()
    }

    /// Remembers what children would change about the current directory.
    fn keep(&mut self) -> Result<()> {
        let directory = self.trail.current();
        let stat = fstat(directory).context(|| "look at its parent")?;
        let default_acl = Handle::Open(directory).find(DEFAULT_ACL.as_bytes())?;
        if default_acl.is_some() {
            fremovexattr(directory, DEFAULT_ACL).context(|| "take the default access list of its parent")?;
        }
        let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
        self.kept.push(Kept { mtime, default_acl });
        Ok(())
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(kept) = self.kept.pop() else { return Ok(()) };
        let directory = self.trail.current();
        if let Some(acl) = kept.default_acl {
            Handle::Open(directory).set(DEFAULT_ACL.as_bytes(), &acl)?;
        }
        futimens(directory, &both(kept.mtime)).context(|| "set the time of its parent")
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    both(Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() })
}

/// Access times are not kept: nothing that is mounted read-only has any.
fn both(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: mtime }
}
