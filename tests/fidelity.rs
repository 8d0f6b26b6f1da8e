//! What a layer holds survives pack and unpack, field by field.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

mod tree;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use proptest::prelude::*;
use regen::error::Kind;
use regen::pack::{Compression, Expected, Files, Limits, Packed, Unpacked, pack_layer, unpack_layer};
use regen::sys::xattr::OverlayClass;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat};

use tree::overlay::Overlay;
use tree::step::{self, Step};

const LIMITS: Limits = Limits { max_bytes: 1 << 30, max_entries: 100_000, files: Files::Layer };

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

#[test]
fn a_tree_deeper_than_any_path_survives() {
    let layer = tempfile::tempdir().unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = openat(CWD, layer.path(), flags, Mode::empty()).unwrap();
    for _ in 0..80 {
        mkdirat(&directory, "d".repeat(200), Mode::RWXU).unwrap();
        directory = openat(&directory, "d".repeat(200), flags, Mode::empty()).unwrap();
    }
    let create = OFlags::CREATE | OFlags::WRONLY;
    File::from(openat(&directory, "leaf", create, Mode::RUSR).unwrap()).write_all(b"deep").unwrap();
    linkat(&directory, "leaf", &directory, "other", AtFlags::empty()).unwrap();
    let (blob, packed) = pack(layer.path(), Compression::Zstd);
    let into = tempfile::tempdir().unwrap();
    unpack(&blob, &packed, Compression::Zstd, into.path());
    assert_eq!(pack(into.path(), Compression::Zstd).1, packed);
    assert!(packed.tar_bytes > 80 * 80 * 200 / 2, "the paths are not in the stream");
}

#[test]
fn sockets_are_left_out_and_named() {
    let layer = tempfile::tempdir().unwrap();
    fs::create_dir(layer.path().join("run")).unwrap();
    drop(UnixListener::bind(layer.path().join("run/socket")).unwrap());
    let (blob, packed) = pack(layer.path(), Compression::Zstd);
    assert_eq!(packed.sockets, [Path::new("run/socket")]);
    let into = tempfile::tempdir().unwrap();
    unpack(&blob, &packed, Compression::Zstd, into.path());
    assert_eq!(fs::read_dir(into.path().join("run")).unwrap().count(), 0);
}

#[test]
fn a_file_that_its_layer_does_not_hold_is_refused() {
    for (note, path) in [("redirect", "directory"), ("metacopy", "file")] {
        let layer = tempfile::tempdir().unwrap();
        fs::create_dir(layer.path().join("directory")).unwrap();
        fs::write(layer.path().join("file"), b"").unwrap();
        xattr::set(layer.path().join(path), format!("trusted.overlay.{note}"), b"/x").unwrap();
        let mut blob = tempfile::tempfile().unwrap();
        let packed =
            pack_layer(layer.path(), OverlayClass::Trusted, Compression::Zstd, &mut blob, &mut |_| {}).unwrap_err();
        assert_eq!(packed.kind(), Kind::Unsupported);
        let line = packed.to_string();
        assert!(line.contains(note) && line.contains(path) && line.contains("redirect_dir=nofollow"), "{line}");
    }
}

#[test]
fn whiteouts_and_opaque_directories_take_the_form_of_the_class() {
    let layer = tempfile::tempdir().unwrap();
    fs::create_dir(layer.path().join("dir")).unwrap();
    xattr::set(layer.path().join("dir"), "trusted.overlay.opaque", b"x").unwrap();
    for name in ["gone", "kept"] {
        fs::write(layer.path().join("dir").join(name), b"").unwrap();
    }
    xattr::set(layer.path().join("dir/gone"), "trusted.overlay.whiteout", b"y").unwrap();
    fs::create_dir(layer.path().join("opaque")).unwrap();
    xattr::set(layer.path().join("opaque"), "trusted.overlay.opaque", b"y").unwrap();
    let (blob, packed) = pack(layer.path(), Compression::Zstd);
    let into = tempfile::tempdir().unwrap();
    let expected = Expected { digest: packed.digest, diff_id: Some(packed.diff_id) };
    unpack_layer(&blob, &expected, Compression::Zstd, OverlayClass::User, &LIMITS, into.path()).unwrap();
    let nodes = tree::read(into.path());
    assert_eq!(nodes[Path::new("dir/gone")].kind, 'w');
    assert_eq!(nodes[Path::new("dir/kept")].kind, 'f');
    assert_eq!(xattr::get(into.path().join("opaque"), "user.overlay.opaque").unwrap().unwrap(), b"y");
    assert_eq!(xattr::list(into.path().join("dir")).unwrap().count(), 0);
}

#[test]
fn a_blob_that_cannot_be_written_ends_packing() {
    let layer = tempfile::tempdir().unwrap();
    let size = 40 << 20;
    fs::write(layer.path().join("big"), (0..size).map(|n: u32| (n.wrapping_mul(n) >> 7) as u8).collect::<Vec<_>>())
        .unwrap();
    let mut blob = File::options().write(true).open("/dev/full").unwrap();
    let error = pack_layer(layer.path(), OverlayClass::Trusted, Compression::Zstd, &mut blob, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
}

#[test]
fn progress_counts_up_to_the_whole_stream() {
    let layer = tempfile::tempdir().unwrap();
    fs::write(layer.path().join("big"), vec![1; 5 << 20]).unwrap();
    let (mut blob, mut seen) = (tempfile::tempfile().unwrap(), Vec::new());
    let mut progress = |bytes| seen.push(bytes);
    let packed = pack_layer(layer.path(), OverlayClass::Trusted, Compression::Zstd, &mut blob, &mut progress).unwrap();
    assert!(seen.len() > 5 && seen.is_sorted());
    assert_eq!(seen.last(), Some(&packed.tar_bytes));
}

/// A base that the random steps change, rename and delete from.
fn fill_base(root: &Path) {
    for name in ["a", "dir", "dir/b"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("a"), name).unwrap();
    }
    fs::write(root.join("b"), b"base").unwrap();
    fs::hard_link(root.join("b"), root.join("dir/dir")).unwrap();
    symlink("b", root.join("a/b")).unwrap();
}

/// A layer comes back as it was, byte for byte when packed again, and shows the same over a base.
fn assert_round_trip(layer: &Path, base: &Path) {
    let (blob, packed) = pack(layer, Compression::Zstd);
    let into = tempfile::tempdir().unwrap();
    unpack(&blob, &packed, Compression::Zstd, into.path());
    tree::assert_same(&tree::read(layer), &tree::read(into.path()));
    assert_eq!(pack(into.path(), Compression::Zstd).1, packed);
    let (before, after) = (Overlay::read_only(&[layer, base]), Overlay::read_only(&[into.path(), base]));
    tree::assert_same(&tree::read(&before.root()), &tree::read(&after.root()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_programs_do_to_an_overlay_survives(steps in step::steps()) {
        let (base, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill_base(base.path());
        let (upper, work) = (run.path().join("upper"), run.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let overlay = Overlay::writable(&upper, &work, &[base.path()], OverlayClass::Trusted);
        // A program that mounts overlays itself may note things of its own here: those are dropped.
        let steps: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::Opaque(_))).collect();
        step::apply(&overlay.root(), &steps);
        drop(overlay);
        assert_round_trip(&upper, base.path());
    }

    #[test]
    fn whatever_a_directory_holds_survives(steps in step::steps()) {
        let (base, layer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill_base(base.path());
        step::apply(layer.path(), &steps);
        assert_round_trip(layer.path(), base.path());
    }
}
