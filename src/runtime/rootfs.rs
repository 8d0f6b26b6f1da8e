//! A look at the image before the engine works in it with the host's eyes.
//!
//! The engine makes device nodes and links below `rootfs/dev` by path names that it resolves on the host: in an
//! image where `/dev` is a symlink to `/etc`, it would delete and create files in the host's `/etc`. So whatever it
//! touches that way must be, in the image, an ordinary directory that was reached through no symlink, or nothing.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result, quote};

/// Directories that file systems of the kernel are mounted on, and in which the engine makes nodes and links.
const FIXED: [&str; 6] = ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/proc", "/sys"];

/// Links that the engine makes; `/dev/ptmx` it deletes first.
const LINKS: [&str; 5] = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/ptmx"];

/// Refuses an image that would lead the engine out of it.
///
/// # Errors
/// [`Kind::Invalid`] with the path in the image and what is there.
pub(super) fn check(rootfs: &Path, spec: &Spec) -> Result<()> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open root file system {}", quote(rootfs)))?;
    for path in plan_directories(spec) {
        check_directory(&root, rootfs, &path)?;
    }
    Ok(())
}

/// Makes the working directory of the first process if the image lacks it, as every runtime does.
///
/// One in or below a mount is the mount's to have.
///
/// # Errors
/// Those of mkdir; [`Kind::Invalid`] if it lies below what is no directory.
pub(super) fn make_working_directory(rootfs: &Path, spec: &Spec) -> Result<()> {
    let Some(cwd) = spec.process().as_ref().map(|process| normalize(process.cwd())) else { return Ok(()) };
    let mounted = |point: &Path| point != Path::new("/") && cwd.starts_with(point);
    if spec.mounts().iter().flatten().any(|mount| mounted(mount.destination())) {
        return Ok(());
    }
    let operation = || format!("make working directory {} in {}", quote(&cwd), quote(rootfs));
    let root = pathrs::Root::open(rootfs).map_err(|error| failure(&operation(), &error))?;
    // Symlinks lead where they lead in the image.
    if root.resolve(&cwd).is_ok() {
        return Ok(());
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    root.mkdir_all(&cwd, &mode).map(drop).map_err(|error| failure(&operation(), &error))
}

fn failure(operation: &str, error: &pathrs::error::Error) -> Error {
    Error::new(Kind::Invalid, operation, error.to_string())
}

/// The directories that must be plain, parents before children: the fixed ones, the mounts of kernel file systems,
/// and the parents of device nodes.
fn plan_directories(spec: &Spec) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = FIXED.iter().map(PathBuf::from).collect();
    for mount in spec.mounts().iter().flatten() {
        let kernel = matches!(
            mount.typ().as_deref(),
            Some("proc" | "sysfs" | "devpts" | "mqueue" | "cgroup" | "cgroup2" | "devtmpfs")
        );
        if kernel || mount.destination().starts_with("/dev") {
            paths.push(mount.destination().clone());
        }
    }
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    paths.extend(devices.filter_map(|device| device.path().parent().map(Path::to_owned)));
    paths.extend(LINKS.iter().filter_map(|link| Path::new(link).parent().map(Path::to_owned)));
    let mut paths: Vec<PathBuf> = paths.into_iter().map(|path| normalize(&path)).collect();
    paths.sort();
    paths.dedup();
    paths
}

/// `.`, `..` and doubled slashes resolved by name, as a path inside the image.
fn normalize(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn check_directory(root: &OwnedFd, rootfs: &Path, path: &Path) -> Result<()> {
    let Ok(relative) = path.strip_prefix("/") else { return Ok(()) };
    if relative.as_os_str().is_empty() {
        return Ok(());
    }
    let operation = || format!("check {} in the image at {}", quote(path), quote(rootfs));
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, relative, flags, Mode::empty(), resolve) {
        Ok(found) => {
            let kind = FileType::from_raw_mode(statat(&found, "", AtFlags::EMPTY_PATH).context(operation)?.st_mode);
            // A bind mount of a single file, such as a device or /etc/hosts, goes onto a file.
            if kind == FileType::Symlink { Err(refuse(&operation(), "a symlink")) } else { Ok(()) }
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(Errno::LOOP | Errno::XDEV) => Err(refuse(&operation(), "reached through a symlink")),
        // A kernel without openat2 (before 5.6): one look per component.
        Err(Errno::NOSYS) => check_each_component(root, relative).context(operation),
        Err(errno) => Err(errno).context(operation),
    }
}

fn check_each_component(root: &OwnedFd, relative: &Path) -> Result<()> {
    let mut prefix = PathBuf::new();
    for part in relative.components() {
        prefix.push(part);
        match statat(root, &prefix, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => {
                return Err(refuse(&format!("look at {}", quote(&prefix)), "a symlink"));
            }
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno).context(|| format!("look at {}", quote(&prefix))),
        }
    }
    Ok(())
}

fn refuse(operation: &str, what: &str) -> Error {
    Error::new(Kind::Invalid, operation, format!("it is {what}, which could lead out of the image"))
        .next("replace it by a directory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::template::{Privilege, starter};
    use std::os::unix::fs::symlink;

    #[test]
    fn a_symlink_anywhere_on_the_way_is_refused() {
        for (link, target) in [("dev", "/etc"), ("proc", "/etc"), ("sys", "tmp")] {
            let image = tempfile::tempdir().unwrap();
            std::fs::create_dir(image.path().join("tmp")).unwrap();
            symlink(target, image.path().join(link)).unwrap();
            let error = check(image.path(), &starter(Privilege::Root)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{error}");
            assert!(error.to_string().contains("symlink"), "{error}");
        }
        for link in ["dev/pts", "dev/shm", "dev/mqueue", "sys/fs"] {
            let image = tempfile::tempdir().unwrap();
            let path = image.path().join(link);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink("/tmp", &path).unwrap();
            assert!(check(image.path(), &starter(Privilege::Root)).is_err(), "{link}");
        }
    }

    #[test]
    fn plain_directories_and_missing_ones_are_fine() {
        let image = tempfile::tempdir().unwrap();
        check(image.path(), &starter(Privilege::Root)).unwrap();
        std::fs::create_dir_all(image.path().join("dev/pts")).unwrap();
        symlink("/run", image.path().join("var")).unwrap();
        check(image.path(), &starter(Privilege::Root)).unwrap();
    }

    #[test]
    fn a_working_directory_is_made_in_the_image_wherever_its_links_lead() {
        let image = tempfile::tempdir().unwrap();
        let make = |cwd: &str| {
            let mut spec = starter(Privilege::Root);
            spec.process_mut().as_mut().unwrap().set_cwd(cwd.into());
            make_working_directory(image.path(), &spec)
        };
        symlink("/real", image.path().join("link")).unwrap();
        std::fs::create_dir(image.path().join("real")).unwrap();
        make("/link/a/b").unwrap();
        assert!(image.path().join("real/a/b").is_dir());
        make("/proc/x").unwrap();
        assert!(!image.path().join("proc").exists(), "it is the mount's to have");
        std::fs::write(image.path().join("file"), "").unwrap();
        assert!(make("/file/x").is_err());
    }

    #[test]
    fn a_path_is_cleaned_by_name_before_it_is_looked_at() {
        assert_eq!(normalize(Path::new("/a/../dev/./pts//")), Path::new("/dev/pts"));
        assert_eq!(normalize(Path::new("../../x")), Path::new("/x"));
    }
}
