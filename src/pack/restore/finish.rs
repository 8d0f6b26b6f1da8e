//! What was made gets the fields of its original, by descriptor: owner, mode, attributes, times.

use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown, fremovexattr,
    fstat, futimens, openat, utimensat,
};

use super::super::attribute::{Attribute, Handle, Reader};
use super::super::seen::kind_of;
use super::{HANDLE, changed_meanwhile};
use crate::error::{Context, Result};
use crate::sys::fs::by_descriptor;

/// A name in an open directory.
type Named<'a> = (BorrowedFd<'a>, &'a [u8]);

/// Gives an open file or directory the fields of another, and takes away the attributes that this one does not have, as those
/// that it inherited.
pub(super) fn finish_open(reader: &mut Reader, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
    let (wanted, _) = reader.read(Handle::Open(from))?;
    let (there, _) = reader.read(Handle::Open(to))?;
    // Changing the owner takes away set-user-id bits and capabilities, so these come after it.
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).context(|| "set its owner")?;
    for Attribute { name, .. } in there.iter().filter(|there| !wanted.iter().any(|wanted| wanted.name == there.name)) {
        fremovexattr(to, name.as_slice()).context(|| "remove an attribute of it")?;
    }
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).context(|| "set its mode")?;
    for Attribute { name, value } in &wanted {
        Handle::Open(to).set(name, value)?;
    }
    futimens(to, &times(stat)).context(|| "set its times")
}

/// The same for what must not be opened: links, fifos and devices. Gives what it is.
pub(super) fn finish_named(reader: &mut Reader, from: Named<'_>, to: Named<'_>, stat: &Stat) -> Result<Stat> {
    let (directory, name) = to;
    let made = openat(directory, name, HANDLE, Mode::empty()).context(|| "open it")?;
    let found = fstat(&made).context(|| "look at it")?;
    let kind = kind_of(stat.st_mode);
    // Who may write the directory can put another file under the name, which must not get the owner.
    if kind_of(found.st_mode) != kind || found.st_rdev != stat.st_rdev || found.st_nlink != 1 {
        return Err(changed_meanwhile());
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let itself = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    chownat(&made, "", Some(uid), Some(gid), itself).context(|| "set its owner")?;
    if kind != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        chmodat(CWD, by_descriptor(&made), mode, AtFlags::empty()).context(|| "set its mode")?;
    }
    let (wanted, _) = reader.read(Handle::Named(from.0, from.1))?;
    for Attribute { name: attribute, value } in &wanted {
        Handle::Named(directory, name).set(attribute, value)?;
    }
    utimensat(directory, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).context(|| "set its times")?;
    Ok(found)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.try_into().unwrap_or_default(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
