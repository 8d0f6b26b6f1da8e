//! Where an export goes to. Nothing of it can be seen before it is whole: blobs come first, and what names them last.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::Path;

use crate::distribution::{Blob, Repository, Trust};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Digest;
use crate::image::layout::{Layout, digest_of};
use crate::image::manifest::{Descriptor, Index, MANIFEST_TYPE};
use crate::image::reference::ImageSource;
use crate::image::tarball::Tarball;
use crate::image::write::image_entry;
use crate::ops::origin::copy_verified;
use crate::ops::transfer::{Location, send_blob};
use crate::store::{Transfers, make_directory};
use crate::sys::fs::TEMPORARY_PREFIX;
use crate::sys::lock::{Lock, Sharing};

/// Takes blobs and, at the end, a manifest.
#[derive(Debug)]
pub(super) enum Sink {
    Layout(Layout),
    Archive(Box<Tarball>),
    /// With where uploads are noted.
    Registry(Box<Repository>, Transfers),
}

impl Sink {
    /// Opens the place, or makes it if it is a directory or a file that is not there.
    pub(super) fn open(to: &Location, trust: Trust, transfers: Transfers) -> Result<Self> {
        match to {
            Location::Registry(reference) => {
                Ok(Self::Registry(Box::new(Repository::open(reference, trust)?), transfers))
            }
            Location::Image(ImageSource::Archive { file, .. }) => Ok(Self::Archive(Box::new(Tarball::create(file)?))),
            Location::Image(ImageSource::Layout { directory, .. }) => open_layout(directory).map(Self::Layout),
        }
    }

    /// Whether a blob is there already.
    pub(super) fn has(&mut self, blob: &Blob) -> Result<bool> {
        match self {
            Self::Layout(layout) => Ok(layout.open_blob(&Descriptor::new("", &blob.digest, blob.size)).is_ok()),
            Self::Archive(tarball) => Ok(tarball.has(&blob.digest)),
            Self::Registry(repository, _) => repository.has_blob(&blob.digest),
        }
    }

    /// Takes a blob; `tell` is told how many bytes are over.
    pub(super) fn put(&mut self, blob: &Blob, file: &File, tell: &mut dyn FnMut(u64)) -> Result<()> {
        match self {
            Self::Layout(layout) => {
                let mut stage = layout.stage_blob()?;
                copy_verified(&mut rewound(file, blob)?, blob, stage.file(), tell)?;
                stage.commit(&blob.digest)
            }
            Self::Archive(tarball) => {
                // It goes in only once: what is read has to be right before.
                copy_verified(&mut rewound(file, blob)?, blob, &mut std::io::sink(), &mut |_| {})?;
                let file = rewound(file, blob)?;
                tarball.put(&blob.digest, blob.size, &mut Told { file, done: 0, tell })
            }
            Self::Registry(repository, transfers) => {
                let tell = std::cell::RefCell::new(tell);
                send_blob(repository, transfers, (blob, file), &|bytes| (tell.borrow_mut())(bytes)).map(drop)
            }
        }
    }

    /// Takes a blob that is a short text.
    pub(super) fn put_text(&mut self, text: &[u8]) -> Result<(Digest, u64)> {
        match self {
            Self::Layout(layout) => layout.put_blob(text),
            Self::Archive(tarball) => tarball.put_text(text),
            Self::Registry(repository, _) => {
                let blob = Blob { digest: digest_of(text), size: text.len() as u64 };
                if !repository.has_blob(&blob.digest)? {
                    let file = crate::sys::fs::memory_file("config", text)?;
                    repository.send_blob(&blob, &file, None, &|_| {})?;
                }
                Ok((blob.digest, blob.size))
            }
        }
    }

    /// Puts the manifest under its tag, in a registry without one under its digest: from then on the image is there.
    pub(super) fn finish(self, manifest: &[u8], tag: Option<&str>) -> Result<Digest> {
        let digest = digest_of(manifest);
        let entry = image_entry(&(digest.clone(), manifest.len() as u64), tag)?;
        match self {
            Self::Layout(layout) => {
                layout.put_blob(manifest)?;
                // Several may export into one layout at a time, and each has to find what the others put there.
                let _lock = Lock::wait(&layout.directory().join("oci-layout"), Sharing::Exclusive)?;
                // What others left who were killed over it.
                layout.sweep_temporary()?;
                let mut index = layout.index()?;
                index.set(entry);
                layout.replace_index(&index)?;
            }
            Self::Archive(mut tarball) => {
                tarball.put_text(manifest)?;
                let mut index = Index::default();
                index.set(entry);
                tarball.finish(&index)?;
            }
            Self::Registry(mut repository, _) => {
                let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
                repository.send_manifest(&name, MANIFEST_TYPE, manifest)?;
            }
        }
        Ok(digest)
    }
}

/// Opens a layout, or makes one. A directory with other things in it is not made one.
fn open_layout(directory: &Path) -> Result<Layout> {
    let is_new = || -> Result<bool> { Ok(is_empty(directory)? || is_unfinished(directory)) };
    if !is_new()? {
        return Layout::open(directory);
    }
    make_directory(directory)?;
    // Only the first of several who come at the same time may write an index that lists nothing. The file goes with the sweep
    // at the end of an export, when there is a layout that nobody has to make.
    let _lock = Lock::wait(&directory.join(format!("{TEMPORARY_PREFIX}lock")), Sharing::Exclusive)?;
    if is_new()? { Layout::create(directory) } else { Layout::open(directory) }
}

fn rewound<'a>(mut file: &'a File, blob: &Blob) -> Result<&'a File> {
    file.rewind().context(|| format!("read blob {}", blob.digest))?;
    Ok(file)
}

/// Whether there is nothing at a path, or an empty directory.
fn is_empty(directory: &Path) -> Result<bool> {
    let operation = || format!("look into {}", quote(directory));
    match fs::read_dir(directory) {
        Ok(mut children) => Ok(children.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let next = "for a tar file of a layout, give oci-archive:FILE";
            Err(Error::new(Kind::Invalid, operation(), "it is not a directory").next(next))
        }
        Err(error) => Err(error).context(operation),
    }
}

/// Whether a directory holds nothing but what there is of a layout before it is one: somebody was killed over it.
fn is_unfinished(directory: &Path) -> bool {
    let names = |path: &Path| -> Vec<String> {
        let children = fs::read_dir(path).into_iter().flatten().flatten();
        children.map(|child| child.file_name().to_string_lossy().into_owned()).collect()
    };
    let is_ours = |name: &String| ["blobs", "index.json"].contains(&&**name) || name.starts_with(TEMPORARY_PREFIX);
    let blobs = directory.join("blobs");
    let kinds = names(&blobs);
    names(directory).iter().all(is_ours)
        && kinds.iter().all(|kind| kind == "sha256")
        && names(&blobs.join("sha256")).is_empty()
}

/// A file that tells how much of it was read.
struct Told<'a> {
    file: &'a File,
    done: u64,
    tell: &'a mut dyn FnMut(u64),
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.done += length as u64;
        (self.tell)(self.done);
        Ok(length)
    }
}
