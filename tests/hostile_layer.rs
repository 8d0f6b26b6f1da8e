//! Layers that were made to do harm, and odd ones that were not: nothing outside of the directory changes, and each
//! refusal is one line that names the layer and the entry.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use regen::error::{Kind, Result};
use regen::ids::Digest;
use regen::pack::{Compression, Expected, Files, Limits, Unpacked, unpack_layer};
use regen::sys::xattr::OverlayClass;
use sha2::Digest as _;
use tar::{EntryType, Header};

const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_entries: 100, files: Files::Layer };
const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;

/// A directory to unpack into, beside one that nothing may touch.
struct Yard(tempfile::TempDir);

impl Yard {
    fn new() -> Self {
        let yard = Self(tempfile::tempdir().unwrap());
        fs::create_dir(yard.at("")).unwrap();
        fs::create_dir(yard.0.path().join("outside")).unwrap();
        fs::write(yard.0.path().join("outside/secret"), b"secret").unwrap();
        yard
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join("into").join(path)
    }

    fn unpack(&self, tar: &[u8]) -> Result<Unpacked> {
        self.unpack_blob(tar, Compression::None)
    }

    fn unpack_blob(&self, bytes: &[u8], compression: Compression) -> Result<Unpacked> {
        let expected = Expected { digest: digest(bytes), diff_id: None };
        unpack_layer(&blob(bytes), &expected, compression, OverlayClass::Trusted, &LIMITS, &self.at(""))
    }

    fn assert_outside_untouched(&self, case: &str) {
        let outside = self.0.path().join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{case}: something was put outside");
        let secret = fs::metadata(outside.join("secret")).unwrap();
        assert_eq!((secret.nlink(), secret.len()), (1, 6), "{case}: the secret was reached");
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 2, "{case}: something was put beside");
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(sha2::Sha256::digest(bytes).into())
}

