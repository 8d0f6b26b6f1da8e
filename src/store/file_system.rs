//! Which file systems can hold an overlay's upper.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use crate::error::{Context, Error, Kind, Result, quote};

/// Where regen looks for a file system that can, when the asked one cannot.
const CANDIDATES: [&str; 6] = ["/var/lib", "/var/tmp", "/srv", "/home", "/opt", "/tmp"];

/// The magic numbers of statfs(2) for what the kernel refuses as an upper, or what loses its attributes.
fn refused(magic: u64) -> Option<&'static str> {
    match magic {
        0x794c_7630 => Some("overlay"),
        0x6969 => Some("nfs"),
        0x0102_1997 => Some("9p"),
        0x6573_5546 => Some("fuse"),
        0x4d44 => Some("vfat"),
        0x2011_bab0 => Some("exfat"),
        0xff53_4d42 | 0xfe53_4d42 => Some("cifs"),
        0x7371_7368 => Some("squashfs"),
        _ => None,
    }
}

/// Refuses a store, which need not be there yet, on a file system that cannot hold uppers, and says which directory
/// could.
///
/// # Errors
/// [`Kind::Unsupported`].
pub fn check(store: &Path) -> Result<()> {
    let Some(name) = kind_of(nearest(store))? else { return Ok(()) };
    let cause = format!("it lies on {name}, on which the kernel makes no writable overlay");
    let error = Error::new(Kind::Unsupported, format!("open store {}", quote(store)), cause);
    Err(match suggestion() {
        Some(directory) => error.next(format!("use '--store {}'", directory.join("regen").display())),
        None => error.next("use '--store DIR' with DIR on ext4, xfs, btrfs or tmpfs"),
    })
}

/// The lowest directory on the way to `path` that is there.
#[must_use]
pub fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."))
}

/// The name of the file system under `path` if it is one that cannot hold uppers.
fn kind_of(path: &Path) -> Result<Option<&'static str>> {
    let found = statfs(path).context(|| format!("ask for the file system of {}", quote(path)))?;
    Ok(refused(u64::try_from(found.f_type).unwrap_or_default()))
}

fn suggestion() -> Option<PathBuf> {
    CANDIDATES.iter().map(PathBuf::from).find(|directory| {
        fs::metadata(directory).is_ok_and(|metadata| metadata.is_dir())
            && rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
            && kind_of(directory).is_ok_and(|kind| kind.is_none())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_is_refused_and_ext4_is_not() {
        assert_eq!(refused(0x794c_7630), Some("overlay"));
        assert_eq!(refused(0xef53), None);
    }

    #[test]
    fn a_store_that_is_not_there_yet_will_lie_where_its_parent_does() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&directory.path().join("a/b")), directory.path());
        assert_eq!(nearest(Path::new("no-such-directory/store")), Path::new("."));
    }
}
