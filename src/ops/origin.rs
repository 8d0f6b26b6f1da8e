//! Where rings and entries come from: a registry, an image layout or an archive of one, which are all foreign.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::transfer::Location;
use crate::distribution::{Blob, Document, Repository, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;
use crate::image::archive::Archive;
use crate::image::layout::{Layout, digest_of};
use crate::image::manifest::{CONFIG_MAX, Descriptor, Index, MANIFEST_MAX};
use crate::image::reference::ImageSource;

const BUFFER: usize = 1 << 18;

/// What documents and blobs are asked of.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A repository of a registry.
    Registry(Repository),
    /// A directory in OCI layout.
    Layout(Layout, Index),
    /// A tar file of one.
    Archive(Arc<Archive>),
}

impl Origin {
    /// Opens what was named.
    pub(super) fn open(from: &Location, trust: Trust) -> Result<Self> {
        match from {
            Location::Registry(reference) => Repository::open(reference, trust).map(Self::Registry),
            Location::Image(ImageSource::Layout { directory, .. }) => {
                let layout = Layout::open(directory)?;
                let index = layout.index()?;
                Ok(Self::Layout(layout, index))
            }
            Location::Image(ImageSource::Archive { file, .. }) => Ok(Self::Archive(Arc::new(Archive::open(file)?))),
        }
    }

    /// A manifest by tag or digest; `None` if there is none.
    pub(super) fn manifest(&mut self, name: &str) -> Result<Option<Document>> {
        let digest = match self {
            Self::Registry(repository) => return repository.fetch_manifest(name),
            Self::Layout(_, index) => digest_by_name(index, name)?,
            Self::Archive(archive) => digest_by_name(archive.index(), name)?,
        };
        let Some(digest) = digest else { return Ok(None) };
        let bytes = match self.read(&digest, MANIFEST_MAX) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            other => other?,
        };
        Ok(Some(Document { media_type: String::new(), bytes, digest }))
    }

    /// The digest of a manifest by its tag.
    pub(super) fn manifest_digest(&mut self, tag: &str) -> Result<Option<Digest>> {
        match self {
            Self::Registry(repository) => repository.manifest_digest(tag),
            Self::Layout(_, index) => digest_by_name(index, tag),
            Self::Archive(archive) => digest_by_name(archive.index(), tag),
        }
    }

    /// All tags.
    pub(super) fn tags(&mut self) -> Result<Vec<String>> {
        let index = match self {
            Self::Registry(repository) => return Ok(repository.tags()?.into_iter().collect()),
            Self::Layout(_, index) => index,
            Self::Archive(archive) => archive.index(),
        };
        Ok(index.manifests.iter().filter_map(Descriptor::tag).map(str::to_owned).collect())
    }

    /// What can be meant where no tag is given: the name of the only manifest that there is. Nobody knows that of a
    /// registry.
    pub(super) fn only(&self) -> Option<String> {
        let index = match self {
            Self::Registry(_) => return None,
            Self::Layout(_, index) => index,
            Self::Archive(archive) => archive.index(),
        };
        match index.manifests.as_slice() {
            [only] => Some(only.digest_text().to_owned()),
            _ => None,
        }
    }

    /// A blob that is a short text.
    pub(super) fn text(&mut self, blob: &Blob) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::Registry(repository) => return repository.fetch_text(blob),
            Self::Layout(..) | Self::Archive(_) => self.read(&blob.digest, CONFIG_MAX)?,
        };
        if bytes.len() as u64 == blob.size {
            return Ok(bytes);
        }
        let cause = format!("it has {} bytes instead of {}", bytes.len(), blob.size);
        Err(Error::new(Kind::Damaged, format!("read blob {}", blob.digest), cause))
    }

    /// Puts a blob into an empty file; `tell` is told how many bytes are there. The file's content is then what the digest
    /// says.
    pub(super) fn blob(&mut self, blob: &Blob, file: &mut File, tell: &mut dyn FnMut(u64)) -> Result<()> {
        let descriptor = Descriptor::new("", &blob.digest, blob.size);
        match self {
            Self::Registry(repository) => repository.fetch_blob(blob, file, tell),
            Self::Layout(layout, _) => copy_verified(&mut layout.open_blob(&descriptor)?, blob, file, tell),
            Self::Archive(archive) => copy_verified(&mut archive.open_blob(&descriptor)?, blob, file, tell),
        }
    }

    /// A document, its digest compared.
    fn read(&self, digest: &Digest, cap: u64) -> Result<Vec<u8>> {
        match self {
            Self::Registry(_) => Err(Error::new(Kind::Unsupported, format!("read blob {digest}"), "it is far away")),
            Self::Layout(layout, _) => layout.read_blob(digest, cap),
            Self::Archive(archive) => {
                let bytes = archive.read_blob(digest, cap)?;
                if digest_of(&bytes) == *digest {
                    return Ok(bytes);
                }
                let cause = format!("its content has digest {}", digest_of(&bytes));
                Err(Error::new(Kind::Damaged, format!("read blob {digest}"), cause).next("make the archive again"))
            }
        }
    }
}

fn digest_by_name(index: &Index, name: &str) -> Result<Option<Digest>> {
    match name.parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => index.tagged(name).map(Descriptor::digest).transpose(),
    }
}

/// Copies a blob, and compares it with its digest on the way.
pub(super) fn copy_verified(
    source: &mut dyn Read,
    blob: &Blob,
    target: &mut dyn Write,
    tell: &mut dyn FnMut(u64),
) -> Result<()> {
    let operation = || format!("copy blob {}", blob.digest);
    let (mut hasher, mut done, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
    loop {
        let length = match source.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.context(operation)?,
        };
        hasher.update(&buffer[..length]);
        target.write_all(&buffer[..length]).context(operation)?;
        done += length as u64;
        tell(done);
    }
    let found = Digest::from_bytes(hasher.finalize().into());
    if found == blob.digest {
        return Ok(());
    }
    Err(Error::new(Kind::Damaged, operation(), format!("its content has digest {found}")))
}
