//! Whether a layer holds anything that a program changed.
//!
//! Every name in an upper is a change, with one exception: a directory of the layers below appears in the upper as
//! soon as something in it does. The kernel marks such a copy with its `origin` attribute (empty where the lower
//! file system has no file handles); a directory that a program made has none. A copy is a change only if its mode,
//! owner or attributes differ from what lies below; its times follow from what changed inside.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, fstat, openat};
use rustix::io::Errno;

use super::attribute::{Attribute, Handle, Reader};
use super::name;
use super::trail::{self, DIRECTORY, Trail, open_beneath};
use crate::error::{Context, Result, quote};
use crate::sys::xattr::{OverlayClass, path_at};

/// Says of a path (relative to the layer) and its metadata that its presence is no change.
pub type Ignore<'a> = dyn Fn(&Path, &Metadata) -> bool + 'a;

/// Whether an upper holds anything that was put there by a program and not by the runtime.
///
/// `ignore` is asked of every path, with directories before what is in them; what lies in an ignored directory is
/// asked for itself. Without layers below, a change of mode, owner or attributes of a directory that has no other
/// change in it is not seen: [`has_changes_over`] sees it.
///
/// # Errors
/// Those of reading the layer.
pub fn has_changes(layer: &Path, class: OverlayClass, ignore: &Ignore<'_>) -> Result<bool> {
    has_changes_over(layer, class, &[], ignore)
}

/// Like [`has_changes`], and compares directories with those of `lowers`, uppermost first; the roots too.
///
/// # Errors
/// Those of reading the layers.
pub fn has_changes_over(layer: &Path, class: OverlayClass, lowers: &[&Path], ignore: &Ignore<'_>) -> Result<bool> {
    let open =
        |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty()).context(|| format!("open layer {}", quote(path)));
    let operation = || format!("look for changes in layer {}", quote(layer));
    let lowers = lowers.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    let trail = Trail::new(open(layer)?)?;
    let mut search = Search { trail, path: Vec::new(), reader: Reader::new(class), lowers };
    search.run(ignore).map_err(|error| error.during(format!("read {}", search.quoted()))).context(operation)
}

struct Search {
    trail: Trail,
    path: Vec<u8>,
    reader: Reader,
    lowers: Vec<OwnedFd>,
}

impl Search {
    fn run(&mut self, ignore: &Ignore<'_>) -> Result<bool> {
        if !self.lowers.is_empty() && self.differs()? {
            return Ok(true);
        }
        let mut levels = vec![(0, trail::names(self.trail.current())?.into_iter())];
        while let Some((before, names)) = levels.last_mut() {
            let Some(name) = names.next() else {
                self.path.truncate(*before);
                self.trail.ascend()?;
                levels.pop();
                continue;
            };
            let before = self.path.len();
            name::push(&mut self.path, &name);
            let metadata = std::fs::symlink_metadata(OsStr::from_bytes(&path_at(self.trail.current(), &name)))
                .context(|| "look at it")?;
            let is_directory = metadata.is_dir();
            let is_change = if is_directory { self.enter(&name)? } else { true };
            if is_change && !ignore(Path::new(OsStr::from_bytes(&self.path)), &metadata) {
                return Ok(true);
            }
            match is_directory {
                true => levels.push((before, trail::names(self.trail.current())?.into_iter())),
                false => self.path.truncate(before),
            }
        }
        Ok(false)
    }

    /// Steps into a directory; whether its presence is a change.
    fn enter(&mut self, name: &[u8]) -> Result<bool> {
        let child = openat(self.trail.current(), name, DIRECTORY, Mode::empty()).context(|| "open it")?;
        let stat = fstat(&child).context(|| "look at it")?;
        self.trail.descend(child, &stat);
        let (_, notes) = self.reader.read(Handle::Open(self.trail.current()))?;
        Ok(notes.opaque || !notes.origin || self.differs()?)
    }

    /// Whether the current directory is another than the uppermost one below it. Without layers below it is not.
    fn differs(&mut self) -> Result<bool> {
        let here = self.trail.current().try_clone_to_owned().context(|| "open it")?;
        for index in 0..self.lowers.len() {
            let below = match open_beneath(self.lowers[index].as_fd(), &self.path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                result => result.context(|| "open it in the layer below")?,
            };
            return Ok(self.facts(&here)? != self.facts(&below)?);
        }
        Ok(!self.lowers.is_empty())
    }

    fn facts(&mut self, directory: &OwnedFd) -> Result<(u32, u32, u32, Vec<Attribute>)> {
        let stat = fstat(directory).context(|| "look at it")?;
        let (attributes, _) = self.reader.read(Handle::Open(directory.as_fd()))?;
        Ok((stat.st_mode, stat.st_uid, stat.st_gid, attributes))
    }

    fn quoted(&self) -> String {
        quote(Path::new(OsStr::from_bytes(&self.path)))
    }
}