fn blob(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn header(path: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header
}

fn finish(mut header: Header, data: &[u8]) -> Vec<u8> {
    header.set_cksum();
    let mut bytes = [header.as_bytes().as_slice(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn entry(path: &str, kind: EntryType, data: &[u8]) -> Vec<u8> {
    finish(header(path.as_bytes(), kind, data.len() as u64), data)
}

fn link(path: &str, kind: EntryType, target: &str) -> Vec<u8> {
    let mut header = header(path.as_bytes(), kind, 0);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    finish(header, b"")
}

fn with(path: &str, kind: EntryType, change: impl Fn(&mut Header)) -> Vec<u8> {
    let mut header = header(path.as_bytes(), kind, 0);
    change(&mut header);
    finish(header, b"")
}

fn device(path: &str, major: u32, minor: u32) -> Vec<u8> {
    with(path, EntryType::Char, |header| {
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
    })
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).find(|length: &usize| *length == rest + length.to_string().len()).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn records(list: &[(&str, &[u8])]) -> Vec<u8> {
    entry("records", EntryType::XHeader, &list.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<_>>())
}

fn sparse(path: &str, size: u64, map: &str, data: u64) -> Vec<u8> {
    let (size, name) = (size.to_string(), path.as_bytes());
    let records = records(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", name),
        ("GNU.sparse.realsize", size.as_bytes()),
    ]);
    let mut content = map.as_bytes().to_vec();
    content.resize(content.len().next_multiple_of(512), 0);
    content.resize(content.len() + data as usize, b'd');
    [records, entry("GNUSparseFile.0/x", FILE, &content)].concat()
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), end()].concat()
}

/// What a case is called, the stream, the entry that the line must name, and words that it must have.
type Case = (&'static str, Vec<u8>, &'static str, &'static str);

fn escapes() -> Vec<Case> {
    let dot = || entry("in/", DIRECTORY, b"");
    let outside = |path: &str| link(path, EntryType::Symlink, "../outside");
    vec![
        ("parent", tar(&[entry("../outside/new", FILE, b"x")]), "../outside/new", "'..'"),
        ("hidden parent", tar(&[dot(), entry("in/../../outside/new", FILE, b"x")]), "in/../../outside/new", "'..'"),
        ("absolute", tar(&[entry("/outside", FILE, b"x")]), "/outside", "absolute"),
        ("symlink parent", tar(&[outside("s"), entry("s/new", FILE, b"x")]), "s/new", "not a directory"),
        ("mkdir through it", tar(&[outside("s"), entry("s/new/", DIRECTORY, b"")]), "s/new/", "not a directory"),
        (
            "whiteout through it",
            tar(&[outside("s"), entry("s/.wh.secret", FILE, b"")]),
            "s/.wh.secret",
            "not a directory",
        ),
        (
            "opaque through it",
            tar(&[outside("s"), entry("s/.wh..wh..opq", FILE, b"")]),
            "s/.wh..wh..opq",
            "not a directory",
        ),
        (
            "directory becomes link",
            tar(&[dot(), outside("in"), entry("in/new", FILE, b"x")]),
            "in/new",
            "not a directory",
        ),
        (
            "deep one becomes link",
            tar(&[dot(), entry("in/a/b", FILE, b"x"), outside("in/a"), entry("in/a/b", FILE, b"y")]),
            "in/a/b",
            "not a directory",
        ),
    ]
}

fn links() -> Vec<Case> {
    let hard = |target: &str| link("in/hard", EntryType::Link, target);
    let outside = |path: &str| link(path, EntryType::Symlink, "../outside");
    vec![
        ("hard link to parent", tar(&[hard("../outside/secret")]), "in/hard", "'..'"),
        ("hard link to absolute", tar(&[hard("/etc/passwd")]), "in/hard", "absolute"),
        ("hard link through link", tar(&[outside("s"), hard("s/secret")]), "in/hard", "does not hold"),
        (
            "hard link through a link on the way",
            tar(&[link("up", EntryType::Symlink, ".."), hard("up/outside/secret")]),
            "in/hard",
            "does not hold",
        ),
        ("hard link to nothing", tar(&[hard("nothing")]), "in/hard", "does not hold"),
        ("hard link to directory", tar(&[entry("in/", DIRECTORY, b""), hard("in")]), "in/hard", "no file"),
        ("hard link to whiteout", tar(&[entry(".wh.x", FILE, b""), hard("x")]), "in/hard", "no file"),
    ]
}

fn hidden_names() -> Vec<Case> {
    vec![
        (
            "smuggled path",
            tar(&[records(&[("REGEN.path", b"etc/shadow")]), entry("innocent", FILE, b"x")]),
            "innocent",
            "does not fit",
        ),
        ("smuggled parent", tar(&[records(&[("REGEN.path", b"../outside/new")]), entry("x", FILE, b"x")]), "x", "'..'"),
        (
            "smuggled target",
            tar(&[entry("a", FILE, b"x"), records(&[("REGEN.linkpath", b"b")]), link("h", EntryType::Link, "a")]),
            "h",
            "does not fit",
        ),
        ("NUL in a path", tar(&[records(&[("path", b"a\0b")]), entry("x", FILE, b"")]), "a\\0b", "NUL"),
        (
            "parent by record",
            tar(&[records(&[("path", b"../outside/new")]), entry("x", FILE, b"")]),
            "../outside/new",
            "'..'",
        ),
        (
            "parent by long name",
            tar(&[entry("l", EntryType::GNULongName, b"../outside/new\0"), entry("x", FILE, b"")]),
            "../outside/new",
            "'..'",
        ),
    ]
}

fn meanings() -> Vec<Case> {
    vec![
        ("whiteout of nothing", tar(&[entry(".wh.", FILE, b"")]), ".wh.", "no name"),
        ("opaque root", tar(&[entry(".wh..wh..opq", FILE, b"")]), ".wh..wh..opq", "opaque root"),
        ("whiteout of itself", tar(&[entry("a/.wh..", FILE, b"")]), "a/.wh..", "no name"),
        ("whiteout of the parent", tar(&[entry("a/.wh...", FILE, b"")]), "a/.wh...", "no name"),
        ("below a whiteout", tar(&[entry(".wh.a/b", FILE, b"")]), ".wh.a/b", "below a whiteout"),
        ("whiteout as a device", tar(&[device("w", 0, 0)]), "w", "0:0"),
        ("unknown type", tar(&[entry("z", EntryType::new(b'Z'), b"")]), "z", "unknown type 0x5a"),
        ("root as a file", tar(&[entry("./", EntryType::Fifo, b"")]), "./", "root"),
        (
            "long component",
            tar(&[records(&[("path", &[b'n'; 256])]), entry("x", FILE, b"")]),
            "nnnn",
            "file name too long",
        ),
    ]
}

fn numbers() -> Vec<Case> {
    let negative = with("n", FILE, |header| header.as_old_mut().size = [0xff; 12]);
    let huge = with("n", FILE, |header| {
        header.as_old_mut().size = [0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    });
    let mut unsigned = header(b"n", FILE, 0);
    unsigned.set_cksum();
    unsigned.as_old_mut().mode[0] = b'7';
    vec![
        ("negative size", tar(&[negative]), "n", "negative"),
        ("huge size", tar(&[huge]), "n", "allowed"),
        (
            "size out of range",
            tar(&[records(&[("size", b"9223372036854775808")]), entry("n", FILE, b"")]),
            "n",
            "range",
        ),
        ("size that is none", tar(&[records(&[("size", b"-1")]), entry("n", FILE, b"")]), "records", "number"),
        (
            "owner that means nobody",
            tar(&[records(&[("uid", b"4294967295")]), entry("n", FILE, b"")]),
            "records",
            "owner",
        ),
        (
            "letters for a mode",
            tar(&[with("n", FILE, |header| header.as_old_mut().mode = *b"abcdefg\0")]),
            "n",
            "number",
        ),
        ("time out of range", tar(&[records(&[("mtime", b"9e9")]), entry("n", FILE, b"")]), "records", "number"),
        ("wrong sum", [unsigned.as_bytes().as_slice(), &end()].concat(), "", "sum"),
        ("not a tar stream", vec![b'x'; 2048], "", "number"),
        (
            "records of absurd size",
            tar(&[with("r", EntryType::XHeader, |header| header.set_size(1 << 32))]),
            "r",
            "absurd",
        ),
        (
            "long name of absurd size",
            tar(&[with("r", EntryType::GNULongName, |header| header.set_size(1 << 32))]),
            "r",
            "absurd",
        ),
        (
            "malformed records",
            tar(&[entry("r", EntryType::XHeader, b"99 a=b\n"), entry("n", FILE, b"")]),
            "r",
            "record",
        ),
        ("truncated content", entry("n", FILE, &[b'x'; 700])[..1000].to_vec(), "n", "too early"),
        ("truncated header", entry("n", FILE, b"")[..300].to_vec(), "", "too early"),
        ("truncated records", records(&[("path", b"n")])[..515].to_vec(), "records", "too early"),
        ("something after the end", [tar(&[entry("n", FILE, b"")]), b"more".to_vec()].concat(), "after 'n'", "follows"),
    ]
}

fn bombs() -> Vec<Case> {
    let chunk = vec![b'x'; 400 << 10];
    let files: Vec<_> = ["a", "b", "c"].iter().map(|path| entry(path, FILE, &chunk)).collect();
    let many: Vec<_> = (0..101).map(|index| entry(&format!("f{index}"), FILE, b"")).collect();
    let globals = vec![entry("g", EntryType::XGlobalHeader, b""); 101];
    vec![
        ("one big file", tar(&[with("bomb", FILE, |header| header.set_size(10_000_000_000))]), "bomb", "1048576 bytes"),
        ("files that are too big together", tar(&files), "c", "1048576 bytes"),
        ("sparse data", tar(&[sparse("s", 1 << 40, "1\n0\n1100000\n", 1_100_000)]), "s", "1048576 bytes"),
        ("too many entries", tar(&many), "", "more than are allowed"),
        ("too many that are no entries", tar(&globals), "", "more than are allowed"),
        ("overlapping pieces", tar(&[sparse("s", 100, "2\n0\n50\n40\n10\n", 60)]), "s", "overlap"),
        ("a piece outside", tar(&[sparse("s", 100, "1\n90\n20\n", 20)]), "s", "outside"),
        ("a map without end", tar(&[sparse("s", 100, "3\n0\n50", 0)]), "s", "does not end"),
        ("a map of absurd length", tar(&[sparse("s", 100, "999999999999\n", 0)]), "s", "too many"),
        ("pieces without data", tar(&[sparse("s", 100, "1\n0\n50\n", 20)]), "s", "as long as"),
        ("a file that no file system takes", tar(&[sparse("s", 1 << 62, "1\n0\n20\n", 20)]), "s", "file too large"),
    ]
}

#[test]
fn hostile_entries_are_refused_in_one_line_and_change_nothing() {
    for (case, bytes, path, words) in [escapes(), links(), hidden_names(), meanings(), numbers(), bombs()].concat() {
        let yard = Yard::new();
        let error = yard.unpack(&bytes).expect_err(case);
        let line = error.to_string();

        let layer = &digest(&bytes).hex()[..12];
        assert!(line.contains(layer) && line.contains(path) && line.contains(words), "{case}: {line}");
        assert!(!line.contains('\n'), "{case}: {line}");
        yard.assert_outside_untouched(case);
    }
}

#[test]
fn a_wrong_digest_is_found_before_anything_is_written() {
    let yard = Yard::new();
    let bytes = tar(&[entry("a", FILE, b"x")]);
    let expected = Expected { digest: digest(b"other"), diff_id: None };
    let unpack = |expected: &Expected| {
        unpack_layer(&blob(&bytes), expected, Compression::None, OverlayClass::Trusted, &LIMITS, &yard.at(""))
    };
    let error = unpack(&expected).unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("verify its digest"), "{error}");
    assert_eq!(fs::read_dir(yard.at("")).unwrap().count(), 0);
    let expected = Expected { digest: digest(&bytes), diff_id: Some(digest(b"other")) };
    assert!(unpack(&expected).unwrap_err().to_string().contains("the tar stream is"));
}

#[test]
fn damaged_compression_is_an_error_at_every_cut() {
    let bytes = tar(&[entry("a", FILE, &[b'x'; 5000])]);
    let packed = zstd::bulk::compress(&bytes, 1).unwrap();
    let yard = Yard::new();
    yard.unpack_blob(&packed, Compression::Zstd).unwrap();
    for cut in 1..packed.len() {
        let error = Yard::new().unpack_blob(&packed[..cut], Compression::Zstd).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "{cut}: {error}");
    }
    let garbage = [packed.as_slice(), b"garbage"].concat();
    assert_eq!(Yard::new().unpack_blob(&garbage, Compression::Zstd).unwrap_err().kind(), Kind::Damaged);
    let error = Yard::new().unpack_blob(&packed, Compression::Gzip).unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    xattr::get(path, "trusted.overlay.opaque").unwrap().as_deref() == Some(b"y")
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let yard = Yard::new();
    let entries = [
        entry("d/inner", FILE, b"gone"),
        entry("d", FILE, b"file"),
        link("s", EntryType::Symlink, "../outside/secret"),
        entry("s", FILE, b"not through the link"),
        entry("e/kept", FILE, b"kept"),
        with("e/", DIRECTORY, |header| header.set_mode(0o700)),
        entry("f", FILE, b"file"),
        entry("f/", DIRECTORY, b""),
        link("h", EntryType::Link, "d"),
        link("h", EntryType::Link, "h"),
    ];
    yard.unpack(&tar(&entries)).unwrap();
    assert_eq!(fs::read(yard.at("d")).unwrap(), b"file");
    assert_eq!(fs::read(yard.at("s")).unwrap(), b"not through the link");
    assert_eq!(fs::read(yard.at("e/kept")).unwrap(), b"kept");
    let directory = fs::metadata(yard.at("e")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o700, 1_000_000_000));
    assert!(yard.at("f").is_dir());
    assert_eq!(fs::metadata(yard.at("h")).unwrap().ino(), fs::metadata(yard.at("d")).unwrap().ino());
    yard.assert_outside_untouched("the last entry");
}

