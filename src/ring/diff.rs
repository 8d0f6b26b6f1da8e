//! What is different between two states: only what their differing layers touch is looked at.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Locked;
use super::selector::{Selected, Selector};
use super::view::View;
use crate::error::{Context, Result, quote};
use crate::ids::LayerId;
use crate::sys::xattr::OverlayClass;

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Only the second state has it.
    Added,
    /// Both have it, with other content, type, owner, mode, attributes or (of files) time.
    Modified,
    /// Only the first state has it.
    Deleted,
}

impl Difference {
    /// The letter that stands before the path.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Modified => 'M',
            Self::Deleted => 'D',
        }
    }
}

/// A path, absolute inside the container, that differs.
pub type Changed = (Difference, PathBuf);

/// A state: a ring that nobody changes meanwhile, and which of its entries.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// The ring.
    pub ring: &'a Locked,
    /// The entry.
    pub selector: &'a Selector,
}

/// Compares two states, of one ring or of two.
///
/// # Errors
/// Those of opening the views and of reading them.
pub fn diff(first: State<'_>, second: State<'_>) -> Result<Vec<Changed>> {
    let comparison = Comparison {
        first: first.ring.view(first.selector)?,
        second: second.ring.view(second.selector)?,
        class: first.ring.ring().store().class(),
        content: Content::Read,
        enough: usize::MAX,
    };
    let mut found = Vec::new();
    if first.base()? == second.base()? {
        comparison.directory(Path::new(""), &differing_layers(first, second)?, &mut found)?;
    } else {
        comparison.everything(Path::new(""), &mut found)?;
    }
    Ok(found)
}

/// Whether what a run left differs from a snapshot of it. `layers` are what not both of them stand on: the snapshot's and the
/// run's upper.
///
/// The content of a file is read only where its time says nothing: the kernel notes changes of the run's file later than
/// when its copy was made, so one that is older and has the same size, owner, mode, attributes and time is the same.
pub(super) fn differs_from_snapshot(
    snapshot: View,
    run: View,
    class: OverlayClass,
    layers: &[PathBuf],
) -> Result<bool> {
    let comparison = Comparison { first: snapshot, second: run, class, content: Content::ByTimes, enough: 1 };
    let mut found = Vec::new();
    comparison.directory(Path::new(""), layers, &mut found)?;
    Ok(!found.is_empty())
}

impl State<'_> {
    fn layers(&self) -> Result<Vec<LayerId>> {
        Ok(match self.ring.state.select_view(self.selector)? {
            Selected::Base => Vec::new(),
            Selected::Entry(entry) => entry.layers.clone(),
        })
    }

    /// What the state stands on.
    fn base(&self) -> Result<Option<&str>> {
        Ok(match self.ring.state.select_view(self.selector)? {
            Selected::Base => self.ring.state.newest(),
            Selected::Entry(entry) => Some(entry),
        }
        .map(|entry| entry.base.as_str()))
    }
}

/// The directories of the layers that not both states stand on.
fn differing_layers(first: State<'_>, second: State<'_>) -> Result<Vec<PathBuf>> {
    let (a, b) = (first.layers()?, second.layers()?);
    let shared = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let layers = first.ring.ring().store().layers();
    Ok(a[shared..].iter().chain(&b[shared..]).map(|id| layers.content(id)).collect())
}

struct Comparison {
    first: View,
    second: View,
    class: OverlayClass,
    content: Content,
    /// So many differences say what there is to know.
    enough: usize,
}

/// How files whose facts are the same are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Byte by byte.
    Read,
    /// Only if the second was changed after the first, its copy, was made.
    ByTimes,
}

impl Comparison {
    /// Compares below `path`; `layers` are the layers that have a directory there.
    fn directory(&self, path: &Path, layers: &[PathBuf], found: &mut Vec<Changed>) -> Result<()> {
        let mut names = BTreeSet::new();
        let mut everything = false;
        for layer in layers {
            let directory = layer.join(path);
            everything |= self.class.is_opaque(&directory)?;
            names.extend(list(&directory)?);
        }
        if everything {
            names.extend(list(&self.first.root().join(path))?);
            names.extend(list(&self.second.root().join(path))?);
        }
        for name in names {
            if found.len() >= self.enough {
                return Ok(());
            }
            let path = path.join(name);
            let below: Vec<_> = layers.iter().filter(|layer| is_directory(&layer.join(&path))).cloned().collect();
            self.path(&path, &below, everything, found)?;
        }
        Ok(())
    }

