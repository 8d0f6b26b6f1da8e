//! A layer is foreign bytes: whatever they are, unpacking ends, with an error or a directory, and touches nothing
//! beside that directory.

#![no_main]

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use libfuzzer_sys::{Corpus, fuzz_target};
use regen::ids::Digest;
use regen::image::layout::digest_of;
use regen::pack::{Compression, Expected, Files, Limits, unpack_layer};
use regen::sys::fs::memory_file;
use regen::sys::xattr::OverlayClass;

const BLOCK: usize = 512;
const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_entries: 1 << 10, files: Files::Layer };

thread_local! {
    /// A directory with things in it that a layer might reach for.
    static BASE: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fuzz_target!(|data: &[u8]| -> Corpus {
    if data.len() > 64 * BLOCK {
        return Corpus::Reject;
    }
    let tar = with_checksums(data);
    BASE.with(|base| run(base.get_or_init(make_base).path(), &tar));
    Corpus::Keep
});

fn make_base() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("outside")).unwrap();
    fs::write(base.path().join("outside/secret"), "secret").unwrap();
    base
}

fn run(base: &Path, tar: &[u8]) {
    let into = base.join("layer");
    fs::create_dir(&into).unwrap();
    let before = picture(base);
    let mut blob: File = memory_file("layer", tar).unwrap();
    blob.flush().unwrap();
    let expected = Expected { digest: digest_of(tar), diff_id: None };
    let unpacked = unpack_layer(&blob, &expected, Compression::None, OverlayClass::Trusted, &LIMITS, &into);
    if let Ok(unpacked) = unpacked {
        let diff_id: Digest = digest_of(tar);
        assert_eq!(unpacked.diff_id, diff_id);
        assert!(unpacked.content_bytes <= LIMITS.max_bytes);
    }
    // What it made may be set so that even its owner looks in only as root, which this is.
    fs::remove_dir_all(&into).unwrap();
    fs::create_dir(&into).unwrap();
    assert_eq!(picture(base), before, "something outside of the layer changed");
    fs::remove_dir(&into).unwrap();
}

/// Names, modes, owners, link counts and contents of what is not the layer's.
fn picture(base: &Path) -> Vec<(PathBuf, u32, u32, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for directory in [base.to_owned(), base.join("outside")] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let size = if metadata.is_dir() { 0 } else { metadata.size() };
            found.push((path, metadata.mode(), metadata.uid(), metadata.nlink(), size));
        }
    }
    found.sort();
    found
}

/// Puts the right checksum into everything that stands where a header does: a fuzzer would never guess it.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut tar = data.to_vec();
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    let mut at = 0;
    while at + BLOCK <= tar.len() {
        let block = &mut tar[at..at + BLOCK];
        if block.iter().all(|byte| *byte == 0) {
            at += BLOCK;
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let octal = std::str::from_utf8(&block[124..135]).ok();
        let size = octal.and_then(|text| u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()).unwrap_or(0);
        let skip = usize::try_from(size.div_ceil(512)).unwrap_or(0).min(tar.len() / BLOCK);
        at += BLOCK * (1 + skip);
    }
    tar.extend([0; 2 * BLOCK]);
    tar
}
