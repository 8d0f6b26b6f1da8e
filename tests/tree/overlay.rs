//! A real overlay that no mount table knows: it is gone with its descriptor.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use regen::sys::xattr::OverlayClass;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

pub struct Overlay(OwnedFd);

impl Overlay {
    /// Mounts `upper` (with a work directory) over `lowers`, uppermost first.
    pub fn writable(upper: &Path, work: &Path, lowers: &[&Path], class: OverlayClass) -> Self {
        Self::mount(Some((upper, work)), lowers, class)
    }

    /// Mounts at least two layers, uppermost first.
    pub fn read_only(lowers: &[&Path]) -> Self {
        Self::mount(None, lowers, OverlayClass::Trusted)
    }

    fn mount(upper: Option<(&Path, &Path)>, lowers: &[&Path], class: OverlayClass) -> Self {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let set = |key: &str, value: &Path| fsconfig_set_string(fs.as_fd(), key, value).unwrap();
        // Kernels before 6.7 take them in one parameter only, which holds 255 bytes.
        let joined = lowers.iter().map(|lower| lower.to_str().unwrap()).collect::<Vec<_>>().join(":");
        if joined.len() < 256 {
            set("lowerdir", Path::new(&joined));
        } else {
            lowers.iter().for_each(|lower| set("lowerdir+", lower));
        }
        if let Some((upper, work)) = upper {
            set("upperdir", upper);
            set("workdir", work);
            for (key, value) in [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")] {
                fsconfig_set_string(fs.as_fd(), key, value).unwrap();
            }
        }
        if class == OverlayClass::User {
            fsconfig_set_flag(fs.as_fd(), "userxattr").unwrap();
        }
        fsconfig_create(fs.as_fd()).unwrap();
        Self(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap())
    }

    /// A path to its root, for this process only.
    pub fn root(&self) -> PathBuf {
        format!("/proc/self/fd/{}/.", self.0.as_raw_fd()).into()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // What was written through the mount is in the upper before anybody reads it there.
        rustix::fs::syncfs(File::open(self.root()).unwrap()).unwrap();
    }
}
