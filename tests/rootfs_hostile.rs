//! Images and volumes that try to lead the runtime out of the container, or onto the wrong place in it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod container;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use container::{Place, bare, mounted, names, spec};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

fn tmpfs(destination: &str) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "t"})
}

fn bind(source: &Path, destination: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["bind"]})
}

fn make_device(path: &Path, minor: u64) {
    let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR);
    nix::sys::stat::mknod(path, kind, mode, nix::sys::stat::makedev(1, minor)).unwrap();
}

/// CVE-2019-19921, CVE-2026-41579 and their kin: what is taken for the kernel's is where its name says, or nowhere.
#[test]
fn privileged_file_systems_of_the_kernel_go_through_no_symlink() {
    let kernel = [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/mqueue", "mqueue"),
        ("/sys/fs/cgroup", "cgroup"),
        ("/elsewhere/proc", "proc"),
    ];
    for (destination, kind) in kernel {
        for target in ["/inside", "host"] {
            let place = Place::new();
            place.directory("inside");
            let target = if target == "host" { place.host("") } else { Path::new(target).to_owned() };
            let top = destination.split('/').nth(1).unwrap();
            symlink(&target, place.image(top)).unwrap();
            let mounts = json!([{"destination": destination, "type": kind, "source": kind}]);
            let error = place.enter(&bare(&mounts), || ()).unwrap_err();
            assert!(error.contains("symlink"), "{destination}: {error}");
            assert_eq!(names(place.host("")), [""; 0], "{destination}");
            assert_eq!(names(place.image("inside")), [""; 0], "{destination}");
        }
    }
}

#[test]
fn privileged_devices_and_links_are_made_through_no_symlink() {
    let place = Place::new();
    symlink(place.host(""), place.image("dev")).unwrap();
    fs::write(place.host("ptmx"), "the host's").unwrap();
    let error = place.enter(&bare(&json!([])), || ()).unwrap_err();
    assert!(error.contains("symlink"), "{error}");
    assert_eq!(names(place.host("")), ["ptmx"]);

    // A volume in /dev, over which the container's own devices go.
    let place = Place::new();
    symlink(place.host("target"), place.host("null")).unwrap();
    let mut spec = spec(&json!([bind(&place.host(""), "/dev/volume")]));
    spec["linux"]["devices"] = json!([{"path": "/dev/volume/null", "type": "c", "major": 1, "minor": 3}]);
    let error = place.enter(&spec, || ()).unwrap_err();
    assert!(error.contains("something else is in its place"), "{error}");
    assert_eq!(names(place.host("")), ["null"]);
}

#[test]
fn privileged_a_device_of_the_image_is_taken_only_if_it_is_that_device() {
    let place = Place::new();
    let dev = place.directory("dev");
    make_device(&dev.join("null"), 3);
    place.enter(&bare(&json!([])), || assert!(fs::metadata("/dev/null").unwrap().rdev() == 0x103)).unwrap();
    fs::remove_file(dev.join("null")).unwrap();
    make_device(&dev.join("null"), 8);
    let error = place.enter(&bare(&json!([])), || ()).unwrap_err();
    assert!(error.starts_with("make device '/dev/null'") && error.contains("something else"), "{error}");
}

#[test]
fn privileged_other_symlinks_lead_where_they_lead_inside() {
    let place = Place::new();
    fs::create_dir(place.host("target")).unwrap();
    fs::write(place.host("source"), "source").unwrap();
    symlink(place.host("target"), place.image("absolute")).unwrap();
    symlink("../../../../../../../..", place.image("up")).unwrap();
    place.directory("etc");
    // As distributions have it; nothing of where it leads is in the image.
    symlink("../run/systemd/resolve/stub-resolv.conf", place.image("etc/resolv.conf")).unwrap();
    symlink("/srv/deep", place.image("etc/deep")).unwrap();
    let mounts = json!([
        bind(&place.host("source"), "/absolute/file"),
        bind(&place.host("source"), "/up/from/the/root"),
        bind(&place.host("source"), "/etc/resolv.conf"),
        bind(&place.host("source"), "/../../clean"),
        bind(&place.host("source"), "/etc/deep/file"),
    ]);
    let inside = place.host("target/file");
    place
        .enter(&spec(&mounts), || {
            for path in [
                "/from/the/root",
                "/run/systemd/resolve/stub-resolv.conf",
                "/clean",
                "/etc/resolv.conf",
                "/srv/deep/file",
            ] {
                assert_eq!(fs::read_to_string(path).unwrap(), "source", "{path}");
            }
            assert_eq!(fs::read_to_string(inside).unwrap(), "source");
        })
        .unwrap();
    assert_eq!(names(place.host("target")), [""; 0]);
    symlink("loop", place.image("loop")).unwrap();
    let error = place.enter(&spec(&json!([tmpfs("/loop/x")])), || ()).unwrap_err();
    assert!(error.contains("/loop/x"), "{error}");
}

