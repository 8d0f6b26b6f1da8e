//! `tmpcopyup`: a tmpfs that begins with what it covers.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, linkat, mkdirat,
    mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Context, Result, quote};
use crate::sys::xattr::path_at;

/// Where the first name of a file with several went: the directory in the copy, and the name there.
type Linked = HashMap<(u64, u64), (OwnedFd, std::ffi::CString)>;

/// Copies everything in `from` into the empty tmpfs `to`, and makes `to` look like `from`: contents, owners, modes,
/// times, extended attributes, symlinks, hard links, devices. What the tmpfs's own options say of its root (`data`)
/// stays so.
///
/// # Errors
/// The name that could not be copied, and why.
pub(super) fn fill(from: &OwnedFd, to: &OwnedFd, data: &[String]) -> Result<()> {
    let from = open_directory(from, c".").context(|| "open it")?;
    let to = open_directory(to, c".").context(|| "open the tmpfs")?;
    let mut top = statat(&from, "", AtFlags::EMPTY_PATH).context(|| "look at it")?;
    let own = statat(&to, "", AtFlags::EMPTY_PATH).context(|| "look at the tmpfs")?;
    let says = |key: &str| data.iter().any(|word| word.split(',').any(|word| word.starts_with(key)));
    if says("mode=") {
        top.st_mode = own.st_mode;
    }
    if says("uid=") {
        top.st_uid = own.st_uid;
    }
    if says("gid=") {
        top.st_gid = own.st_gid;
    }
    copy_directory(&from, &to, &mut Linked::new())?;
    copy_attributes((&from, c"."), (&to, c"."), &top).context(|| "copy its attributes")
}

fn open_directory(parent: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, linked: &mut Linked) -> Result<()> {
    for entry in Dir::read_from(from).context(|| "list it")? {
        let entry = entry.context(|| "list it")?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
            copy(from, to, name, linked).context(|| format!("copy {}", quote(path)))?;
        }
    }
    Ok(())
}

fn copy(from: &OwnedFd, to: &OwnedFd, name: &CStr, linked: &mut Linked) -> Result<()> {
    let found = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).context(|| "look at it")?;
    let kind = FileType::from_raw_mode(found.st_mode);
    let several = kind != FileType::Directory && found.st_nlink > 1;
    if several && let Some((directory, first)) = linked.get(&(found.st_dev, found.st_ino)) {
        return linkat(directory, first.as_c_str(), to, name, AtFlags::empty()).context(|| "link it");
    }
    match kind {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU).context(|| "make it")?;
            let (from, to) = (open_directory(from, name), open_directory(to, name));
            copy_directory(&from.context(|| "open it")?, &to.context(|| "open the copy")?, linked)?;
        }
        FileType::RegularFile => copy_content(from, to, name)?,
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).context(|| "read it")?;
            symlinkat(target, to, name).context(|| "link it")?;
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket | FileType::Unknown => {
            mknodat(to, name, kind, Mode::from_raw_mode(found.st_mode & 0o7777), found.st_rdev)
                .context(|| "make it")?;
        }
    }
    copy_attributes((from, name), (to, name), &found).context(|| "copy its attributes")?;
    if several {
        let directory = to.try_clone().context(|| "keep its directory open")?;
        linked.insert((found.st_dev, found.st_ino), (directory, name.to_owned()));
    }
    Ok(())
}

fn copy_content(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
    // What was a file a moment ago may be a fifo by now; opening must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = openat(from, name, flags, Mode::empty()).context(|| "open it")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = openat(to, name, flags, Mode::RUSR | Mode::WUSR).context(|| "make it")?;
    std::io::copy(&mut File::from(source), &mut File::from(target)).map(drop).context(|| "copy its content")
}

/// A name in an open directory.
type Entry<'a> = (&'a OwnedFd, &'a CStr);

fn copy_attributes(from: Entry<'_>, to: Entry<'_>, found: &Stat) -> Result<()> {
    let owner = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    match chownat(to.0, to.1, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW) {
        // An owner that the user namespace does not know cannot be given either.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno).context(|| "chown"),
    }
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
        chmodat(to.0, to.1, mode, AtFlags::empty()).context(|| "chmod")?;
    }
    copy_extended(from, to)?;
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    let times = Timestamps {
        last_access: time(found.st_atime, found.st_atime_nsec),
        last_modification: time(found.st_mtime, found.st_mtime_nsec),
    };
    utimensat(to.0, to.1, &times, AtFlags::SYMLINK_NOFOLLOW).context(|| "set its times")
}

/// What a tmpfs cannot hold, or this process may not give, is left out.
fn copy_extended(from: Entry<'_>, to: Entry<'_>) -> Result<()> {
    let path = |entry: Entry<'_>| {
        let bytes = path_at(entry.0.as_fd(), entry.1.to_bytes());
        std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
    };
    let (from, to) = (path(from), path(to));
    let refused = |error: &std::io::Error| {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::OPNOTSUPP | Errno::PERM))
    };
    let names = match xattr::list(&from) {
        Err(error) if refused(&error) => return Ok(()),
        names => names.context(|| "list its attributes")?,
    };
    for name in names {
        let Some(value) = xattr::get(&from, &name).context(|| "read an attribute")? else { continue };
        match xattr::set(&to, &name, &value) {
            Err(error) if refused(&error) => {}
            result => result.context(|| format!("set '{}'", name.to_string_lossy().escape_debug()))?,
        }
    }
    Ok(())
}
