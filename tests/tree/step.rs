//! Random changes of a tree, as a program may make them; those that the kernel refuses change nothing.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};

/// A base that the steps change, rename and delete from.
pub fn fill_base(root: &Path) {
    for name in ["a", "dir", "dir/b"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("a"), name).unwrap();
    }
    fs::write(root.join("b"), b"base").unwrap();
    symlink("b", root.join("a/b")).unwrap();
}

/// Indices of names, from the root down.
type Place = Vec<usize>;

#[derive(Debug, Clone)]
pub enum Step {
    Write(Place, usize, u8),
    Sparse(Place, u64, u64),
    Directory(Place),
    Remove(Place),
    Rename(Place, Place),
    Link(Place, Place),
    Symlink(Place, usize),
    Node(Place, usize),
    Mode(Place, u32),
    Owner(Place, u32, u32),
    Time(Place, i64, i64),
    Attribute(Place, usize, Vec<u8>),
    Acl(Place, usize, u32),
    Capability(Place, u32),
    Opaque(Place),
}

const ATTRIBUTES: [&str; 4] = ["user.plain", "user.a=b%3D%", "trusted.\u{fc}", "user.overlay.private"];

fn names() -> [Vec<u8>; 10] {
    [
        b"a".to_vec(),
        b"b".to_vec(),
        b"dir".to_vec(),
        b".wh.a".to_vec(),
        b".wh..wh..opq".to_vec(),
        b"\xff\xfe".to_vec(),
        vec![b'n'; 255],
        b".regen.wh-0123456789abcdef".to_vec(),
        b"new\nline \\".to_vec(),
        b"=%".to_vec(),
    ]
}

fn path(root: &Path, place: &Place) -> PathBuf {
    let names = names();
    place.iter().fold(root.to_owned(), |path, index| path.join(OsStr::from_bytes(&names[*index])))
}

fn place() -> impl Strategy<Value = Place> {
    // Mostly the first names, so that steps meet each other.
    vec(prop_oneof![3 => 0..3usize, 1 => 0..10usize], 1..4)
}

fn existing() -> impl Strategy<Value = Place> {
    prop_oneof![8 => place(), 1 => Just(Vec::new())]
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let seconds = prop_oneof![-2_000_000_000..10_000_000_000i64, -3..3i64];
    let id = || prop_oneof![0..3u32, 65_530..65_540u32, 2_097_150..2_097_154u32, Just(4_294_967_294u32)];
    let size = prop_oneof![Just(0usize), 1..1030usize, 100_000..200_000usize];
    let step = prop_oneof![
        4 => (place(), size, any::<u8>()).prop_map(|(place, size, seed)| Step::Write(place, size, seed)),
        1 => (place(), 0..1u64 << 41, 0..1u64 << 20).prop_map(|(place, at, more)| Step::Sparse(place, at, more)),
        4 => place().prop_map(Step::Directory),
        2 => place().prop_map(Step::Remove),
        1 => (place(), place()).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (place(), place()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => (place(), 1..4000usize).prop_map(|(place, length)| Step::Symlink(place, length)),
        2 => (place(), 0..5usize).prop_map(|(place, kind)| Step::Node(place, kind)),
        2 => (existing(), 0..0o10000u32).prop_map(|(place, mode)| Step::Mode(place, mode)),
        2 => (existing(), id(), id()).prop_map(|(place, uid, gid)| Step::Owner(place, uid, gid)),
        2 => (existing(), seconds, 0..1_000_000_000i64).prop_map(|(place, at, rest)| Step::Time(place, at, rest)),
        2 => (existing(), 0..ATTRIBUTES.len(), vec(any::<u8>(), 0..300))
            .prop_map(|(place, name, value)| Step::Attribute(place, name, value)),
        1 => (existing(), 0..2usize, id()).prop_map(|(place, which, user)| Step::Acl(place, which, user)),
        1 => (place(), 0..2u32).prop_map(|(place, root)| Step::Capability(place, root * 100_000)),
        1 => place().prop_map(Step::Opaque),
    ];
    vec(step, 1..80)
}

/// Makes the changes. Most fail now and then, for what they are about is not there: that is part of the game.
pub fn apply(root: &Path, steps: &[Step]) {
    for step in steps {
        let _ = take(root, step);
    }
}

fn take(root: &Path, step: &Step) -> std::io::Result<()> {
    let at = |place: &Place| path(root, place);
    match step {
        Step::Write(place, size, seed) => {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).custom_flags(NONBLOCK).open(at(place))?;
            file.write_all(&(0..*size).map(|index| (index / 7) as u8 ^ seed).collect::<Vec<_>>())
        }
        Step::Sparse(place, offset, more) => {
            let file =
                OpenOptions::new().write(true).create(true).truncate(false).custom_flags(NONBLOCK).open(at(place))?;
            file.write_all_at(b"data", *offset)?;
            file.set_len(offset + 4 + more)
        }
        Step::Directory(place) => fs::create_dir(at(place)),
        Step::Remove(place) => fs::remove_dir_all(at(place)).or_else(|_| fs::remove_file(at(place))),
        Step::Rename(from, to) => fs::rename(at(from), at(to)),
        Step::Link(from, to) => fs::hard_link(at(from), at(to)),
        Step::Symlink(place, length) => symlink("/t".repeat(length.div_ceil(2)), at(place)),
        Step::Node(place, kind) => node(&at(place), *kind),
        Step::Mode(place, mode) => fs::set_permissions(at(place), Permissions::from_mode(*mode)),
        Step::Owner(place, uid, gid) => lchown(at(place), Some(*uid), Some(*gid)),
        Step::Time(place, seconds, rest) => {
            let time = Timespec { tv_sec: *seconds, tv_nsec: *rest };
            let times = Timestamps { last_access: time, last_modification: time };
            Ok(utimensat(CWD, at(place), &times, AtFlags::SYMLINK_NOFOLLOW)?)
        }
        Step::Attribute(place, name, value) => xattr::set(at(place), ATTRIBUTES[*name], value),
        Step::Acl(place, which, user) => {
            let name = ["system.posix_acl_access", "system.posix_acl_default"][*which];
            xattr::set(at(place), name, &acl(*user))
        }
        Step::Capability(place, root_id) => xattr::set(at(place), "security.capability", &capability(*root_id)),
        Step::Opaque(place) => xattr::set(at(place), "trusted.overlay.opaque", b"y"),
    }
}

/// A fifo must not hold the test up.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

fn node(path: &Path, kind: usize) -> std::io::Result<()> {
    let make = |kind, device| Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device)?);
    match kind {
        0 => make(FileType::Fifo, 0),
        1 => make(FileType::CharacterDevice, makedev(1, 3)),
        2 => make(FileType::BlockDevice, makedev(4095, 1_048_575)),
        // A whiteout; through an overlay, nobody can make one.
        3 => make(FileType::CharacterDevice, 0),
        _ => File::create_new(path).map(drop),
    }
}

/// `u::rw-, u:USER:rwx, g::r--, m::rwx, o::---` as the kernel takes it.
fn acl(user: u32) -> Vec<u8> {
    let entries = [(1u16, 6u16, u32::MAX), (2, 7, user), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// `cap_net_raw+ep`, for the root of the initial user namespace or of another.
fn capability(root_id: u32) -> Vec<u8> {
    let revision: u32 = if root_id == 0 { 0x0200_0001 } else { 0x0300_0001 };
    let mut words = vec![revision, 1 << 13, 0, 0, 0];
    if root_id != 0 {
        words.push(root_id);
    }
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
