//! What a container's root is made of, by the real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod container;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};

use container::{Place, bare, mounted, names, spec};
use nix::sched::CloneFlags;
use regen::rootfs::{Hierarchy, Pivot, mount_options};
use serde_json::json;

fn device(path: &str) -> (u32, u64, u64) {
    let found = fs::symlink_metadata(path).unwrap();
    assert!(found.file_type().is_char_device(), "{path}");
    (found.mode() & 0o7777, nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()))
}

#[test]
fn privileged_dev_has_the_usual_nodes_and_links() {
    let place = Place::new();
    let devpts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]});
    place
        .enter(&spec(&json!([devpts])), || {
            let numbers = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("tty", 5, 0)];
            for (name, major, minor) in numbers {
                assert_eq!(device(&format!("/dev/{name}")), (0o666, major, minor), "{name}");
            }
            let links = [("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stderr", "/proc/self/fd/2")];
            for (name, target) in links {
                assert_eq!(fs::read_link(format!("/dev/{name}")).unwrap().to_str(), Some(target));
            }
            File::options().write(true).open("/dev/null").unwrap().write_all(b"x").unwrap();
            assert!(fs::metadata("/dev/ptmx").unwrap().file_type().is_char_device());
            assert_eq!(mounted("/proc").unwrap().kind, "proc");
            let dev = mounted("/dev").unwrap();
            assert!(dev.has("nosuid") && !dev.has("relatime") && dev.superblock.contains(&"mode=755".to_owned()));
            assert_eq!(names("/"), ["dev", "proc"], "nothing of the host is left");
        })
        .unwrap();
    assert_eq!(names(place.image("dev")), [""; 0], "the image's own directory stays as it was");
}

#[test]
fn privileged_devices_of_the_specification_have_their_mode_and_owner() {
    let place = Place::new();
    let mut spec = spec(&json!([]));
    spec["linux"]["devices"] = json!([
        {"path": "/dev/deep/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
        {"path": "/dev/queue", "type": "p"},
    ]);
    place
        .enter(&spec, || {
            assert_eq!(device("/dev/deep/fuse"), (0o640, 10, 229));
            let found = fs::metadata("/dev/deep/fuse").unwrap();
            assert_eq!((found.uid(), found.gid()), (5, 6));
            assert_eq!(device("/dev/null"), (0o600, 1, 3));
            assert!(fs::metadata("/dev/queue").unwrap().file_type().is_fifo());
        })
        .unwrap();
}

#[test]
fn privileged_every_word_is_taken_and_those_of_the_mount_are_there() {
    let place = Place::new();
    fs::create_dir(place.host("volume")).unwrap();
    for word in mount_options().filter(|word| !matches!(*word, "remount" | "idmap" | "ridmap" | "tmpcopyup")) {
        let bind = json!({"destination": "/v", "type": "bind", "source": place.host("volume"),
            "options": ["rbind", word]});
        place.enter(&spec(&json!([bind])), || assert!(mounted("/v").is_some())).expect(word);
        if !matches!(word, "bind" | "rbind") {
            let tmpfs = json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": [word]});
            place.enter(&spec(&json!([tmpfs])), || assert_eq!(mounted("/t").unwrap().kind, "tmpfs")).expect(word);
        }
    }
    let options = ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow", "sync", "dirsync"];
    let tmpfs = json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": options});
    let line = place.enter(&spec(&json!([tmpfs])), || mounted("/t").unwrap()).unwrap();
    for word in options {
        assert!(line.has(word) || line.superblock.contains(&word.to_owned()), "{word}: {line:?}");
    }
    let nonsense = json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["nonsense"]});
    let error = place.enter(&spec(&json!([nonsense])), || ()).unwrap_err();
    assert!(error.contains("mount tmpfs at '/t'") && error.contains("nonsense"), "{error}");
}