#[test]
fn missing_parents_are_made_for_everybody_to_read() {
    let yard = Yard::new();
    yard.unpack(&tar(&[entry("a/b/c", FILE, b"x"), entry("a/.wh.d", FILE, b"")])).unwrap();
    for path in ["a", "a/b"] {
        let directory = fs::metadata(yard.at(path)).unwrap();
        assert_eq!((directory.mode() & 0o7777, directory.uid(), directory.mtime()), (0o755, 0, 0), "{path}");
    }
    assert!(is_whiteout(&yard.at("a/d")));
}

#[test]
fn whiteouts_are_about_the_layers_below_in_any_order() {
    let yard = Yard::new();
    let entries = [
        entry(".wh.first", FILE, b""),
        entry("first/", DIRECTORY, b""),
        entry("second/x", FILE, b"x"),
        entry(".wh.second", FILE, b""),
        entry(".wh.third", FILE, b""),
        entry("third", FILE, b"x"),
        entry("fourth", FILE, b"x"),
        entry(".wh.fourth", FILE, b""),
        entry(".wh.fifth", FILE, b""),
        entry("fifth/x", FILE, b"x"),
        entry("sixth/.wh..wh..opq", FILE, b""),
        entry("sixth/x", FILE, b""),
    ];
    yard.unpack(&tar(&entries)).unwrap();
    for path in ["first", "second", "fifth", "sixth"] {
        assert!(is_opaque(&yard.at(path)), "{path}");
    }
    assert!(yard.at("third").is_file() && yard.at("fourth").is_file() && yard.at("second/x").is_file());
}

