//! Where rings and entries come from: a registry, an image layout or an archive of one, which are all foreign.

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
use crate::store::Transfers;
use crate::store::transfer::Piece;

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

    /// Puts a blob into a layout; `tell` is told how many bytes are there. Its content is then what the digest says. Gives how
    /// many bytes were moved for it. What of a registry's did not come whole is kept for the next try.
    pub(super) fn bring(
        &mut self,
        blob: &Blob,
        layout: &Layout,
        transfers: &Transfers,
        tell: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        if let Self::Registry(repository) = self
            && let Some(mut held) = transfers.hold(Piece::Blob(&blob.digest))?
        {
            let moved = repository.fetch_blob(blob, held.file(), tell);
            if moved.as_ref().is_err_and(|error| !is_worth_keeping(error.kind())) {
                held.discard()?;
                return moved;
            }
            let moved = moved?;
            held.finish(&layout.blob_path(&blob.digest))?;
            return Ok(moved);
        }
        let mut stage = layout.stage_blob()?;
        let descriptor = Descriptor::new("", &blob.digest, blob.size);
        let moved = match self {
            // Another process is at it, too.
            Self::Registry(repository) => repository.fetch_blob(blob, stage.file(), tell)?,
            Self::Layout(from, _) => copy_verified(&mut from.open_blob(&descriptor)?, blob, stage.file(), tell)?,
            Self::Archive(archive) => copy_verified(&mut archive.open_blob(&descriptor)?, blob, stage.file(), tell)?,
        };
        stage.commit(&blob.digest)?;
        Ok(moved)
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

/// Whether what came before a failure may be the beginning of what is wanted, and does no harm until the next try.
pub(super) fn is_worth_keeping(kind: Kind) -> bool {
    match kind {
        Kind::Damaged | Kind::Invalid | Kind::NoSpace | Kind::NotFound => false,
        Kind::Busy | Kind::Exists | Kind::State | Kind::System | Kind::Unsupported | Kind::Usage => true,
        Kind::CommandNotFound | Kind::CommandNotExecutable => true,
    }
}

fn digest_by_name(index: &Index, name: &str) -> Result<Option<Digest>> {
    match name.parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => index.tagged(name).map(Descriptor::digest).transpose(),
    }
}

/// Copies a blob, and compares it with its digest on the way. Gives its bytes.
pub(super) fn copy_verified(
    source: &mut dyn Read,
    blob: &Blob,
    target: &mut dyn Write,
    tell: &mut dyn FnMut(u64),
) -> Result<u64> {
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
        return Ok(done);
    }
    Err(Error::new(Kind::Damaged, operation(), format!("its content has digest {found}")))
}