#[test]
fn privileged_a_bind_mount_makes_its_place_and_keeps_what_is_not_named() {
    let place = Place::new();
    fs::write(place.host("file"), "content").unwrap();
    let mounts = json!([
        {"destination": "/new/deep/file", "type": "bind", "source": place.host("file"), "options": ["bind", "ro"]},
        {"destination": "/locked", "type": "tmpfs", "source": "t", "options": ["nosuid", "nodev"]},
        {"destination": "/new/sys", "type": "bind", "source": "/proc/self/ns", "options": ["bind"]},
    ]);
    place
        .enter(&spec(&mounts), || {
            assert_eq!(fs::read_to_string("/new/deep/file").unwrap(), "content");
            assert!(fs::write("/new/deep/file", "x").is_err());
            assert!(fs::metadata("/new/sys").unwrap().is_dir());
        })
        .unwrap();
    let missing = json!([{"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}]);
    let error = place.enter(&spec(&missing), || ()).unwrap_err();
    assert!(error.contains("'/no/such'") && error.ends_with("no such file or directory"), "{error}");
    // Relative to the bundle, says the specification.
    let relative = json!([{"destination": "/x", "type": "bind", "source": "../host/file", "options": ["bind"]}]);
    place.enter(&spec(&relative), || assert_eq!(fs::read_to_string("/x").unwrap(), "content")).unwrap();
}

/// A volume with a mount of its own below it; only in the thread's namespace.
fn volume_with_a_mount_below(place: &Place) -> serde_json::Value {
    for directory in ["volume", "below"] {
        fs::create_dir(place.host(directory)).unwrap();
    }
    json!([
        {"destination": "/v", "type": "tmpfs", "source": "t"},
        {"destination": "/v/below", "type": "tmpfs", "source": "t"},
    ])
}

#[test]
fn privileged_a_word_with_r_reaches_the_mounts_below_and_one_without_does_not() {
    let place = Place::new();
    let mut mounts = volume_with_a_mount_below(&place);
    let list = mounts.as_array_mut().unwrap();
    // The container's own /v cannot be the source of a bind mount of the host, so the change comes as a remount.
    list.push(json!({"destination": "/v", "options": ["remount", "bind", "ro", "rnosuid"]}));
    place
        .enter(&spec(&mounts), || {
            let (top, below) = (mounted("/v").unwrap(), mounted("/v/below").unwrap());
            assert!(top.has("ro") && top.has("nosuid"), "{top:?}");
            assert!(below.has("rw") && below.has("nosuid"), "{below:?}");
        })
        .unwrap();
}

#[test]
fn privileged_rro_makes_a_whole_tree_of_the_host_read_only() {
    let place = Place::new();
    for (words, below) in [(["rbind", "ro"], false), (["rbind", "rro"], true)] {
        let mounts = json!([{"destination": "/v", "type": "bind", "source": "/dev", "options": words}]);
        place
            .enter(&spec(&mounts), || {
                assert!(mounted("/v").unwrap().has("ro"));
                assert_eq!(mounted("/v/pts").unwrap().has("ro"), below, "{words:?}");
            })
            .unwrap();
    }
}

#[test]
fn privileged_propagation_is_what_it_is_asked_to_be() {
    let place = Place::new();
    let expected = [
        ("rshared", "shared:"),
        ("shared", "shared:"),
        ("rprivate", ""),
        ("private", ""),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ];
    for (word, tag) in expected {
        let mounts = json!([{"destination": "/t", "type": "tmpfs", "source": "t", "options": [word]}]);
        let line = place.enter(&spec(&mounts), || mounted("/t").unwrap()).unwrap();
        let found = line.tags.first().map_or("", String::as_str);
        assert!(found.starts_with(tag) && found.is_empty() == tag.is_empty(), "{word}: {line:?}");
    }
    for word in ["rslave", "slave", "rprivate", "private", "rshared", "shared", "unbindable", "runbindable"] {
        let mut spec = spec(&json!([]));
        spec["linux"]["rootfsPropagation"] = word.into();
        let line = place.enter(&spec, || mounted("/").unwrap()).expect(word);
        assert_eq!(
            line.tags.iter().any(|tag| tag.starts_with("shared:")),
            word.ends_with("shared"),
            "{word}: {line:?}"
        );
        assert_eq!(line.tags.iter().any(|tag| tag == "unbindable"), word.ends_with("unbindable"), "{word}: {line:?}");
    }
}

#[test]
fn privileged_a_tmpfs_has_the_mode_of_what_it_covers_unless_told_otherwise() {
    let place = Place::new();
    fs::set_permissions(place.directory("covered"), fs::Permissions::from_mode(0o710)).unwrap();
    let mounts = |words: &[&str]| {
        json!([{"destination": "/covered", "type": "tmpfs", "source": "t", "options": words},
               {"destination": "/new", "type": "tmpfs", "source": "t"}])
    };
    let mode = |path: &str| fs::metadata(path).unwrap().mode() & 0o7777;
    place.enter(&spec(&mounts(&[])), || assert_eq!((mode("/covered"), mode("/new")), (0o710, 0o1777))).unwrap();
    let told = ["mode=1700,size=4k", "uid=7", "gid=8"];
    place
        .enter(&spec(&mounts(&told)), || {
            let found = fs::metadata("/covered").unwrap();
            assert_eq!((mode("/covered"), found.uid(), found.gid()), (0o1700, 7, 8));
            assert!(mounted("/covered").unwrap().superblock.contains(&"size=4k".to_owned()));
        })
        .unwrap();
}

#[test]
fn privileged_tmpcopyup_begins_with_everything_that_it_covers() {
    let place = Place::new();
    let top = place.directory("var/lib");
    fs::create_dir(top.join("sub")).unwrap();
    fs::write(top.join("sub/file"), "content").unwrap();
    fs::hard_link(top.join("sub/file"), top.join("again")).unwrap();
    symlink("/no/where", top.join("link")).unwrap();
    nix::unistd::mkfifo(&top.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o611)).unwrap();
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&top.join("null"), kind, nix::sys::stat::Mode::S_IRUSR, nix::sys::stat::makedev(1, 3))
        .unwrap();
    chown(top.join("sub/file"), Some(12), Some(34)).unwrap();
    fs::set_permissions(top.join("sub/file"), fs::Permissions::from_mode(0o4750)).unwrap();
    xattr::set(top.join("sub/file"), "security.test", b"value").unwrap();
    chown(&top, Some(56), Some(78)).unwrap();
    File::open(top.join("sub")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let mounts = json!([{"destination": "/var/lib", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "ro"]}]);
    place
        .enter(&spec(&mounts), || {
            assert_eq!(mounted("/var/lib").unwrap().kind, "tmpfs");
            assert_eq!(names("/var/lib"), ["again", "fifo", "link", "null", "sub"]);
            let file = fs::metadata("/var/lib/sub/file").unwrap();
            assert_eq!(fs::read_to_string("/var/lib/again").unwrap(), "content");
            assert_eq!(file.ino(), fs::metadata("/var/lib/again").unwrap().ino());
            assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (12, 34, 0o4750));
            assert_eq!(xattr::get("/var/lib/sub/file", "security.test").unwrap().as_deref(), Some(&b"value"[..]));
            assert_eq!(fs::read_link("/var/lib/link").unwrap().to_str(), Some("/no/where"));
            assert_eq!(fs::metadata("/var/lib/fifo").unwrap().mode() & 0o7777, 0o611);
            assert_eq!(device("/var/lib/null"), (0o400, 1, 3));
            assert_eq!(fs::metadata("/var/lib/sub").unwrap().mtime(), 0);
            let own = fs::metadata("/var/lib").unwrap();
            assert_eq!((own.uid(), own.gid()), (56, 78));
            assert!(fs::write("/var/lib/new", "").is_err(), "it is read-only in the end");
        })
        .unwrap();
}

