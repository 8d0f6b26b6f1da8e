//! A tree as data: everything that a layer's files have, to be compared field by field.

#![allow(dead_code, clippy::unwrap_used, reason = "every test takes what it needs, and fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "bytes of a pattern, and buffers that are small")]

pub mod disk;
pub mod overlay;
pub mod step;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub size: u64,
    /// Hash of a file's bytes, target of a link, number of a device.
    pub content: Vec<u8>,
    pub has_holes: bool,
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    pub same_as: PathBuf,
}

/// Overlay's notes that say something about a directory; the rest is the kernel's own.
const MEANINGFUL: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Reads a tree, the root included; sockets are left out, as packs leave them out.
pub fn read(root: &Path) -> BTreeMap<PathBuf, Node> {
    let (mut nodes, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    visit(root, Path::new(""), &mut nodes, &mut inodes);
    nodes
}

fn visit(root: &Path, path: &Path, nodes: &mut BTreeMap<PathBuf, Node>, inodes: &mut BTreeMap<u64, PathBuf>) {
    let full = root.join(path);
    let metadata = match fs::symlink_metadata(&full) {
        // A whiteout where there is nothing to delete is listed by overlay, but not there.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        result => result.unwrap(),
    };
    if metadata.file_type().is_socket() {
        return;
    }
    let node = node(&full, path, &metadata, inodes);
    let is_directory = node.kind == 'd';
    nodes.insert(path.to_owned(), node);
    if is_directory {
        let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.iter().for_each(|name| visit(root, &path.join(name), nodes, inodes));
    }
}

fn node(full: &Path, path: &Path, metadata: &fs::Metadata, inodes: &mut BTreeMap<u64, PathBuf>) -> Node {
    let kind = metadata.file_type();
    let whiteout = kind.is_char_device() && metadata.rdev() == 0;
    let (kind, content) = match kind {
        // A whiteout has no fields: nobody ever sees them.
        _ if whiteout => return whiteout_node(path),
        kind if kind.is_dir() => ('d', Vec::new()),
        kind if kind.is_file() => ('f', hash(full)),
        kind if kind.is_symlink() => ('l', fs::read_link(full).unwrap().as_os_str().as_bytes().to_vec()),
        kind if kind.is_fifo() => ('p', Vec::new()),
        kind if kind.is_char_device() => ('c', metadata.rdev().to_string().into_bytes()),
        kind if kind.is_block_device() => ('b', metadata.rdev().to_string().into_bytes()),
        other => panic!("{other:?}"),
    };
    let same_as = match kind {
        'd' => path.to_owned(),
        _ => inodes.entry(metadata.ino()).or_insert_with(|| path.to_owned()).clone(),
    };
    Node {
        kind,
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: if kind == 'd' { 0 } else { metadata.size() },
        content,
        has_holes: kind == 'f' && metadata.blocks() * 512 < metadata.size() / 2,
        attributes: attributes(full),
        same_as,
    }
}

fn whiteout_node(path: &Path) -> Node {
    Node {
        kind: 'w',
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size: 0,
        content: Vec::new(),
        has_holes: false,
        attributes: BTreeMap::new(),
        same_as: path.to_owned(),
    }
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let is_kept = |name: &OsStr| {
        let name = name.to_string_lossy();
        (path.is_dir() && MEANINGFUL.contains(&&*name))
            || !(name.starts_with("trusted.overlay.") || name.starts_with("user.overlay."))
    };
    let names = xattr::list(path).unwrap().filter(|name| is_kept(name));
    names.map(|name| (name.as_bytes().to_vec(), xattr::get(path, &name).unwrap().unwrap())).collect()
}

/// Hashes the data between the holes, with where it is: a file of a tebibyte is read in no time.
fn hash(path: &Path) -> Vec<u8> {
    let file = fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let (mut hash, mut at, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        let mut offset = data;
        while offset < at {
            let count = file.read_at(&mut buffer, offset).unwrap().min((at - offset) as usize);
            // A hole may become zeros and zeros a hole: only what is not zero is content.
            for (index, block) in buffer[..count].chunks(4096).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    hash.update((offset + index as u64 * 4096).to_le_bytes());
                    hash.update(block);
                }
            }
            offset += count as u64;
        }
    }
    hash.update(size.to_le_bytes());
    hash.finalize().to_vec()
}

/// Fails with the first few differences.
pub fn assert_same(expected: &BTreeMap<PathBuf, Node>, found: &BTreeMap<PathBuf, Node>) {
    let paths = expected.keys().chain(found.keys()).collect::<std::collections::BTreeSet<_>>();
    let differences: Vec<String> = paths
        .into_iter()
        .filter(|path| expected.get(*path) != found.get(*path))
        .take(5)
        .map(|path| format!("{path:?}\n  expected {:?}\n  found    {:?}", expected.get(path), found.get(path)))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
