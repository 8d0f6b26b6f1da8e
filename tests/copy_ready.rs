//! A layer whose files are open already when the last look at it is taken: whatever was done to them in between, by any
//! way that there is to change a file, is in the copy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use regen::pack::{LayerCopy, Upper};
use regen::sys::xattr::OverlayClass;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timestamps, copy_file_range, fallocate, mknodat,
    renameat_with, utimensat,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tree::disk::Disk;
use tree::overlay::Overlay;

/// After so long, a change shows in the times for sure.
const SURE: Duration = Duration::from_millis(120);
const PAGE: usize = 4096;

/// What is done between the two looks, in the mounted overlay; `Held` was opened and mapped before the first.
type Change = fn(&Path, &Held);

/// A file that a program has open for writing, and mapped, all the while.
struct Held {
    file: File,
    page: *mut u8,
}

impl Held {
    fn new(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let write = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of a page of a file that is that long; nothing else is replaced.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, write, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(page, libc::MAP_FAILED);
        let held = Self { file, page: page.cast() };
        held.put(b'1');
        held
    }

    fn put(&self, byte: u8) {
        // SAFETY: inside the mapping, which lives as long as this does.
        unsafe { self.page.write_volatile(byte) };
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the very mapping that was made above, and nobody uses it any more.
        unsafe { libc::munmap(self.page.cast(), PAGE) };
    }
}

fn open(path: PathBuf) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn exchange(a: PathBuf, b: PathBuf) {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
}

/// Another file in its place, which nothing but its number and the time of the change tells from the one before.
fn replace(path: &Path) {
    let (meta, other) = (path.metadata().unwrap(), path.with_file_name("other"));
    let mut content = fs::read(path).unwrap();
    content[0] ^= 1;
    fs::write(&other, content).unwrap();
    File::open(&other).unwrap().set_modified(meta.modified().unwrap()).unwrap();
    fs::rename(&other, path).unwrap();
}

