//! What counts as a change of a container's files, judged on uppers that the kernel wrote.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tree;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use regen::pack::{has_changes, has_changes_over};
use regen::sys::xattr::OverlayClass;
use tree::overlay::Overlay;

struct Run {
    directory: tempfile::TempDir,
    class: OverlayClass,
}

impl Run {
    /// A base, and an upper that `change` was made in through an overlay.
    fn new(class: OverlayClass, change: impl Fn(&Path)) -> Self {
        let run = Self { directory: tempfile::tempdir().unwrap(), class };
        for name in ["base/etc/conf.d", "base/var/log", "middle/etc", "upper", "work"] {
            fs::create_dir_all(run.at(name)).unwrap();
        }
        fs::write(run.at("base/etc/conf.d/file"), b"base").unwrap();
        fs::set_permissions(run.at("middle/etc"), Permissions::from_mode(0o711)).unwrap();
        xattr::set(run.at("base/var"), "user.note", b"base").unwrap();
        let lowers = [run.at("middle"), run.at("base")];
        let overlay = Overlay::writable(&run.at("upper"), &run.at("work"), &[&lowers[0], &lowers[1]], class);
        change(&overlay.root());
        drop(overlay);
        run
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn is_changed(&self, ignored: &[&str]) -> bool {
        let ignore = |path: &Path, _: &fs::Metadata| ignored.iter().any(|ignored| path == Path::new(ignored));
        let found = has_changes(&self.at("upper"), self.class, &ignore).unwrap();
        let (middle, base) = (self.at("middle"), self.at("base"));
        let compared = has_changes_over(&self.at("upper"), self.class, &[&middle, &base], &ignore).unwrap();
        assert!(compared || !found, "the comparison lost a change");
        compared
    }
}

fn mode(path: PathBuf, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn directories_that_were_only_copied_up_are_no_change() {
    for class in [OverlayClass::Trusted, OverlayClass::User] {
        assert!(!Run::new(class, |_| {}).is_changed(&[]));
        let run = Run::new(class, |root| {
            fs::write(root.join("etc/conf.d/new"), b"").unwrap();
            fs::remove_file(root.join("etc/conf.d/new")).unwrap();
            fs::create_dir(root.join("var/log/new")).unwrap();
            fs::remove_dir(root.join("var/log/new")).unwrap();
        });
        assert!(run.at("upper/etc/conf.d").is_dir() && run.at("upper/var/log").is_dir(), "nothing was copied up");
        assert!(!run.is_changed(&[]));
    }
}

#[test]
fn everything_that_a_program_leaves_is_a_change() {
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 9] = [
        ("new file", |root| fs::write(root.join("etc/conf.d/new"), b"").unwrap()),
        ("new empty directory", |root| fs::create_dir(root.join("etc/conf.d/new")).unwrap()),
        ("deleted file", |root| fs::remove_file(root.join("etc/conf.d/file")).unwrap()),
        ("deleted directory", |root| fs::remove_dir(root.join("var/log")).unwrap()),
        ("emptied directory", |root| {
            fs::remove_dir_all(root.join("etc/conf.d")).unwrap();
            fs::create_dir(root.join("etc/conf.d")).unwrap();
        }),
        ("mode of a file", |root| mode(root.join("etc/conf.d/file"), 0o600)),
        ("mode of a directory", |root| mode(root.join("etc/conf.d"), 0o700)),
        ("owner of a directory", |root| chown(root.join("etc"), Some(7), None).unwrap()),
        ("attribute of a directory", |root| xattr::set(root.join("var"), "user.note", b"new").unwrap()),
    ];
    for (case, change) in changes {
        // In a user namespace's overlay, programs see no attributes of the user class to change.
        for class in [OverlayClass::Trusted, OverlayClass::User] {
            assert!(Run::new(class, change).is_changed(&[]), "{case} in {class:?} is no change");
        }
    }
    assert!(Run::new(OverlayClass::Trusted, |root| mode(root.to_owned(), 0o700)).is_changed(&[]), "mode of the root");
}

#[test]
fn the_uppermost_directory_below_is_what_counts() {
    let touch = |root: &Path| mode(root.join("etc"), 0o711);
    assert!(!Run::new(OverlayClass::Trusted, touch).is_changed(&[]), "'middle' has that mode already");
    let touch = |root: &Path| mode(root.join("etc"), 0o755);
    assert!(Run::new(OverlayClass::Trusted, touch).is_changed(&[]), "'base' had that mode, but 'middle' hides it");
}

#[test]
fn what_the_runtime_put_there_is_ignored_but_not_what_lies_in_it() {
    let run = Run::new(OverlayClass::Trusted, |root| {
        fs::create_dir(root.join("run")).unwrap();
        fs::write(root.join("run/.containerenv"), b"").unwrap();
    });
    assert!(run.is_changed(&[]));
    assert!(run.is_changed(&["run"]));
    assert!(run.is_changed(&["run/.containerenv"]));
    assert!(!run.is_changed(&["run", "run/.containerenv"]));
}
