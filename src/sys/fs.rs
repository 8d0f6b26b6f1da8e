//! Files that appear whole or not at all, and the few questions asked about file systems.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{SealFlags, StatVfs};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::mount_table;

/// Prefix of every temporary file of ours: whoever finds one that nobody holds may remove it.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Whether the caller needs the change to survive a power cut, or only a crash of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// fsync the file and its directory before returning (about 1 ms on ext4).
    Durable,
    /// fsync the file only: after a power cut there is the new file or the old one, never an empty one.
    Whole,
    /// Leave it to the kernel: for what is rebuilt or read in the same boot only.
    Volatile,
}

/// Replaces `directory/name` by `content` in one step: a crash leaves the old file or the new one.
///
/// The temporary name is fixed per `name`, so callers hold a lock that makes them the only writer; what an
/// earlier crash left under it is overwritten.
///
/// # Errors
/// Those of open, write, fsync and rename; the old file is then untouched.
pub fn replace_file(directory: &Path, name: &str, content: &[u8], durability: Durability) -> Result<()> {
    let temporary = directory.join(format!("{TEMPORARY_PREFIX}{name}"));
    let target = directory.join(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        match durability {
            Durability::Durable | Durability::Whole => file.sync_data()?,
            Durability::Volatile => {}
        }
        fs::rename(&temporary, &target)
    };
    if let Err(error) = write() {
        // The write failed, and that is what is reported; a leftover is overwritten by the next attempt.
        let _ = fs::remove_file(&temporary);
        return Err(error).context(|| format!("write {}", quote(&target)));
    }
    if durability == Durability::Durable {
        sync_directory(directory)?;
    }
    Ok(())
}

/// Replaces a configuration file that others read and write too: a link is followed, owner and mode stay as they are; a
/// new file is readable by everybody.
///
/// # Errors
/// As [`replace_file`].
pub fn replace_configuration(path: &Path, content: &[u8]) -> Result<()> {
    let operation = || format!("write {}", quote(path));
    let (target, old) = match fs::canonicalize(path) {
        Ok(target) => (target.clone(), Some(fs::metadata(&target).context(operation)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error).context(operation),
    };
    let directory = target.parent().unwrap_or(Path::new("/"));
    // A name that no engine takes for a drop-in, should a crash leave it.
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!("{TEMPORARY_PREFIX}{name}~"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        if let Some(old) = &old {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        let mode = old.as_ref().map_or(0o644, |old| old.mode() & 0o7777);
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, &target)
    };
    if let Err(error) = write() {
        // The write failed, and that is what is reported.
        let _ = fs::remove_file(&temporary);
        return Err(error).context(operation);
    }
    sync_directory(directory)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Those of open and fsync.
pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|file| file.sync_all()).context(|| format!("sync directory {}", quote(directory)))
}

/// Writes back everything on the file system that holds `path` (syncfs(2)).
///
/// # Errors
/// Those of open and of syncfs, which reports write errors that happened since the last call.
pub fn sync_file_system(path: &Path) -> Result<()> {
    let operation = || format!("sync the file system of {}", quote(path));
    let file = File::open(path).context(operation)?;
    rustix::fs::syncfs(&file).context(operation)
}

/// Begins to write a file's content back, and returns before it is on disk. Every page is clean from then on, so that
/// the next write to it, also one through a mapping, shows in the file's times.
///
/// # Errors
/// Those of sync_file_range(2).
pub fn start_writeback(file: impl AsFd) -> Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: the descriptor is borrowed for the call, which takes numbers besides and reaches no memory of ours.
    let result = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context(|| "write it back") }
}

/// How much a file is expected to have at most.
const FIRST_READ: usize = 16 << 10;

/// Reads a whole file of at most `cap` bytes.
///
/// # Errors
/// [`Kind::NotFound`] if it is not there, [`Kind::Damaged`] if it is larger, else those of open and read.
pub fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>> {
    let operation = || format!("read {}", quote(path));
    let file = File::open(path).context(operation)?;
    // One call for nearly every file of ours, where growing from nothing would make nine.
    let mut content = Vec::with_capacity(FIRST_READ);
    file.take(cap + 1).read_to_end(&mut content).context(operation)?;
    if content.len() as u64 > cap {
        return Err(Error::new(Kind::Damaged, operation(), format!("larger than the {cap} bytes it may have")));
    }
    Ok(content)
}

/// How often a directory is emptied anew in which others still put something.
const REMOVALS: usize = 100;

/// Removes a directory and all below it. Others may be removing it as well: what is gone counts as removed, and what
/// somebody still put into it before he saw that goes with another look.
///
/// # Errors
/// Those of unlink and rmdir; that it is not there is none.
pub fn remove_tree(directory: &Path) -> Result<()> {
    let is_there = || fs::symlink_metadata(directory).is_ok();
    let mut looks = 1;
    loop {
        match fs::remove_dir_all(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_there() => return Ok(()),
            Err(error)
                if looks < REMOVALS
                    && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) =>
            {
                looks += 1;
            }
            Err(error) => return Err(error).context(|| format!("remove {}", quote(directory))),
        }
    }
}

/// A handle on a file or directory that can be named, but neither read nor written (O_PATH).
///
/// # Errors
/// Those of open(2).
pub fn open_path(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .context(|| format!("open {}", quote(path)))
}