const CHANGES: [(&str, Change); 37] = [
    ("append", |root, _| OpenOptions::new().append(true).open(root.join("d/f")).unwrap().write_all(b"more").unwrap()),
    ("write in place", |root, _| open(root.join("d/f")).write_all_at(b"new", 7).unwrap()),
    ("write to what was open before", |_, held| held.file.write_all_at(b"new", 7).unwrap()),
    ("write through a mapping", |_, held| held.put(b'2')),
    ("write through a mapping that is new", |root, _| Held::new(&root.join("d/f")).put(b'3')),
    ("direct write", |root, _| {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(root.join("d/f")).unwrap();
        let page = vec![b'd'; 2 * PAGE];
        let start = page.as_ptr().align_offset(PAGE);
        file.write_all_at(&page[start..start + PAGE], 0).unwrap();
    }),
    ("splice", |root, _| {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, b"spliced").unwrap();
        let file = open(root.join("d/f"));
        let none = rustix::pipe::SpliceFlags::empty();
        assert_eq!(rustix::pipe::splice(&read, None, &file, Some(&mut 3), 7, none).unwrap(), 7);
    }),
    ("copy of a range", |root, _| {
        let (from, to) = (open(root.join("d/g")), open(root.join("d/f")));
        assert_eq!(copy_file_range(&from, Some(&mut 0), &to, Some(&mut 0), PAGE).unwrap(), PAGE);
    }),
    ("hole", |root, _| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(open(root.join("d/f")), flags, 0, PAGE as u64).unwrap();
    }),
    ("longer", |root, _| open(root.join("d/f")).set_len(99_999).unwrap()),
    ("truncate", |root, _| open(root.join("d/f")).set_len(1).unwrap()),
    ("written anew", |root, _| fs::write(root.join("d/f"), "anew").unwrap()),
    ("copied up", |root, _| OpenOptions::new().append(true).open(root.join("low/f")).unwrap().write_all(b"x").unwrap()),
    ("copied up by its mode", |root, _| {
        fs::set_permissions(root.join("low/f"), Permissions::from_mode(0o604)).unwrap()
    }),
    ("mode", |root, _| fs::set_permissions(root.join("d/f"), Permissions::from_mode(0o611)).unwrap()),
    ("mode of a directory", |root, _| fs::set_permissions(root.join("d"), Permissions::from_mode(0o711)).unwrap()),
    ("owner", |root, _| std::os::unix::fs::lchown(root.join("d/link"), Some(7), Some(8)).unwrap()),
    ("times that were so before", |root, _| {
        let (path, before) = (root.join("d/f"), rustix::fs::stat(root.join("d/f")).unwrap());
        open(path.clone()).write_all_at(b"hidden", 0).unwrap();
        let time = |second, nanosecond: u64| rustix::fs::Timespec { tv_sec: second, tv_nsec: nanosecond.cast_signed() };
        let (last_access, last_modification) =
            (time(before.st_atime, before.st_atime_nsec), time(before.st_mtime, before.st_mtime_nsec));
        utimensat(CWD, path, &Timestamps { last_access, last_modification }, AtFlags::empty()).unwrap();
    }),
    ("attribute", |root, _| xattr::set(root.join("d/f"), "user.a", b"1").unwrap()),
    ("attribute of a directory", |root, _| xattr::set(root.join("d"), "user.a", b"1").unwrap()),
    ("no attribute", |root, _| xattr::remove(root.join("d/g"), "user.g").unwrap()),
    ("rename", |root, _| fs::rename(root.join("d/f"), root.join("d/other")).unwrap()),
    ("rename to another directory", |root, _| fs::rename(root.join("d/f"), root.join("e/other")).unwrap()),
    ("rename over", |root, _| fs::rename(root.join("d/f"), root.join("d/g")).unwrap()),
    ("exchange", |root, _| exchange(root.join("d/f"), root.join("d/g"))),
    ("exchange of directories", |root, _| exchange(root.join("d"), root.join("e"))),
    ("exchange of directories below others", |root, _| exchange(root.join("d/sub"), root.join("e/sub"))),
    ("rename of a directory", |root, _| fs::rename(root.join("d"), root.join("other")).unwrap()),
    ("another directory in its place", |root, _| {
        fs::remove_dir_all(root.join("d/sub")).unwrap();
        fs::rename(root.join("e/sub"), root.join("d/sub")).unwrap();
    }),
    ("another file in its place", |root, _| replace(&root.join("d/f"))),
    ("link", |root, _| fs::hard_link(root.join("d/f"), root.join("e/another")).unwrap()),
    ("write through another name", |root, _| {
        fs::write(root.join("e/linked"), "two").unwrap();
        fs::remove_file(root.join("d/linked")).unwrap();
    }),
    ("unlink", |root, _| fs::remove_file(root.join("d/f")).unwrap()),
    ("unlink of what lies below", |root, _| fs::remove_file(root.join("low/f")).unwrap()),
    ("directory for what lies below", |root, _| {
        fs::remove_dir_all(root.join("low")).unwrap();
        fs::create_dir(root.join("low")).unwrap();
    }),
    ("node", |root, _| mknodat(CWD, root.join("d/node"), FileType::CharacterDevice, Mode::RUSR, 259).unwrap()),
    ("link in place of a file", |root, _| {
        fs::remove_file(root.join("d/f")).unwrap();
        symlink("nowhere", root.join("d/f")).unwrap();
    }),
];

fn fill(root: &Path) {
    for name in ["d", "d/sub", "e", "e/sub"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("f"), vec![b'0'; 2 * PAGE]).unwrap();
    }
    for name in ["d/g", "d/held", "d/linked"] {
        fs::write(root.join(name), vec![b'g'; 3 * PAGE]).unwrap();
    }
    xattr::set(root.join("d/g"), "user.g", b"g").unwrap();
    fs::hard_link(root.join("d/linked"), root.join("e/linked")).unwrap();
    symlink("f", root.join("d/link")).unwrap();
}

type Tree = BTreeMap<PathBuf, tree::Node>;

/// What of a tree is below a directory.
fn below(tree: &Tree, directory: &str) -> Tree {
    tree.iter()
        .filter(|(path, _)| path.starts_with(directory))
        .map(|(path, node)| (path.clone(), node.clone()))
        .collect()
}