/// CVE-2019-16884: what the runtime, or a program, believes of /proc has to be the kernel's.
#[test]
fn privileged_nothing_is_mounted_over_what_proc_says() {
    let place = Place::new();
    fs::write(place.host("file"), "emulated").unwrap();
    place.directory("proc/self/attr");
    let mounts = json!([bind(&place.host("file"), "/proc/meminfo")]);
    place
        .enter(&spec(&mounts), || {
            assert_eq!(fs::read_to_string("/proc/meminfo").unwrap(), "emulated");
            assert!(fs::read_to_string("/proc/self/status").unwrap().contains("Pid:"), "the image's own is covered");
        })
        .unwrap();
    for destination in ["/proc/self/attr", "/proc/sys/kernel/core_pattern", "/x/../proc/1", "/proc/meminfo/.."] {
        for mount in [bind(&place.host("file"), destination), tmpfs(destination)] {
            let error = place.enter(&spec(&json!([mount])), || ()).unwrap_err();
            assert!(error.contains("proc"), "{destination}: {error}");
        }
    }
    let error = place.enter(&bare(&json!([bind(&place.host(""), "/proc")])), || ()).unwrap_err();
    assert!(error.contains("not of type proc"), "{error}");
    let error = place.enter(&bare(&json!([bind(Path::new("/proc/self"), "/proc")])), || ()).unwrap_err();
    assert!(error.contains("not of type proc"), "{error}");
    place.enter(&bare(&json!([bind(Path::new("/proc"), "/proc")])), || ()).unwrap();
    symlink("/proc/self", place.image("innocent")).unwrap();
    let error = place.enter(&spec(&json!([tmpfs("/innocent/attr")])), || ()).unwrap_err();
    assert!(error.contains("inside /proc"), "{error}");
    // A second one that the specification asks for is another matter.
    let second = json!([{"destination": "/host/proc", "type": "proc", "source": "proc"}, tmpfs("/host/proc/fs")]);
    place.enter(&spec(&second), || assert_eq!(mounted("/host/proc").unwrap().kind, "proc")).unwrap();
}

/// CVE-2025-31133: the null device is one because the kernel says so, not because it is called so.
#[test]
fn privileged_a_hostile_dev_null_masks_nothing_and_shows_nothing() {
    for hostile in ["symlink", "file", "missing", "zero"] {
        let place = Place::new();
        let null = place.host("null");
        match hostile {
            "symlink" => symlink("/proc/sysrq-trigger", &null).unwrap(),
            "file" => fs::write(&null, "shown").unwrap(),
            "zero" => make_device(&null, 5),
            _ => {}
        }
        fs::write(place.image("secret"), "secret").unwrap();
        fs::create_dir(place.image("hidden")).unwrap();
        fs::write(place.image("hidden/name"), "").unwrap();
        let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
        // A /dev of the host's: its nodes are not ours.
        let mut spec = bare(&json!([proc, bind(&place.host(""), "/dev")]));
        spec["linux"]["maskedPaths"] =
            json!(["/secret", "/hidden", "/proc/keys", "/proc/scsi", "/missing", "/secret/x"]);
        place
            .enter(&spec, || {
                for path in ["/secret", "/proc/keys"] {
                    assert_eq!(fs::metadata(path).unwrap().rdev(), 0x103, "{hostile}: {path}");
                    assert_eq!(fs::read(path).unwrap(), b"", "{hostile}: {path}");
                }
                assert_eq!(names("/hidden"), [""; 0]);
                assert!(fs::write("/hidden/x", "").is_err());
            })
            .unwrap();
    }
    // Whoever may change the mode of a masked file changes the container's null device, not the host's.
    let place = Place::new();
    fs::write(place.image("secret"), "secret").unwrap();
    let mut spec = spec(&json!([]));
    spec["linux"]["maskedPaths"] = json!(["/secret", "/proc/kcore"]);
    let host = fs::metadata("/dev/null").unwrap();
    place
        .enter(&spec, || {
            let masked = fs::metadata("/secret").unwrap();
            assert!(masked.file_type().is_char_device());
            assert_ne!((masked.dev(), masked.ino()), (host.dev(), host.ino()));
            assert_eq!(masked.ino(), fs::metadata("/dev/null").unwrap().ino());
        })
        .unwrap();
}

/// CVE-2021-30465: while the container is made, somebody who shares a volume with it swaps a directory for a symlink
/// that leads to the host, and back.
#[test]
fn privileged_a_race_in_a_shared_volume_leads_nowhere() {
    let place = Place::new();
    for directory in ["volume", "volume/a", "target"] {
        fs::create_dir(place.host(directory)).unwrap();
    }
    symlink(place.host("target"), place.host("volume/b")).unwrap();
    /// Also where the test fails.
    struct StopAtEnd<'a>(&'a AtomicBool);
    impl Drop for StopAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let swapped = std::thread::scope(|scope| {
        let swap = scope.spawn(|| {
            let (a, b) = (place.host("volume/a"), place.host("volume/b"));
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                count += 1;
            }
            count
        });
        let end = StopAtEnd(&stop);
        let mut spec = spec(&json!([bind(&place.host("volume"), "/v"), tmpfs("/v/a/deep/er")]));
        spec["linux"]["readonlyPaths"] = json!(["/v/a/deep"]);
        spec["linux"]["maskedPaths"] = json!(["/v/a/deep/er"]);
        spec["process"] = json!({"args": ["x"], "cwd": "/v/a/work", "user": {"uid": 0, "gid": 0}});
        // That it fails now and then is fine: somebody else is at fault. It must not reach the host.
        let made = (0..150).filter(|_| place.enter(&spec, || ()).is_ok()).count();
        assert!(made > 0, "it went well at least once");
        drop(end);
        swap.join().unwrap()
    });
    assert!(swapped > 150, "there was a race");
    assert_eq!(names(place.host("target")), [""; 0]);
}
