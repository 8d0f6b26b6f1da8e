//! What a layer hides of those below it: bytes that are on disk and never show, as long as no entry ends in between.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::pile::{Child, Pile, look, names};
use crate::error::Result;
use crate::sys::xattr::OverlayClass;

/// The bytes on disk that `upper` hides of each of `lowers` (lowest first, and so are the numbers). What one of them hides
/// of another is not among them, so that the sum over all layers of a stack is what merging them frees. Takes as long as
/// what `upper` holds, and what it hides.
///
/// A file that keeps other names counts as well.
pub(super) fn hidden_by(upper: &Path, lowers: &[PathBuf], class: OverlayClass) -> Result<Vec<u64>> {
    let mut waste = Waste { class, bytes: vec![0; lowers.len()] };
    waste.compare(upper, &Pile::of_layers(lowers, class)?)?;
    Ok(waste.bytes)
}

struct Waste {
    class: OverlayClass,
    bytes: Vec<u64>,
}

impl Waste {
    /// Adds what a directory hides.
    fn compare(&mut self, upper: &Path, lower: &Pile) -> Result<()> {
        if self.class.is_opaque(upper)? {
            return self.add_all(lower);
        }
        self.add_directory(lower)?;
        for name in names(upper)? {
            match lower.child(&name)? {
                None => {}
                Some(Child::File(file)) => self.bytes[file.layer] += file.metadata.blocks() * 512,
                Some(Child::Directory(inner)) => {
                    let path = upper.join(&name);
                    if look(&path)?.is_some_and(|metadata| metadata.is_dir()) {
                        self.compare(&path, &inner)?;
                    } else {
                        self.add_all(&inner)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds all that shows of a tree.
    fn add_all(&mut self, pile: &Pile) -> Result<()> {
        self.add_directory(pile)?;
        for name in pile.names()? {
            match pile.child(&name)? {
                Some(Child::File(file)) => self.bytes[file.layer] += file.metadata.blocks() * 512,
                Some(Child::Directory(inner)) => self.add_all(&inner)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Adds the uppermost of the directories, which are one once they are merged: those under it are hidden by it.
    fn add_directory(&mut self, pile: &Pile) -> Result<()> {
        if let Some((layer, path)) = pile.top() {
            self.bytes[layer] += look(path)?.map_or(0, |metadata| metadata.blocks() * 512);
        }
        Ok(())
    }
}
