//! Other tools read the same out of a pack: GNU tar, umoci and zstd.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use regen::pack::{Compression, Packed, pack_layer};
use regen::sys::xattr::OverlayClass;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};
use tree::Node;

/// A layer of what all of them know, and a file that must not pass for a whiteout.
fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::write(at("dir/file"), b"hello").unwrap();
    fs::hard_link(at("dir/file"), at("dir/sub/hard")).unwrap();
    symlink("/nowhere", at("link")).unwrap();
    fs::write(at(&"l".repeat(255)), b"long").unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    mknodat(CWD, at("null"), FileType::CharacterDevice, Mode::RWXU, makedev(1, 3)).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_len(4 << 20).unwrap();
    std::os::unix::fs::chown(at("dir/file"), Some(4_000_000), Some(70_000)).unwrap();
    xattr::set(at("dir/file"), "user.note", b"line\nline=\0").unwrap();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(at("dir/file"), "security.capability", &capability).unwrap();
    mknodat(CWD, at("dir/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    xattr::set(at("dir/sub"), "trusted.overlay.opaque", b"y").unwrap();
    fs::write(at("dir/.wh.file"), b"I am real").unwrap();
    for (name, seconds) in [("dir/file", -1_000_000_000), ("dir", 1_700_000_000), ("", 1_600_000_000)] {
        let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// What is left when whiteouts, opaque directories and the escaped file are taken away.
fn plain(nodes: BTreeMap<PathBuf, Node>) -> BTreeMap<PathBuf, Node> {
    let is_plain = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with(".wh.") && !name.starts_with(".regen.wh-")
    };
    let mut nodes: BTreeMap<_, _> =
        nodes.into_iter().filter(|(path, node)| node.kind != 'w' && is_plain(path)).collect();
    for node in nodes.values_mut() {
        node.attributes.remove(b"trusted.overlay.opaque".as_slice());
    }
    nodes
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} is needed for this test: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn pack(layer: &Path, compression: Compression, blob: &Path) -> Packed {
    let mut file = File::create(blob).unwrap();
    pack_layer(layer, OverlayClass::Trusted, compression, &mut file, &mut |_| {}).unwrap()
}

#[test]
fn gnu_tar_restores_what_was_packed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("layer")).unwrap();
    fs::create_dir(at("out")).unwrap();
    fill(&at("layer"));
    pack(&at("layer"), Compression::Zstd, &at("blob.zst"));
    run(Command::new("zstd").arg("-dq").arg(at("blob.zst")).arg("-o").arg(at("blob.tar")));
    let list = run(Command::new("tar").arg("-tf").arg(at("blob.tar")));
    let names: Vec<&str> = list.lines().collect();
    assert!(names.contains(&"dir/.wh.gone") && names.contains(&"dir/sub/.wh..wh..opq"), "{list}");
    assert!(!names.contains(&"dir/.wh.file") && list.contains("dir/.regen.wh-"), "{list}");
    let options = ["-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f"];
    run(Command::new("tar").args(options).arg(at("blob.tar")).arg("-C").arg(at("out")));
    tree::assert_same(&plain(tree::read(&at("layer"))), &plain(tree::read(&at("out"))));
}

#[test]
fn digests_are_those_that_other_tools_compute() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("layer")).unwrap();
    fill(&at("layer"));
    fs::write(at("layer/big"), vec![7; 5 << 20]).unwrap();
    let digest = |command: &str| {
        let line = run(Command::new("sh").current_dir(directory.path()).args(["-c", command]));
        format!("sha256:{}", line.split_whitespace().next().unwrap())
    };
    let cases = [(Compression::None, "cat"), (Compression::Gzip, "gzip -dc"), (Compression::Zstd, "zstd -dc")];
    for (compression, decompress) in cases {
        let packed = pack(&at("layer"), compression, &at("blob"));
        assert_eq!(digest("sha256sum <blob"), packed.digest.to_string(), "{compression:?}");
        assert_eq!(digest(&format!("{decompress} <blob | sha256sum")), packed.diff_id.to_string(), "{compression:?}");
        assert_eq!(fs::metadata(at("blob")).unwrap().len(), packed.packed_bytes, "{compression:?}");
    }
}

#[test]
fn umoci_unpacks_what_was_packed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("layer")).unwrap();
    fill(&at("layer"));
    pack(&at("layer"), Compression::None, &at("blob.tar"));
    let image = format!("{}:tag", at("image").display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(at("image")));
    run(Command::new("umoci").args(["new", "--image", &image]));
    run(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(at("blob.tar")));
    run(Command::new("umoci").args(["unpack", "--image", &image]).arg(at("bundle")));
    let mut found = plain(tree::read(&at("bundle/rootfs")));
    let mut expected = plain(tree::read(&at("layer")));
    // It writes holes as zeros.
    for node in found.values_mut().chain(expected.values_mut()) {
        node.has_holes = false;
    }
    tree::assert_same(&expected, &found);
}