#[test]
fn privileged_an_idmapped_volume_shows_other_owners_and_changes_none() {
    let place = Place::new();
    let volume = place.host("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    chown(volume.join("file"), Some(1), Some(2)).unwrap();
    let maps = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    for word in ["idmap", "ridmap"] {
        let mounts = json!([{"destination": "/v", "type": "bind", "source": volume, "options": ["rbind", word],
            "uidMappings": maps, "gidMappings": maps}]);
        place
            .enter(&spec(&mounts), || {
                let found = fs::metadata("/v/file").unwrap();
                assert_eq!((found.uid(), found.gid()), (1001, 1002));
                fs::write("/v/new", "").unwrap_err();
                fs::write("/v/file", "x").unwrap();
            })
            .unwrap();
        let found = fs::metadata(volume.join("file")).unwrap();
        assert_eq!((found.uid(), found.gid()), (1, 2));
    }
    let alone = json!([{"destination": "/v", "type": "bind", "source": volume, "options": ["bind", "idmap"]}]);
    let error = place.enter(&spec(&alone), || ()).unwrap_err();
    assert!(error.contains("'idmap' without uidMappings"), "{error}");
    let proc = json!([{"destination": "/v", "type": "bind", "source": "/proc", "options": ["bind"],
        "uidMappings": maps, "gidMappings": maps}]);
    let error = place.enter(&spec(&proc), || ()).unwrap_err();
    assert!(error.contains("map its owners"), "{error}");
}

#[test]
fn privileged_a_read_only_root_is_so_last() {
    let place = Place::new();
    let mut spec = spec(&json!([{"destination": "/new/t", "type": "tmpfs", "source": "t", "options": ["ro"]},
        {"destination": "/new/t/sub", "type": "tmpfs", "source": "t"}]));
    spec["root"]["readonly"] = true.into();
    spec["process"] = json!({"args": ["x"], "cwd": "/work/here", "user": {"uid": 0, "gid": 0}});
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/none", "/new/t/sub"]);
    place
        .enter(&spec, || {
            assert!(fs::metadata("/work/here").unwrap().is_dir());
            for path in ["/x", "/new/t/x", "/new/t/sub/x"] {
                let error = fs::write(path, "").unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{path}");
            }
            assert!(mounted("/proc/sys").unwrap().has("ro"));
            assert!(mounted("/proc").unwrap().has("rw"));
            fs::write("/dev/x", "").unwrap();
        })
        .unwrap();
}

/// Puts a file system over the host's cgroups, which only the calling thread sees.
fn cover_cgroups(kind: &str) {
    rustix::mount::mount(kind, "/sys/fs/cgroup", kind, rustix::mount::MountFlags::empty(), None).unwrap();
}

fn cgroup_mount(words: &[&str]) -> serde_json::Value {
    let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": words});
    spec(&json!([mount]))
}

#[test]
fn privileged_the_cgroup_mount_shows_the_containers_own_directories() {
    let mut place = Place::new();
    place.host_is = Some(|| cover_cgroups("tmpfs"));
    for (controllers, name) in [("cpu,cpuacct", "cpu"), ("name=systemd", "systemd"), ("", "unified"), ("pids", "none")]
    {
        let directory = place.host(name);
        if name != "none" {
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("cgroup.procs"), name).unwrap();
        }
        place.cgroups.push(Hierarchy { controllers: controllers.to_owned(), directory });
    }
    place
        .enter(&cgroup_mount(&["ro", "nosuid"]), || {
            assert_eq!(names("/sys/fs/cgroup"), ["cpu", "cpu,cpuacct", "cpuacct", "systemd", "unified"]);
            assert_eq!(fs::read_to_string("/sys/fs/cgroup/cpuacct/cgroup.procs").unwrap(), "cpu");
            for path in ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd"] {
                assert!(mounted(path).unwrap().has("ro") && mounted(path).unwrap().has("nosuid"), "{path}");
            }
        })
        .unwrap();
    place.enter(&cgroup_mount(&[]), || fs::write("/sys/fs/cgroup/systemd/cgroup.procs", "x").unwrap()).unwrap();
}

