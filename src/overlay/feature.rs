//! What this kernel's overlay can be asked for, found by asking.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::error::{Context, Result};

/// The features that regen uses and this kernel's overlay lacks, by the names of their parameters. Nothing is mounted.
///
/// # Errors
/// Those of fsopen(2): EPERM without privileges, ENODEV if the kernel has no overlay at all.
pub fn missing_features() -> Result<Vec<&'static str>> {
    let words =
        [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "auto"), ("lowerdir+", "/")];
    let open = || fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context(|| "ask for an overlay");
    let mut missing = Vec::new();
    for (key, value) in words {
        // Each in a context of its own: a refusal must not say anything about the next.
        if fsconfig_set_string(open()?.as_fd(), key, value) == Err(Errno::INVAL) {
            missing.push(key);
        }
    }
    if fsconfig_set_flag(open()?.as_fd(), "userxattr") == Err(Errno::INVAL) {
        missing.push("userxattr");
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_a_feature_that_no_kernel_has_would_be_missed() {
        // The machine that tests run on mounts rings, so what they need is there.
        let missing = missing_features().unwrap();
        assert!(!missing.contains(&"redirect_dir") && !missing.contains(&"userxattr"), "{missing:?}");
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        assert_eq!(fsconfig_set_string(context.as_fd(), "no-such-parameter", "x"), Err(Errno::INVAL));
    }
}
