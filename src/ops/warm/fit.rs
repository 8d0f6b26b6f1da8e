//! What a container has to be so that a clone can be in it: it has the files that the loaded program maps.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::keeper::Keeper;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::process::Process;
use crate::template::message::{Answer, Fits, Mapped, Stage};

/// Looks at what a loaded program maps.
///
/// # Errors
/// Those of reading /proc.
pub(super) fn look(process: &Process) -> Result<Fits> {
    let operation = || "look at what the template's program maps";
    let maps = std::fs::read(format!("/proc/{}/maps", process.pid())).context(operation)?;
    let root = PathBuf::from(format!("/proc/{}/root", process.pid()));
    let mapped = parse(&maps).into_iter().filter_map(|path| measure(&root, path)).collect();
    Ok(Fits { arch: std::env::consts::ARCH.to_owned(), mapped })
}

/// A file that is not there under its name belongs to the program alone: a copy has it.
fn measure(root: &Path, path: PathBuf) -> Option<Mapped> {
    let inside = root.join(path.strip_prefix("/").ok()?);
    let metadata = std::fs::symlink_metadata(inside).ok().filter(std::fs::Metadata::is_file)?;
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or_default();
    Some(Mapped { path, size: metadata.len(), modified: (metadata.mtime(), nanoseconds) })
}

/// The files that `/proc/PID/maps` names, each once.
fn parse(maps: &[u8]) -> BTreeSet<PathBuf> {
    let lines = maps.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let named = lines.filter_map(|line| line.splitn(6, ' ').nth(5));
    let paths = named.map(str::trim_start).filter(|path| path.starts_with('/') && !path.ends_with(" (deleted)"));
    paths.map(PathBuf::from).collect()
}

impl Keeper {
    /// The answer to whoever asks.
    pub(super) fn fits(&self) -> Answer {
        match (&self.loaded, &self.held) {
            (Some(loaded), Some(_)) => Answer::Fits(Box::new(loaded.fits.clone())),
            (Some(_) | None, _) => Answer::Failed { error: self.unavailable(), stage: Stage::Before },
        }
    }

    /// Why there are no clones.
    pub(super) fn unavailable(&self) -> Error {
        let operation = format!("clone template '{}'", self.order.definition);
        match &self.reason {
            Some(reason) => reason.clone().during(operation),
            None => Error::new(Kind::State, operation, "it is about to end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_are_named_once() {
        let maps = b"559f-55a0 r--p 00000000 fe:00 1234                       /usr/bin/python3.11\n\
            55a0-55b0 r-xp 00001000 fe:00 1234                       /usr/bin/python3.11\n\
            7f00-7f01 rw-p 00000000 00:00 0 \n\
            7f02-7f03 r--p 00000000 00:01 77                         /memfd:x (deleted)\n\
            7f04-7f05 r--p 00000000 fe:00 99                         /usr/lib/a b.so\n\
            7ffe-7fff r-xp 00000000 00:00 0                          [vdso]\n";
        let found: Vec<_> = parse(maps).into_iter().collect();
        assert_eq!(found, [Path::new("/usr/bin/python3.11"), Path::new("/usr/lib/a b.so")]);
    }

    #[test]
    fn what_this_process_maps_is_found_with_its_size() {
        let own = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap().unwrap();
        let fits = look(&own).unwrap();
        let program = std::env::current_exe().unwrap();
        let mapped = fits.mapped.iter().find(|mapped| mapped.path == program).unwrap();
        assert_eq!(mapped.size, std::fs::metadata(&program).unwrap().len());
    }
}