#[test]
fn privileged_on_version_2_a_cgroup_namespace_begins_at_the_containers_own_directory() {
    let mut place = Place::new();
    // Outside of the initial cgroup namespace a mount changes nothing of the host's.
    place.namespaces = CloneFlags::CLONE_NEWCGROUP;
    place.host_is = Some(|| cover_cgroups("cgroup2"));
    fs::create_dir(place.host("own")).unwrap();
    fs::write(place.host("own/file"), "").unwrap();
    let mut spec = cgroup_mount(&["ro"]);
    let look = || {
        assert!(mounted("/sys/fs/cgroup").unwrap().has("ro"));
        names("/sys/fs/cgroup")
    };
    assert!(place.enter(&spec, look).unwrap().contains(&"cgroup.procs".to_owned()), "without one it is the host's");
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    place.cgroups = vec![Hierarchy { controllers: String::new(), directory: place.host("own") }];
    assert_eq!(place.enter(&spec, look).unwrap(), ["file"]);
    place.cgroups[0].directory = place.host("none");
    assert_eq!(place.enter(&spec, look).unwrap(), [""; 0], "one that is not there shows nothing of the host's");
}

#[test]
fn privileged_the_terminal_is_bound_by_its_descriptor() {
    let place = Place::new();
    let devpts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]});
    place
        .enter_with(
            &spec(&json!([devpts])),
            |entered| {
                let master = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
                nix::pty::unlockpt(&master).unwrap();
                let terminal = File::options().read(true).write(true).open("/dev/pts/0").unwrap();
                let error = entered.attach_console(File::open("/dev/null").unwrap().as_fd()).unwrap_err();
                assert!(error.to_string().contains("no pseudo-terminal"), "{error}");
                symlink("null", "/dev/console").unwrap();
                assert!(entered.attach_console(terminal.as_fd()).is_err(), "a symlink leads nowhere");
                fs::remove_file("/dev/console").unwrap();
                entered.attach_console(terminal.as_fd()).unwrap();
                let number = |path: &str| fs::metadata(path).unwrap().rdev();
                assert_eq!(number("/dev/console"), number("/dev/pts/0"));
            },
            || assert_eq!(mounted("/dev/console").unwrap().kind, "devpts"),
        )
        .unwrap();
}