#[test]
fn overlay_attributes_and_labels_of_a_pack_are_not_set() {
    let yard = Yard::new();
    let names = ["trusted.overlay.opaque", "user.overlay.opaque", "trusted.overlay.overlay.opaque", "security.selinux"];
    let list: Vec<_> = names.iter().map(|name| (format!("SCHILY.xattr.{name}"), b"y".as_slice())).collect();
    let mut list: Vec<(&str, &[u8])> = list.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    list.push(("SCHILY.xattr.user.kept", b"a\nb"));
    yard.unpack(&tar(&[records(&list), entry("d/", DIRECTORY, b"")])).unwrap();
    let found: Vec<_> = xattr::list(yard.at("d")).unwrap().collect();
    assert_eq!(found, ["user.kept"]);
    assert_eq!(xattr::get(yard.at("d"), "user.kept").unwrap().unwrap(), b"a\nb");
}

#[test]
fn layers_of_older_tools_are_understood() {
    let yard = Yard::new();
    let long = [&[b'l'; 200], b"\0".as_slice()].concat();
    let mut old = Header::new_gnu();
    old.as_old_mut().name[..1].copy_from_slice(b"s");
    old.set_entry_type(EntryType::GNUSparse);
    old.set_mode(0o600);
    old.set_uid(0);
    old.set_gid(0);
    old.set_mtime(0);
    old.set_size(3);
    let gnu = old.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 30);
    gnu.sparse[0].set_offset(4096);
    gnu.sparse[0].set_length(3);
    let entries = [
        entry("pax_global_header", EntryType::XGlobalHeader, &record("comment", b"x")),
        entry("v7/", EntryType::Regular, b""),
        entry("name", EntryType::GNULongName, &long),
        entry("short", FILE, b"long"),
        entry(".wh..wh.plnk/1.2", FILE, b""),
        finish(old, b"abc"),
        device("null", 1, 3),
    ];
    yard.unpack(&entries.concat()).unwrap();
    assert!(yard.at("v7").is_dir());
    assert_eq!(fs::read(yard.at(&"l".repeat(200))).unwrap(), b"long");
    assert!(!yard.at(".wh..wh.plnk").exists());
    let sparse = fs::metadata(yard.at("s")).unwrap();
    assert_eq!((sparse.len(), sparse.blocks() < 100), (1 << 30, true));
    assert_eq!(fs::symlink_metadata(yard.at("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    let names: Vec<_> = fs::read_dir(yard.at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.as_bytes() == b"short"));
}
