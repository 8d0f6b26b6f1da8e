//! Standard streams that are the null device.

use std::os::fd::AsFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev, openat};

use crate::error::Result;
use crate::sys::clone::replace_stream;

/// Puts the container's own null device in the place of standard streams that are the host's, as runc does: the
/// program can open them again by their path, and criu finds them inside. The calling process sees the container's root
/// already. Where the container's `/dev/null` is something else, or may not be opened, the streams stay.
///
/// # Errors
/// Those of dup2(2).
pub fn reopen_null() -> Result<()> {
    // What else an image has there is not opened, which may block or set something off.
    let open = |flags| openat(CWD, "/dev/null", flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok();
    let own = |flags| open(flags).filter(is_null);
    let Some(null) = own(OFlags::PATH).and_then(|_| own(OFlags::RDWR | OFlags::NOCTTY)) else {
        return Ok(());
    };
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for (stream, number) in streams.into_iter().zip(0..) {
        if is_null(&stream) {
            replace_stream(null.as_fd(), number)?;
        }
    }
    Ok(())
}

fn is_null(file: &impl AsFd) -> bool {
    fstat(file).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice && found.st_rdev == makedev(1, 3)
    })
}
