//! What a layer holds survives pack and unpack, field by field.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

mod tree;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use regen::pack::{Compression, Expected, Limits, Packed, Unpacked, pack_layer, unpack_layer};
use regen::sys::xattr::OverlayClass;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

const LIMITS: Limits = Limits { max_bytes: 1 << 30, max_entries: 100_000 };

fn pack(layer: &Path, compression: Compression) -> (File, Packed) {
    let mut blob = tempfile::tempfile().unwrap();
    let packed = pack_layer(layer, OverlayClass::Trusted, compression, &mut blob, &mut |_| {}).unwrap();
    (blob, packed)
}

fn unpack(blob: &File, packed: &Packed, compression: Compression, into: &Path) -> Unpacked {
    let expected = Expected { digest: packed.digest.clone(), diff_id: Some(packed.diff_id.clone()) };
    unpack_layer(blob, &expected, compression, OverlayClass::Trusted, &LIMITS, into).unwrap()
}

fn assert_survives(layer: &Path, compression: Compression) {
    let (blob, packed) = pack(layer, compression);
    let into = tempfile::tempdir().unwrap();
    unpack(&blob, &packed, compression, into.path());
    tree::assert_same(&tree::read(layer), &tree::read(into.path()));
}

fn make(path: &Path, kind: FileType, mode: u32, device: (u32, u32)) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(mode), makedev(device.0, device.1)).unwrap();
}

/// One of everything.
fn fill(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("dir/deep/er")).unwrap();
    fs::write(path("dir/plain"), b"hello").unwrap();
    fs::write(path("empty"), b"").unwrap();
    fs::write(path("big"), (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>())
        .unwrap();
    fs::set_permissions(path("dir/plain"), Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(path("dir"), Permissions::from_mode(0o3770)).unwrap();
    fs::hard_link(path("dir/plain"), path("dir/deep/linked")).unwrap();
    fs::hard_link(path("dir/plain"), path("a-link-that-comes-first")).unwrap();
    symlink("/nowhere/at/all", path("dangling")).unwrap();
    symlink("t".repeat(3000), path("long-target")).unwrap();
    make(&path("fifo"), FileType::Fifo, 0o640, (0, 0));
    make(&path("null"), FileType::CharacterDevice, 0o666, (1, 3));
    make(&path("disk"), FileType::BlockDevice, 0o660, (259, 1_048_575));
    make(&path("dir/deleted"), FileType::CharacterDevice, 0, (0, 0));
    fs::create_dir(path("opaque")).unwrap();
    xattr::set(path("opaque"), "trusted.overlay.opaque", b"y").unwrap();
    fs::write(path("opaque/new"), b"new").unwrap();
    std::os::unix::fs::chown(path("dir/deep"), Some(4_000_000), Some(70_000)).unwrap();
    std::os::unix::fs::chown(path("empty"), Some(70_000), Some(4_294_967_294)).unwrap();
}

#[test]
fn one_of_everything_survives() {
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let layer = tempfile::tempdir().unwrap();
        fill(layer.path());
        assert_survives(layer.path(), compression);
    }
}

#[test]
fn a_sparse_tebibyte_is_neither_stored_nor_filled() {
    let layer = tempfile::tempdir().unwrap();
    let file = File::create(layer.path().join("sparse")).unwrap();
    file.write_all_at(b"middle", 1 << 39).unwrap();
    file.set_len(1 << 40).unwrap();
    let (blob, packed) = pack(layer.path(), Compression::Zstd);
    assert!(packed.tar_bytes < 100_000, "{} bytes", packed.tar_bytes);
    let into = tempfile::tempdir().unwrap();
    unpack(&blob, &packed, Compression::Zstd, into.path());
    let nodes = tree::read(into.path());
    assert!(nodes[Path::new("sparse")].has_holes);
    tree::assert_same(&tree::read(layer.path()), &nodes);
}
