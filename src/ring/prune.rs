//! What nothing needs, as a list: what collection would remove now, and how many bytes that frees.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::{Ring, gc, index};
use crate::error::{Context, Result, quote};
use crate::ids::LayerId;
use crate::store::Store;

/// Something that nothing needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// What it is.
    pub kind: Sort,
    /// Its id, its digest, or its path below the store.
    pub name: String,
    /// Bytes on disk that its removal frees: files that something else has, too, do not count.
    pub bytes: u64,
}

/// What there is to be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// A layer that a run left, and that no entry stands on any more.
    Layer,
    /// A layer of an image on which nothing stands.
    ImageLayer,
    /// A blob in a ring's layout.
    Blob,
    /// What is left of a run that is over, or whose container is dead.
    Run,
    /// Something that was being made or removed by who is dead.
    Leftover,
    /// A ring that a container was given as a fork, and that nobody uses any more.
    Fork,
}

/// Lists what nothing needs, `images` and `forks` among it, which the caller knows to be unused, and what only those forks need.
/// Nothing is removed.
///
/// # Errors
/// Those of reading the store. If a ring cannot be read there is no list: what it names would be on it.
pub fn find(store: &Store, images: &[LayerId], forks: &[Ring]) -> Result<Vec<Garbage>> {
    let mut found: Vec<(Sort, String, PathBuf)> = Vec::new();
    let layer = |sort: Sort, id: &LayerId| (sort, id.to_string(), store.layers().directory().join(id.as_str()));
    let runs = gc::dead_runs(store)?;
    found.extend(forks.iter().map(|ring| (Sort::Fork, ring.name().to_string(), ring.directory().to_owned())));
    found.extend(gc::unneeded_layers(store, &runs, forks)?.iter().map(|id| layer(Sort::Layer, id)));
    found.extend(images.iter().map(|id| layer(Sort::ImageLayer, id)));
    let stays = |ring: &Ring| forks.iter().all(|fork| fork.name() != ring.name());
    let mut left = store.transfers().left(Duration::ZERO)?;
    let look = |ring: &Ring| {
        if !stays(ring) {
            return Ok(None);
        }
        let locked = ring.lock()?;
        Ok(Some((index::Unneeded::find(&locked)?, locked.unneeded_memory()?)))
    };
    for (_, unneeded) in Ring::each(store, look)? {
        let Some((unneeded, memory)) = unneeded? else { continue };
        let path = |digest: &_| unneeded.layout.blob_path(digest);
        found.extend(unneeded.all().map(|digest| (Sort::Blob, digest.to_string(), path(digest))));
        left.extend(memory);
    }
    for directory in runs {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push((Sort::Run, name, directory));
    }
    left.extend(store.layers().abandoned()?.into_iter().chain(Ring::leftovers(store)?));
    for path in left {
        let name = path.strip_prefix(store.directory()).unwrap_or(&path).to_string_lossy().into_owned();
        found.push((Sort::Leftover, name, path));
    }
    let mut tally = Tally::default();
    let weigh = |(kind, name, path): (Sort, String, PathBuf)| Ok(Garbage { kind, name, bytes: tally.add(&path)? });
    found.into_iter().map(weigh).collect()
}

impl Ring {
    /// Deletes the blobs that nothing needs, and processes without an entry.
    ///
    /// # Errors
    /// As [`Ring::lock`]; those of reading manifests and of unlink.
    pub fn collect_blobs(&self) -> Result<()> {
        let mut locked = self.lock()?;
        locked.sweep_memory()?;
        locked.drop_replaced()
    }
}

/// Bytes that are free once all that was added is gone: a file counts with the last of its names.
#[derive(Debug, Default)]
struct Tally {
    /// How many names of a file were seen.
    seen: HashMap<(u64, u64), u64>,
}

impl Tally {
    fn add(&mut self, path: &Path) -> Result<u64> {
        let mut pending = vec![path.to_owned()];
        let mut bytes = 0;
        while let Some(path) = pending.pop() {
            // What is gone meanwhile frees nothing.
            let Some(metadata) = unless_gone(fs::symlink_metadata(&path), &path)? else { continue };
            if metadata.is_dir() {
                for child in unless_gone(fs::read_dir(&path), &path)?.into_iter().flatten() {
                    pending.push(child.context(|| format!("measure {}", quote(&path)))?.path());
                }
            }
            bytes += if self.is_last(&metadata) { metadata.blocks() * 512 } else { 0 };
        }
        Ok(bytes)
    }

    fn is_last(&mut self, metadata: &Metadata) -> bool {
        if metadata.is_dir() || metadata.nlink() == 1 {
            return true;
        }
        let seen = self.seen.entry((metadata.dev(), metadata.ino())).or_default();
        *seen += 1;
        *seen == metadata.nlink()
    }
}

fn unless_gone<T>(result: std::io::Result<T>, path: &Path) -> Result<Option<T>> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).context(|| format!("measure {}", quote(path))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_with_the_last_of_its_names() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let file = |name: &str| directory.path().join(name).join("f");
        fs::write(file("a"), vec![1; 100_000]).unwrap();
        fs::hard_link(file("a"), file("b")).unwrap();
        let mut tally = Tally::default();
        let first = tally.add(&directory.path().join("a")).unwrap();
        let second = tally.add(&directory.path().join("b")).unwrap();
        assert!(first < 100_000 && second >= 100_000, "{first} {second}");
        assert_eq!(tally.add(&directory.path().join("gone")).unwrap(), 0);
    }
}
