//! `format.json`: what a regen must know to touch a store or a ring.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::{Durability, read_capped, replace_file};
use crate::sys::xattr::OverlayClass;

const NAME: &str = "format.json";
const VERSION: u32 = 1;
/// Layers of this store have `user.overlay.` attributes: it was made without the right to `trusted.` ones.
const USER_CLASS: &str = "userxattr";
/// A ring has runs or entries beside its main line: who does not know them would take them for the newest, or for garbage.
pub const SIDES: &str = "sides";
/// A ring is not to be run here: who does not know that would make a second line of what belongs to another node.
pub const ELSEWHERE: &str = "elsewhere";
/// A ring has rules by which entries are kept: who does not know them would evict those, and forget the rules.
pub const KEEP: &str = "keep";
/// An entry has changes of volumes: who does not know that would show the container what they stand on instead.
pub const VOLUMES: &str = "volumes";
/// An entry has processes beside its layers: who does not know that would leave them behind when it evicts the entry.
pub const MEMORY: &str = "memory";
const CAP: u64 = 64 * 1024;

/// Version and features of something on disk. Features in a list that this regen does not know mean: `compatible`,
/// nothing; `read_only_compatible`, it may be read but not written; `incompatible`, it may not be touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    version: u32,
    compatible: Vec<String>,
    read_only_compatible: Vec<String>,
    incompatible: Vec<String>,
}

/// Whether there is a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// One that this regen understands, and how its overlay attributes are spelled.
    Present(OverlayClass),
    /// None.
    Absent,
}

impl Default for Format {
    fn default() -> Self {
        let none = Vec::new;
        Self { version: VERSION, compatible: none(), read_only_compatible: none(), incompatible: none() }
    }
}

impl Format {
    fn of_store(class: OverlayClass) -> Self {
        let incompatible = match class {
            OverlayClass::Trusted => Vec::new(),
            OverlayClass::User => vec![USER_CLASS.to_owned()],
        };
        Self { incompatible, ..Self::default() }
    }

    fn class(&self) -> OverlayClass {
        if self.incompatible.iter().any(|feature| feature == USER_CLASS) {
            OverlayClass::User
        } else {
            OverlayClass::Trusted
        }
    }

    /// Says that whoever does not know a feature may not touch what has it.
    pub fn require(&mut self, feature: &str) {
        if !self.incompatible.iter().any(|required| required == feature) {
            self.incompatible.push(feature.to_owned());
        }
    }

    /// Says that a feature is not used any more.
    pub fn release(&mut self, feature: &str) {
        self.incompatible.retain(|required| required != feature);
    }

    /// Refuses what this regen would misunderstand.
    ///
    /// # Errors
    /// [`Kind::Unsupported`], naming version or features.
    pub fn check(&self, operation: &str) -> Result<()> {
        let newer = |what: String| {
            Err(Error::new(Kind::Unsupported, operation, what).next("use the regen that wrote it, or a newer one"))
        };
        if self.version != VERSION {
            return newer(format!("it has format version {}, this regen knows {VERSION}", self.version));
        }
        let mut unknown = self.incompatible.clone();
        unknown.retain(|feature| ![USER_CLASS, SIDES, ELSEWHERE, KEEP, VOLUMES, MEMORY].contains(&feature.as_str()));
        unknown.extend(self.read_only_compatible.iter().cloned());
        if !unknown.is_empty() {
            return newer(format!("it uses features that this regen does not know: {}", unknown.join(", ")));
        }
        Ok(())
    }
}

pub(super) fn check(store: &Path) -> Result<Found> {
    let operation = format!("open store {}", quote(store));
    let path = store.join(NAME);
    let content = match read_capped(&path, CAP) {
        Ok(content) => content,
        Err(error) if error.kind() == Kind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(error.during(operation)),
    };
    let format: Format = serde_json::from_slice(&content).context(|| format!("{operation}: read {}", quote(&path)))?;
    format.check(&operation)?;
    Ok(Found::Present(format.class()))
}

pub(super) fn write(store: &Path, class: OverlayClass) -> Result<()> {
    let text = serde_json::to_vec(&Format::of_store(class)).context(|| "write the store's format")?;
    replace_file(store, NAME, &text, Durability::Durable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_says_how_its_attributes_are_spelled() {
        for class in [OverlayClass::Trusted, OverlayClass::User] {
            let directory = tempfile::tempdir().unwrap();
            assert_eq!(check(directory.path()).unwrap(), Found::Absent);
            write(directory.path(), class).unwrap();
            assert_eq!(check(directory.path()).unwrap(), Found::Present(class));
        }
        let newer = Format { incompatible: vec![USER_CLASS.into(), "holes".into()], ..Format::default() };
        let line = newer.check("open").unwrap_err().to_string();
        assert!(line.contains("does not know: holes"), "{line}");
    }
}
