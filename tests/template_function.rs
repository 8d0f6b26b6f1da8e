//! Functions that are dropped into clones: what is shown of a directory, a tar file and an image, what is refused, what is
//! shared, and what goes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::World;
use harness::image::{Form, Layout, Tar};
use regen::config::{Config, Size};
use regen::error::{Error, Kind};
use regen::ops::{Place, function};
use regen::runtime::StateRoot;
use regen::store::Store;
use regen::sys::fs::by_descriptor;
use serde_json::json;
use tar::EntryType;

fn place(world: &World) -> Place {
    let mut config = Config::default();
    config.template.max_function_bytes = Size(1 << 20);
    Place {
        root: StateRoot::new(world.root()),
        store: world.store(),
        config,
        config_file: None,
        owner: "root".parse().unwrap(),
    }
}

fn archive(world: &World, name: &str, tar: Tar) -> PathBuf {
    let path = world.base().join(name);
    fs::write(&path, tar.finish()).unwrap();
    path
}

fn content(mount: &OwnedFd, name: &str) -> String {
    fs::read_to_string(by_descriptor(mount).join(name)).unwrap()
}

fn unpacked(world: &World) -> Vec<String> {
    harness::ring::names(&world.store().join("functions"))
}

/// What the kernel says to somebody who writes there.
fn write_error(mount: &OwnedFd) -> i32 {
    File::create(by_descriptor(mount).join("new")).unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_directory_is_shown_as_it_is_and_cannot_be_written() {
    let world = World::new("fn-dir");
    let directory = world.base().join("function");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("app.py"), "one").unwrap();
    let mount = function::open(&place(&world), &directory).unwrap();
    assert_eq!(content(&mount, "app.py"), "one");
    fs::write(directory.join("app.py"), "two").unwrap();
    assert_eq!(content(&mount, "app.py"), "two");
    assert_eq!(write_error(&mount), nix::errno::Errno::EROFS as i32);
    let flags = nix::sys::statvfs::fstatvfs(&mount).unwrap().flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID | nix::sys::statvfs::FsFlags::ST_NODEV), "{flags:?}");
    assert!(!world.store().exists(), "a directory needs no store");
}

#[test]
fn a_tar_file_is_unpacked_once_however_it_is_called_or_compressed() {
    let world = World::new("fn-tar");
    let place = place(&world);
    let plain = archive(&world, "f.tar", Tar::new().file("app.py", b"hello").symlink("l", "app.py"));
    let compress = |program: &str, suffix: &str| {
        let mut command = Command::new(program);
        command.args(["-k", "-q", "-f"]).arg(&plain);
        world.finish(command).success();
        plain.with_extension(format!("tar.{suffix}"))
    };
    let (gzip, zstd) = (compress("gzip", "gz"), compress("zstd", "zst"));
    let copy = world.base().join("copy");
    fs::copy(&plain, &copy).unwrap();
    for path in [&plain, &gzip, &zstd, &copy, &plain] {
        let mount = function::open(&place, path).unwrap();
        assert_eq!((content(&mount, "app.py").as_str(), content(&mount, "l").as_str()), ("hello", "hello"), "{path:?}");
        assert_eq!(write_error(&mount), nix::errno::Errno::EROFS as i32);
    }
    assert_eq!(unpacked(&world).len(), 3, "one for each sequence of bytes");
}

#[test]
fn many_who_bring_the_same_tar_file_at_once_share_it() {
    let world = World::new("fn-race");
    let place = place(&world);
    let path = archive(&world, "f.tar", Tar::new().file("app.py", &[b'x'; 100_000]));
    std::thread::scope(|threads| {
        for _ in 0..16 {
            threads.spawn(|| assert_eq!(content(&function::open(&place, &path).unwrap(), "app.py").len(), 100_000));
        }
    });
    assert_eq!(unpacked(&world).len(), 1);
}

#[test]
fn what_would_do_harm_is_refused_in_one_line_and_leaves_nothing() {
    let world = World::new("fn-hostile");
    let place = place(&world);
    let kind = |kind, name| Tar::new().file("app.py", b"x").entry(kind, name, "", b"");
    let nonsense = world.base().join("nonsense");
    fs::write(&nonsense, b"this is no tar file, is it?".repeat(40)).unwrap();
    let cases = [
        ("climbs", Tar::new().file("../evil", b"x"), "a path with '..'"),
        ("absolute", Tar::new().file("/etc/evil", b"x"), "an absolute path"),
        ("link", Tar::new().symlink("l", "/etc/passwd"), "a symbolic link that leads out"),
        ("climbing link", Tar::new().symlink("a/l", "../../x"), "a symbolic link that leads out"),
        ("hard link", Tar::new().link("l", "/etc/passwd"), "an absolute path"),
        ("device", kind(EntryType::Block, "sda"), "a device"),
        ("terminal", kind(EntryType::Char, "tty"), "a device"),
        ("fifo", kind(EntryType::Fifo, "f"), "a fifo"),
        ("whiteout", kind(EntryType::Regular, ".wh.x"), "a mark for the layers below"),
        ("bomb", Tar::new().file("big", &vec![0; 2 << 20]), "more than the 1048576 bytes that are allowed"),
    ];
    let paths = cases.into_iter().map(|(name, tar, words)| (archive(&world, name, tar), words));
    for (path, words) in paths.chain([(nonsense.clone(), "open function")]) {
        let error = function::open(&place, &path).unwrap_err();
        let line = error.to_string();
        assert!(line.starts_with(&format!("open function '{}'", path.display())), "{line}");
        assert!(line.contains(words) && !line.contains('\n'), "{line}");
        assert!(matches!(error.kind(), Kind::Invalid | Kind::Damaged), "{line}");
        assert!(unpacked(&world).is_empty(), "{path:?}: {:?}", unpacked(&world));
    }
    // Compressed to nearly nothing.
    let path = archive(&world, "f.tar", Tar::new().file("big", &vec![0; 2 << 20]));
    let mut command = Command::new("gzip");
    command.args(["-f"]).arg(&path);
    world.finish(command).success();
    let error = function::open(&place, &path.with_extension("tar.gz")).unwrap_err();
    assert!(error.to_string().contains("bytes that are allowed"), "{error}");
    assert!(unpacked(&world).is_empty() && !world.base().join("evil").exists());
}