/// The directory at which the mount that holds `path` is attached.
///
/// # Errors
/// Those of canonicalize(3) and of reading the mount table.
pub fn mount_point_of(path: &Path) -> Result<PathBuf> {
    let operation = || format!("find the mount of {}", quote(path));
    let path = fs::canonicalize(path).context(operation)?;
    let table = mount_table::read().context(operation)?;
    // Of equals the last is taken, which is the one that is seen.
    mount_table::parse(&table)
        .map(|mount| mount.point)
        .filter(|point| path.starts_with(point))
        .max_by_key(|point| point.as_os_str().len())
        .ok_or_else(|| Error::new(Kind::System, operation(), "it lies under no mount that is visible here"))
}

/// Makes the directory `to` look like the directory `from`: owner, mode, those extended attributes whose names
/// `wanted` accepts, and last the times.
///
/// # Errors
/// Those of reading one and changing the other.
pub fn copy_attributes(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let operation = || format!("copy the attributes of {}", quote(from));
    let metadata = fs::metadata(from).context(operation)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid())).context(operation)?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777)).context(operation)?;
    for name in xattr::list(from).context(operation)?.filter(|name| wanted(&name.to_string_lossy())) {
        if let Some(value) = xattr::get(from, &name).context(operation)? {
            xattr::set(to, &name, &value).context(operation)?;
        }
    }
    set_times(to, &metadata)
}

/// Gives a directory the times that were read before it was changed.
///
/// # Errors
/// Those of open and futimens.
pub fn set_times(directory: &Path, before: &fs::Metadata) -> Result<()> {
    let operation = || format!("set the times of {}", quote(directory));
    let times = fs::FileTimes::new()
        .set_accessed(before.accessed().context(operation)?)
        .set_modified(before.modified().context(operation)?);
    File::open(directory).and_then(|directory| directory.set_times(times)).context(operation)
}

/// Sixteen bytes from the kernel's random number generator.
///
/// # Errors
/// Those of getrandom(2), which can only fail before the kernel's pool is ready.
pub fn random_id() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let filled =
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context(|| "draw a random id")?;
    debug_assert_eq!(filled, bytes.len(), "getrandom gives up to 256 bytes whole");
    Ok(bytes)
}

/// Size and free space of the file system that holds `path`.
///
/// # Errors
/// Those of statvfs(3).
pub fn space(path: &Path) -> Result<StatVfs> {
    rustix::fs::statvfs(path).context(|| format!("ask for the free space at {}", quote(path)))
}

/// Bytes that the tree under `path` takes on disk; a file with several links inside it counts once.
///
/// # Errors
/// Those of readdir and lstat.
pub fn disk_usage(path: &Path) -> Result<u64> {
    let mut linked = std::collections::HashSet::new();
    let mut pending = vec![path.to_owned()];
    let mut bytes = 0;
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).context(|| format!("measure {}", quote(&path)))?;
        if metadata.is_dir() {
            for child in fs::read_dir(&path).context(|| format!("measure {}", quote(&path)))? {
                pending.push(child.context(|| format!("measure {}", quote(&path)))?.path());
            }
        } else if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        bytes += metadata.blocks() * 512;
    }
    Ok(bytes)
}

/// The name under which this process reaches what a descriptor of its own refers to: short, and the same file even
/// if its path changes.
#[must_use]
pub fn by_descriptor(descriptor: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

/// A file that exists only in memory, with this content; reachable by [`by_descriptor`] as long as it is open.
///
/// # Errors
/// Those of memfd_create(2) and write(2).
pub fn memory_file(name: &str, content: &[u8]) -> Result<File> {
    let operation = || format!("make '{name}' in memory");
    let descriptor = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).context(operation)?;
    let mut file = File::from(descriptor);
    file.write_all(content).and_then(|()| file.seek(SeekFrom::Start(0))).context(operation)?;
    Ok(file)
}

/// As [`memory_file`], and nobody can change it, its length, or that, any more.
///
/// # Errors
/// Those of memfd_create(2), write(2) and fcntl(F_ADD_SEALS).
pub fn sealed_file(name: &str, content: &[u8]) -> Result<File> {
    let operation = || format!("make '{name}' in memory");
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create(name, flags).context(operation)?);
    file.write_all(content).and_then(|()| file.seek(SeekFrom::Start(0))).context(operation)?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, all).context(operation)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        replace_file(directory.path(), "a.json", b"one", Durability::Durable).unwrap();
        replace_file(directory.path(), "a.json", b"two", Durability::Volatile).unwrap();
        assert_eq!(fs::read(directory.path().join("a.json")).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_configuration_file_keeps_its_mode_and_the_link_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let (link, file) = (directory.path().join("link"), directory.path().join("file"));
        let mode = || fs::metadata(&file).unwrap().mode() & 0o777;
        replace_configuration(&file, b"new").unwrap();
        assert_eq!(mode(), 0o644);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        replace_configuration(&link, b"newer").unwrap();
        assert_eq!((fs::read(&file).unwrap().as_slice(), mode()), (&b"newer"[..], 0o640));
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_over_its_cap_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("big");
        fs::write(&path, [0; 11]).unwrap();
        assert_eq!(read_capped(&path, 10).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(read_capped(&path, 11).unwrap().len(), 11);
    }

    #[test]
    fn the_mount_of_proc_is_proc() {
        assert_eq!(mount_point_of(Path::new("/proc/self/fd")).unwrap(), Path::new("/proc"));
    }

    #[test]
    fn hard_links_count_once() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), vec![1; 100_000]).unwrap();
        let once = disk_usage(directory.path()).unwrap();
        fs::hard_link(directory.path().join("a"), directory.path().join("b")).unwrap();
        assert_eq!(disk_usage(directory.path()).unwrap(), once);
    }
}
