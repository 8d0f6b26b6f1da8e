//! What the container sees but may not read, or may not write.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, makedev, statat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::file_system::{clone_tree, open_source, tmpfs};
use super::mount::attach;
use super::option::Source;
use super::root::{Links, Root, file_type};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::mount::{Depth, set_attributes};

/// A mount from which as many copies can be had as are needed.
#[derive(Debug)]
struct Stamp {
    mount: OwnedFd,
    /// Kernels before 6.15 copy attached mounts only, so the first use is of the mount itself.
    attached: bool,
}

impl Stamp {
    fn put(&mut self, place: &OwnedFd) -> rustix::io::Result<()> {
        if self.attached {
            return attach(clone_tree(&self.mount, Depth::One)?, place);
        }
        attach(&self.mount, place)?;
        self.attached = true;
        Ok(())
    }
}

/// The null device, known by its number and not by its name: an image's own /dev/null may be a symlink to what a
/// masked path was to hide, or to a file of the host's /proc.
#[derive(Debug)]
pub(super) struct Null(Stamp);

impl Null {
    /// The container's own, which was made by us; where it has none, the host's. The container's is better, because
    /// whoever may change the mode of a masked path changes the mode of the device.
    ///
    /// # Errors
    /// If neither is the null device.
    pub(super) fn find(root: &Root) -> Result<Self> {
        if let Ok(own) = root.open(Path::new("/dev/null"), Links::Refuse)
            && is_null(&own)?
        {
            return Ok(Self(Stamp { mount: own, attached: true }));
        }
        let host = open_source(Path::new("/dev/null"), Depth::One, Source::NoFollow)?;
        if is_null(&host)? {
            return Ok(Self(Stamp { mount: host, attached: false }));
        }
        let operation = "look for the null device to mask paths with";
        Err(Error::new(Kind::Invalid, operation, "neither the container's /dev/null nor the host's is one"))
    }
}

fn is_null(file: &OwnedFd) -> Result<bool> {
    let found = statat(file, "", AtFlags::EMPTY_PATH).context(|| "look at '/dev/null'")?;
    let kind = FileType::from_raw_mode(found.st_mode);
    Ok(kind == FileType::CharacterDevice && found.st_rdev == makedev(1, 3))
}

/// Hides files behind the null device and directories behind an empty one. What is not there needs no hiding.
///
/// # Errors
/// The path, and what the kernel has against the mount.
pub(super) fn mask(root: &Root, paths: &[PathBuf], null: Null) -> Result<()> {
    let Null(mut null) = null;
    let mut empty: Option<Stamp> = None;
    for path in paths {
        let operation = || format!("mask {}", quote(path));
        let Some(place) = find(root, path).context(operation)? else { continue };
        if file_type(&place).context(operation)? == FileType::Directory {
            let stamp = match &mut empty {
                Some(stamp) => stamp,
                None => empty.insert(Stamp { mount: empty_directory().context(operation)?, attached: false }),
            };
            stamp.put(&place).context(operation)?;
        } else {
            null.put(&place).context(operation)?;
        }
    }
    Ok(())
}

/// A directory in which nobody can make anything, for a place that is to show none of what is below.
pub(super) fn empty_directory() -> rustix::io::Result<OwnedFd> {
    let attributes = [
        MountAttrFlags::MOUNT_ATTR_RDONLY,
        MountAttrFlags::MOUNT_ATTR_NOSUID,
        MountAttrFlags::MOUNT_ATTR_NODEV,
        MountAttrFlags::MOUNT_ATTR_NOEXEC,
    ];
    let attributes = attributes.into_iter().fold(MountAttrFlags::empty(), |all, one| all | one);
    tmpfs(&[("nr_blocks", "1"), ("nr_inodes", "1"), ("mode", "555")], attributes)
}

/// Makes paths read-only, whatever is mounted below them staying as it is.
///
/// # Errors
/// The path, and what the kernel has against the mount.
pub(super) fn make_read_only(root: &Root, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let operation = || format!("make {} read-only", quote(path));
        let Some(place) = find(root, path).context(operation)? else { continue };
        let tree = clone_tree(&place, Depth::All).context(operation)?;
        set_attributes(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty(), Depth::One)
            .context(operation)?;
        attach(&tree, &place).context(operation)?;
    }
    Ok(())
}

/// The path, or None if there is nothing: not there, or where nobody in the container can come.
fn find(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    match root.open(path, Links::Follow) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno).context(|| "open it"),
    }
}
