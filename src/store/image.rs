//! What was known of an image when it was unpacked: how it is run, and where its blobs were.
//!
//! Nothing depends on it: an image whose record is gone, or whose blobs are, is packed anew from its layers where a copy of
//! it is wanted.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Store, make_directory};
use crate::error::{Context, Result, quote};
use crate::sys::fs::{TEMPORARY_PREFIX, random_id, read_capped};

const CAP: u64 = 8 << 20;
const VERSION: u32 = 1;

/// An image that was unpacked into the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    version: u32,
    /// Where its blobs were: `oci:DIR:TAG`, with an absolute path.
    pub source: String,
    /// Its config, as an OCI image has it.
    pub config: Value,
}

impl ImageRecord {
    /// What is to be remembered.
    #[must_use]
    pub fn new(source: String, config: Value) -> Self {
        Self { version: VERSION, source, config }
    }
}

impl Store {
    /// Remembers the image that a base of this fingerprint is made of, in place of what was known before.
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn note_image(&self, fingerprint: &str, record: &ImageRecord) -> Result<()> {
        if self.image(fingerprint).as_ref() == Some(record) {
            return Ok(());
        }
        let path = self.image_path(fingerprint);
        let operation = || format!("write {}", quote(&path));
        let directory = self.directory().join("images");
        make_directory(&directory)?;
        let text = serde_json::to_vec(record).context(operation)?;
        // Any number of containers may start from one image at a time: each writes a file of its own.
        let temporary = directory.join(format!("{TEMPORARY_PREFIX}{:032x}", u128::from_ne_bytes(random_id()?)));
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        written.context(operation).inspect_err(|_| {
            // What could not be written is what is reported.
            let _ = fs::remove_file(&temporary);
        })
    }

    /// What is known of the image that a base of this fingerprint is made of, if anything is.
    #[must_use]
    pub fn image(&self, fingerprint: &str) -> Option<ImageRecord> {
        let text = read_capped(&self.image_path(fingerprint), CAP).ok()?;
        let record: ImageRecord = serde_json::from_slice(&text).ok()?;
        (record.version == VERSION).then_some(record)
    }

    fn image_path(&self, fingerprint: &str) -> PathBuf {
        let name: String = fingerprint.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.directory().join("images").join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_word_about_an_image_counts_and_a_broken_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let record = |source: &str| ImageRecord::new(source.into(), json!({"os": "linux"}));
        assert_eq!(store.image("image:12"), None);
        for source in ["oci:/a:b", "oci:/c:d"] {
            store.note_image("image:12", &record(source)).unwrap();
            assert_eq!(store.image("image:12"), Some(record(source)));
        }
        fs::write(directory.path().join("images/image-12.json"), "{").unwrap();
        assert_eq!(store.image("image:12"), None);
        assert_eq!(fs::read_dir(directory.path().join("images")).unwrap().count(), 1);
    }
}