#[test]
fn privileged_settings_reach_the_containers_namespace_only() {
    let mut place = Place::new();
    place.namespaces = CloneFlags::CLONE_NEWIPC;
    let mut spec = spec(&json!([]));
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}]);
    spec["linux"]["sysctl"] = json!({"kernel.shmmni": "4321"});
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    let read = || fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let before = read();
    assert_eq!(place.enter(&spec, read).unwrap(), "4321\n");
    assert_eq!(read(), before);
    spec["linux"]["sysctl"] = json!({"kernel.shmmni": "many"});
    let error = place.enter(&spec, || ()).unwrap_err();
    assert!(error.starts_with("set sysctl 'kernel.shmmni' to 'many'"), "{error}");
}

#[test]
fn privileged_a_root_that_cannot_be_pivoted_is_moved() {
    let mut place = Place::new();
    place.pivot = Pivot::Move;
    fs::write(place.image("marker"), "inside").unwrap();
    place
        .enter(&spec(&json!([])), || {
            assert_eq!(fs::read_to_string("/marker").unwrap(), "inside");
            assert_eq!(names("/"), ["dev", "marker", "proc"]);
        })
        .unwrap();
}

#[test]
fn privileged_a_mount_at_the_root_is_the_root() {
    let place = Place::new();
    fs::write(place.image("below"), "").unwrap();
    let mounts = json!([{"destination": "/", "type": "tmpfs", "source": "t"},
        {"destination": "/proc", "type": "proc", "source": "proc"}]);
    place
        .enter(&bare(&mounts), || {
            assert_eq!(names("/"), ["dev", "proc"]);
            assert_eq!(mounted("/").unwrap().kind, "tmpfs");
        })
        .unwrap();
    let mut content = String::new();
    assert_eq!(File::open(place.image("below")).unwrap().read_to_string(&mut content).unwrap(), 0);
}

#[test]
fn privileged_an_overlay_of_the_specification_may_have_long_options() {
    let place = Place::new();
    for (length, name) in [(1, "short"), (250, "long")] {
        let lower = place.host(&format!("{}/{name}", "x".repeat(length)));
        fs::create_dir_all(&lower).unwrap();
        fs::write(lower.join("file"), "lower").unwrap();
        let work = place.host(&format!("work-{name}"));
        let upper = place.host(&format!("upper-{name}"));
        let second = place.host(&format!("second-{name}"));
        [&work, &upper, &second].into_iter().for_each(|directory| fs::create_dir(directory).unwrap());
        let option = |key: &str, path: &std::path::Path| format!("{key}={}", path.display());
        let twice = format!("{}:{}", option("lowerdir", &lower), second.display());
        let options = [twice, option("upperdir", &upper), option("workdir", &work), "nosuid".to_owned()];
        let mounts = json!([{"destination": "/o", "type": "overlay", "source": "overlay", "options": options}]);
        let line = place
            .enter(&spec(&mounts), || {
                assert_eq!(fs::read_to_string("/o/file").unwrap(), "lower");
                fs::write("/o/new", "").unwrap();
                mounted("/o").unwrap()
            })
            .expect(name);
        assert!(line.kind == "overlay" && line.has("nosuid"), "{line:?}");
        assert!(upper.join("new").exists());
    }
}