    /// Compares below `path` whatever the layers say.
    fn everything(&self, path: &Path, found: &mut Vec<Changed>) -> Result<()> {
        self.directory(path, &[self.first.root(), self.second.root()], found)
    }

    fn path(&self, path: &Path, layers: &[PathBuf], everything: bool, found: &mut Vec<Changed>) -> Result<()> {
        let (a, b) = (self.first.root().join(path), self.second.root().join(path));
        match (stat(&a)?, stat(&b)?) {
            (None, None) => Ok(()),
            (None, Some(new)) => collect(&self.second.root(), path, &new, Difference::Added, found),
            (Some(old), None) => collect(&self.first.root(), path, &old, Difference::Deleted, found),
            (Some(old), Some(new)) => {
                if self.differs((&a, &old), (&b, &new))? {
                    found.push((Difference::Modified, Path::new("/").join(path)));
                }
                match (old.is_dir(), new.is_dir()) {
                    (true, true) if everything => self.everything(path, found),
                    (true, true) => self.directory(path, layers, found),
                    (true, false) => collect_below(&self.first.root(), path, Difference::Deleted, found),
                    (false, true) => collect_below(&self.second.root(), path, Difference::Added, found),
                    (false, false) => Ok(()),
                }
            }
        }
    }
}

impl Comparison {
    fn differs(&self, (a, old): (&Path, &Metadata), (b, new): (&Path, &Metadata)) -> Result<bool> {
        let facts = |metadata: &Metadata| (metadata.mode(), metadata.uid(), metadata.gid(), metadata.rdev());
        if facts(old) != facts(new) || attributes(a)? != attributes(b)? {
            return Ok(true);
        }
        if old.is_dir() {
            return Ok(false);
        }
        let times = |metadata: &Metadata| (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        if times(old) != times(new) {
            return Ok(true);
        }
        if old.file_type().is_symlink() {
            let read = |path: &Path| fs::read_link(path).context(|| format!("read {}", quote(path)));
            return Ok(read(a)? != read(b)?);
        }
        if old.file_type().is_fifo() || !old.is_file() {
            return Ok(false);
        }
        let changed = |metadata: &Metadata| (metadata.ctime(), metadata.ctime_nsec());
        match self.content {
            Content::ByTimes if changed(new) < changed(old) => Ok(false),
            Content::ByTimes | Content::Read => content_differs(a, b),
        }
    }
}

fn collect(root: &Path, path: &Path, metadata: &Metadata, kind: Difference, found: &mut Vec<Changed>) -> Result<()> {
    found.push((kind, Path::new("/").join(path)));
    if metadata.is_dir() { collect_below(root, path, kind, found) } else { Ok(()) }
}

fn collect_below(root: &Path, path: &Path, kind: Difference, found: &mut Vec<Changed>) -> Result<()> {
    for name in list(&root.join(path))? {
        let child = path.join(name);
        if let Some(metadata) = stat(&root.join(&child))? {
            collect(root, &child, &metadata, kind, found)?;
        }
    }
    Ok(())
}

fn content_differs(a: &Path, b: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).context(|| format!("open {}", quote(path)));
    let (mut first, mut second) = (open(a)?, open(b)?);
    let (mut left, mut right) = (vec![0; 128 * 1024], vec![0; 128 * 1024]);
    loop {
        let length = first.read(&mut left).context(|| format!("read {}", quote(a)))?;
        if length == 0 {
            return Ok(false);
        }
        match second.read_exact(&mut right[..length]) {
            Ok(()) if left[..length] == right[..length] => {}
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(true),
            Err(error) => return Err(error).context(|| format!("read {}", quote(b))),
        }
    }
}

fn attributes(path: &Path) -> Result<Vec<(OsString, Option<Vec<u8>>)>> {
    let operation = || format!("read the attributes of {}", quote(path));
    let mut found = Vec::new();
    for name in xattr::list(path).context(operation)? {
        if name.to_string_lossy().contains(".overlay.") {
            continue;
        }
        let value = xattr::get(path, &name).context(operation)?;
        found.push((name, value));
    }
    found.sort();
    Ok(found)
}

fn stat(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.raw_os_error(), Some(2 | 20)) => Ok(None),
        Err(error) => Err(error).context(|| format!("look at {}", quote(path))),
    }
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn list(directory: &Path) -> Result<Vec<OsString>> {
    if !is_directory(directory) {
        return Ok(Vec::new());
    }
    let operation = || format!("list {}", quote(directory));
    fs::read_dir(directory).context(operation)?.map(|entry| Ok(entry.context(operation)?.file_name())).collect()
}
