//! The places of mounts that somebody else makes.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::root::{Links, Make, Root};
use crate::error::{Context, Result, quote};

/// Makes the places of a container's mounts, and its working directory, where its root file system lacks them: what
/// [`super::Plan::mount`] does on its way, for processes that are restored together with their mounts. Where the root cannot
/// be written, nothing is made.
///
/// # Errors
/// The place, and what the kernel has against it.
pub fn make_places(rootfs: &Path, spec: &Spec, bundle: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = Root(openat(CWD, rootfs, flags, Mode::empty()).context(|| format!("open {}", quote(rootfs)))?);
    let before = rustix::process::umask(Mode::empty());
    let made = plan(spec, bundle).into_iter().try_for_each(|(path, source)| {
        let make = if source.is_some_and(|source| !source.is_dir()) { Make::File } else { Make::Directory };
        match root.make(&path, make, Links::Follow) {
            Err(error) if error.errno() == Some(rustix::io::Errno::ROFS.raw_os_error()) => Ok(()),
            made => made.map(drop),
        }
    });
    rustix::process::umask(before);
    made
}

/// The places in the root itself, each with the source of a bind mount; what lies in another mount comes with that.
fn plan(spec: &Spec, bundle: &Path) -> Vec<(PathBuf, Option<PathBuf>)> {
    let mounts: Vec<&Mount> = spec.mounts().iter().flatten().collect();
    let covered = |path: &Path| {
        let above = |other: &Path| other != Path::new("/") && other != path && path.starts_with(other);
        mounts.iter().any(|mount| above(mount.destination()))
    };
    let bound = |mount: &Mount| {
        let option = |word: &String| word == "bind" || word == "rbind";
        let bind = mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(option);
        mount.source().as_ref().filter(|_| bind).map(|source| bundle.join(source))
    };
    let places = mounts.iter().map(|mount| (mount.destination().clone(), bound(mount)));
    let directory = spec.process().as_ref().map(|process| (process.cwd().clone(), None));
    places.chain(directory).filter(|(path, _)| !covered(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_value(serde_json::json!({"ociVersion": "1.2.0",
        "process": {"cwd": "/srv/app", "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            {"destination": "/function", "type": "none", "source": "f", "options": ["rbind"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts"},
        ]}))
        .unwrap()
    }

    #[test]
    fn places_are_made_in_the_root_and_not_where_another_mount_covers_them() {
        let base = tempfile::tempdir().unwrap();
        let (rootfs, bundle) = (base.path().join("r"), base.path().join("b"));
        std::fs::create_dir(&rootfs).unwrap();
        std::fs::create_dir_all(bundle.join("f")).unwrap();
        make_places(&rootfs, &spec(), &bundle).unwrap();
        for directory in ["dev", "function", "srv/app"] {
            assert!(rootfs.join(directory).is_dir(), "{directory}");
        }
        assert!(rootfs.join("etc/hosts").is_file() && !rootfs.join("dev/shm").exists());
        // What is there stays.
        std::fs::write(rootfs.join("etc/hosts"), "x").unwrap();
        make_places(&rootfs, &spec(), &bundle).unwrap();
        assert_eq!(std::fs::read_to_string(rootfs.join("etc/hosts")).unwrap(), "x");
    }

    #[test]
    fn no_symlink_of_the_image_leads_out() {
        let base = tempfile::tempdir().unwrap();
        let rootfs = base.path().join("r");
        std::fs::create_dir(&rootfs).unwrap();
        let outside = base.path().join("outside");
        std::os::unix::fs::symlink(&outside, rootfs.join("srv")).unwrap();
        make_places(&rootfs, &spec(), base.path()).unwrap();
        assert!(!outside.exists());
    }
}