#[test]
fn what_is_not_there_or_no_function_is_named() {
    let world = World::new("fn-none");
    let place = place(&world);
    let line = |path: &Path| -> Error { function::open(&place, path).unwrap_err() };
    assert_eq!(line(Path::new("/nowhere")).to_string(), "open function '/nowhere': no such file or directory");
    assert!(line(Path::new("/dev/null")).to_string().contains("neither a directory nor a file"));
    assert!(line(Path::new("oci:/nowhere")).to_string().contains("open image"));
    let empty = world.base().join("empty");
    File::create(&empty).unwrap();
    assert!(line(&empty).to_string().ends_with("it is empty"));
}

#[test]
fn an_image_is_a_function_too() {
    let world = World::new("fn-image");
    let place = place(&world);
    let layout = Layout::new(world.base().join("images"));
    let file = |name: &str, content: &str| (Tar::new().file(name, content.as_bytes()), Form::Zstd);
    layout.image("one", vec![file("app.py", "one")], &json!({}));
    layout.image("two", vec![file("app.py", "one"), file("app.py", "two")], &json!({}));
    for tag in ["one", "two"] {
        let mount = function::open(&place, Path::new(&layout.reference(tag))).unwrap();
        assert_eq!(content(&mount, "app.py"), tag);
        assert_eq!(write_error(&mount), nix::errno::Errno::EROFS as i32);
    }
}

#[test]
fn a_function_goes_once_it_is_old_and_shown_nowhere() {
    let world = World::new("fn-gc");
    let place = place(&world);
    let paths = ["young", "old", "shown"].map(|name| archive(&world, name, Tar::new().file("name", name.as_bytes())));
    paths.iter().for_each(|path| drop(function::open(&place, path).unwrap()));
    let functions = world.store().join("functions");
    let named = |name: &str| {
        let ids = unpacked(&world).into_iter();
        ids.map(|id| functions.join(id)).find(|id| fs::read_to_string(id.join("diff/name")).unwrap() == name)
    };
    for name in ["old", "shown"] {
        let mut command = Command::new("touch");
        command.args(["-d", "2 days ago"]).arg(named(name).unwrap());
        world.finish(command).success();
    }
    // Where nobody but a process in a mount namespace of its own sees it.
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", r#"mount --bind "$1/diff" /mnt && echo there && exec sleep 1000"#, "sh"]);
    command.arg(named("shown").unwrap());
    let mut holder = world.spawn(command);
    holder.wait_for("there");
    let store = Store::open(&world.store()).unwrap();
    function::collect(&store).unwrap();
    assert!(named("young").is_some() && named("shown").is_some() && named("old").is_none(), "{:?}", unpacked(&world));
    holder.signal(nix::sys::signal::Signal::SIGKILL);
    holder.finish();
    function::collect(&store).unwrap();
    assert!(named("shown").is_none());
    // It is unpacked anew for who asks.
    assert_eq!(content(&function::open(&place, &paths[1]).unwrap(), "name"), "old");
}

#[test]
fn a_tar_file_that_changes_while_it_is_read_is_never_mistaken_for_another() {
    let world = World::new("fn-change");
    let place = place(&world);
    let path = world.base().join("f.tar");
    let bytes = |text: &str| Tar::new().file("name", text.as_bytes()).finish();
    let (stop, writer) = (std::sync::atomic::AtomicBool::new(false), path.clone());
    File::create(&path).unwrap().write_all(&bytes("a")).unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut file = File::options().write(true).open(&writer).unwrap();
            for text in ["b", "a"].iter().cycle() {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                std::io::Seek::rewind(&mut file).unwrap();
                file.write_all(&bytes(text)).unwrap();
            }
        });
        for _ in 0..200 {
            match function::open(&place, &path) {
                Ok(mount) => assert!(["a", "b"].contains(&content(&mount, "name").as_str())),
                Err(error) => assert!(matches!(error.kind(), Kind::Busy | Kind::Invalid | Kind::Damaged), "{error}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    // What is there has the digest that it is called by.
    for (text, other) in [("a", "b"), ("b", "a")] {
        fs::write(&path, bytes(text)).unwrap();
        let mount = function::open(&place, &path).unwrap();
        assert_ne!(content(&mount, "name"), other);
    }
}