/// Makes each of the changes in a directory of its own, all at one moment.
fn check(home: &Path) {
    let at = |name: &str| home.join(name);
    for name in ["base", "layer", "work", "copy"] {
        fs::create_dir(at(name)).unwrap();
    }
    for (name, _) in CHANGES {
        fs::create_dir_all(at("base").join(name).join("low")).unwrap();
        fs::write(at("base").join(name).join("low/f"), vec![b'l'; PAGE]).unwrap();
    }
    let overlay = Overlay::writable(&at("layer"), &at("work"), &[&at("base")], OverlayClass::Trusted);
    let root = |name: &str| overlay.root().join(name);
    fs::create_dir(root("many")).unwrap();
    // More than one look takes.
    for n in 0..700 {
        fs::write(root("many").join(n.to_string()), []).unwrap();
    }
    CHANGES.iter().for_each(|(name, _)| fill(&root(name)));
    let held: Vec<_> = CHANGES.iter().map(|(name, _)| Held::new(&root(name).join("d/held"))).collect();
    sleep(SURE);
    let mut copy = LayerCopy::new(&at("layer"), &at("copy"), OverlayClass::Trusted).unwrap();
    copy.pass(Upper::Living, &|_| Ok(())).unwrap();
    copy.get_ready();
    let before = tree::read(&at("layer"));
    CHANGES.iter().zip(&held).for_each(|((name, change), held)| change(&root(name), held));
    copy.pass(Upper::Still, &|_| Ok(())).unwrap();
    let (layer, copied) = (tree::read(&at("layer")), tree::read(&at("copy")));
    for (name, _) in CHANGES {
        let [before, layer, copied] = [&before, &layer, &copied].map(|tree| below(tree, name));
        assert!(before != layer, "{name} changes nothing");
        let differ = layer.iter().filter(|(path, node)| copied.get(*path) != Some(node)).map(|(path, _)| path);
        let more = copied.keys().filter(|path| !layer.contains_key(*path));
        assert!(layer == copied, "{name}: {:?}", differ.chain(more).collect::<Vec<_>>());
    }
    tree::assert_same(&layer, &copied);
}

#[test]
fn whatever_way_a_file_changed_it_is_in_the_copy() {
    check(tempfile::tempdir().unwrap().path());
}

#[test]
fn whatever_way_a_file_changed_it_is_in_the_copy_also_where_blocks_are_shared() {
    for disk in Disk::all() {
        check(tempfile::tempdir_in(&disk.point).unwrap().path());
    }
}

/// With fewer descriptors than files, the others are asked for by their names.
#[test]
fn nothing_is_missed_where_few_files_may_be_open() {
    let name = "whatever_way_a_file_changed_it_is_in_the_copy";
    for most in [200, 1024 + 300] {
        let mut again = Command::new("prlimit");
        again.arg(format!("--nofile={most}:{most}")).arg(std::env::current_exe().unwrap());
        let output = again.args(["--exact", name]).output().unwrap();
        assert!(output.status.success(), "{most}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// In a process of its own, for others raise it meanwhile: the limit that it had is its own again afterwards, so that what it
/// starts has no other.
#[test]
fn the_limit_of_open_files_is_as_it_was_afterwards() {
    const ALONE: &str = "REGEN_OCI_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.env(ALONE, "1").args(["--exact", "the_limit_of_open_files_is_as_it_was_afterwards"]);
        let output = again.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::create_dir(at("layer")).unwrap();
    fs::create_dir(at("copy")).unwrap();
    fs::write(at("layer/f"), "f").unwrap();
    let limit = || getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(1100), ..limit() }).unwrap();
    let before = limit();
    sleep(SURE);
    let mut copy = LayerCopy::new(&at("layer"), &at("copy"), OverlayClass::Trusted).unwrap();
    copy.pass(Upper::Living, &|_| Ok(())).unwrap();
    copy.get_ready();
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    assert!(open.any(|path| path.ends_with("layer/f")), "the file is open");
    assert_ne!(limit(), before);
    copy.pass(Upper::Still, &|_| Ok(())).unwrap();
    drop(copy);
    assert_eq!(limit(), before);
}
