//! What the states of a ring hold, without running them: a file to read, a part to put back, the whole to look around in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod tree;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::ring::picture;
use harness::{World, eventually};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The root of a container as its first process sees it.
fn root_of(world: &World, id: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root", world.pid(id)))
}

#[test]
fn cat_prints_what_a_file_was_at_every_entry() {
    let world = World::new("cat");
    world.run_in("alice", "echo one > /srv; mkdir /etc/d").success();
    world.run_in("alice", "echo two > /srv; ln -s /srv /etc/d/absolute; ln -s ../../srv /etc/d/relative").success();
    let cat = |target: &str, path: &str| world.ring(&["cat", target, path]);
    assert_eq!(cat("alice@1", "/srv").success().stdout(), "one\n");
    assert_eq!(cat("alice", "srv").success().stdout(), "two\n");
    let passwd = fs::read_to_string(world.rootfs().join("etc/passwd")).unwrap();
    assert_eq!(cat("alice@base", "/etc/passwd").success().stdout(), passwd);
    for link in ["/etc/d/absolute", "/etc/d/relative"] {
        assert_eq!(cat("alice@2", link).success().stdout(), "two\n", "{link}");
    }
    cat("alice@base", "/srv").fails_with(1, "read '/srv' of 'root/alice@base'");
    cat("alice@1", "/etc/d/absolute").fails_with(1, "no such file");
    cat("alice@1", "/etc").fails_with(1, "it is a directory");
    cat("alice@2", "/etc/d/../d/absolute").fails_with(2, "read the path: it has '..' in it: write it without");
    cat("alice@1", "/dev/null").fails_with(1, "alice@1");
    cat("alice@9", "/srv").fails_with(1, "no such entry");
    cat("bob@1", "/srv").fails_with(1, "no such ring");
    assert_eq!(fs::read_dir(world.store().join("runs")).unwrap().count(), 0, "looking leaves nothing");
}

#[test]
fn no_link_of_a_state_leads_out_of_it() {
    let world = World::new("cat-links");
    let secret = world.base().join("secret");
    fs::write(&secret, "of the host\n").unwrap();
    let id = world.writer_in("alice", "one");
    let root = root_of(&world, &id);
    symlink(&secret, root.join("absolute")).unwrap();
    symlink(format!("../../../../../../..{}", secret.display()), root.join("climbing")).unwrap();
    symlink("/proc/1/root", root.join("magic")).unwrap();
    symlink(world.base(), root.join("directory")).unwrap();
    world.delete(&id);
    for path in ["absolute", "climbing", "magic/etc/hostname", "directory/secret"] {
        world.ring(&["cat", "alice", path]).code(1);
    }
    world.ring(&["cat", "alice", "../../.."]).fails_with(2, "it has '..' in it");
    let out = world.base().join("out-dir");
    for path in ["magic/etc", "directory/secret"] {
        world.ring(&["restore", "alice", path, "--to", text(&out)]).code(1);
    }
    // A link itself is restored as a link.
    world.ring(&["restore", "alice", "/absolute", "--to", text(&out)]).success();
    assert_eq!(fs::read_link(out.join("absolute")).unwrap(), secret);
}

/// Waits until no run is left. Other tests' containers have copies of every mount for a moment, when they are made.
#[track_caller]
fn forgotten(world: &World) {
    eventually("it is forgotten", || {
        world.ring(&["recover"]).success();
        fs::read_dir(world.store().join("runs")).unwrap().count() == 0
    });
}

/// One of everything that a file system can hold.
fn fill(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("dir/deep/er")).unwrap();
    fs::write(path("dir/plain"), b"hello").unwrap();
    fs::set_permissions(path("dir/plain"), Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(path("dir/plain"), path("dir/deep/linked")).unwrap();
    fs::hard_link(path("dir/plain"), path("a-link-that-comes-first")).unwrap();
    xattr::set(path("dir/plain"), "user.note", b"kept").unwrap();
    xattr::set(path("dir"), "user.of-a-directory", b"kept too").unwrap();
    // cap_net_raw=ep, as setcap writes it.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fs::write(path("ping"), "x").unwrap();
    xattr::set(path("ping"), "security.capability", &capability).unwrap();
    symlink("/nowhere/at/all", path("dangling")).unwrap();
    std::os::unix::fs::lchown(path("dangling"), Some(70_000), Some(70_001)).unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 32 << 20).unwrap();
    let make = |name: &str, kind, mode, device| {
        mknodat(CWD, path(name), kind, Mode::from_raw_mode(mode), device).unwrap();
    };
    make("fifo", FileType::Fifo, 0o640, 0);
    make("null", FileType::CharacterDevice, 0o666, makedev(1, 3));
    std::os::unix::fs::chown(path("dir/deep"), Some(4_000_000), Some(70_000)).unwrap();
    fs::set_permissions(path("dir/deep"), Permissions::from_mode(0o3511)).unwrap();
    let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123));
    for name in ["dir/plain", "dir/deep", "dir"] {
        File::open(path(name)).unwrap().set_times(old).unwrap();
    }
}

/// A ring whose first entry has one of everything in `/srv`, and whose second one has nothing there.
fn ring_of_everything(world: &World) {
    let id = world.writer_in("alice", "one");
    let root = root_of(world, &id).join("srv");
    fs::create_dir(&root).unwrap();
    fill(&root);
    world.delete(&id);
    world.run_in("alice", "rm -r /srv").success();
}

#[test]
fn a_part_of_a_state_is_restored_field_by_field() {
    let world = World::new("restore");
    ring_of_everything(&world);
    let (seen, out) = (world.base().join("seen"), world.base().join("out-dir"));
    fs::create_dir(&seen).unwrap();
    world.ring(&["mount", "alice@1", text(&seen)]).success();
    let before = picture(&world.store().join("layers"));
    let planned = world.ring(&["restore", "alice@1", "/srv", "--to", text(&out), "--dry-run"]);
    assert!(planned.success().stdout().contains(&format!("A {}/srv/dir/plain\n", out.display())));
    assert!(!out.exists(), "a dry run makes nothing");
    let view = world.ring_json(&["restore", "alice@1", "/srv", "--to", text(&out)]);
    assert_eq!((&view["seq"], &view["container"], &view["files"]), (&json!(1), &Value::Null, &json!(8)), "{view}");
    tree::assert_same(&tree::read(&seen.join("srv")), &tree::read(&out.join("srv")));
    // Again, over what is there, where somebody has changed it.
    fs::write(out.join("srv/dir/plain"), "another").unwrap();
    fs::remove_file(out.join("srv/dangling")).unwrap();
    fs::write(out.join("srv/of-mine"), "stays").unwrap();
    xattr::set(out.join("srv/dir"), "user.of-mine", b"goes").unwrap();
    let planned = world.ring(&["restore", "alice@1", "/srv", "--to", text(&out), "--dry-run"]);
    let planned = planned.success().stdout().to_owned();
    assert!(planned.contains("M ") && planned.contains("/srv/dir/plain\n") && planned.contains("A "), "{planned}");
    world.ring(&["restore", "alice@1", "/srv", "--to", text(&out)]).success();
    assert_eq!(fs::read_to_string(out.join("srv/of-mine")).unwrap(), "stays");
    fs::remove_file(out.join("srv/of-mine")).unwrap();
    world.ring(&["restore", "alice@1", "/srv", "--to", text(&out)]).success();
    tree::assert_same(&tree::read(&seen.join("srv")), &tree::read(&out.join("srv")));
    // One file, a link among links, and the whole.
    world.ring(&["restore", "alice@1", "/srv/dir/deep/linked", "--to", text(&out)]).success();
    assert_eq!(fs::metadata(out.join("linked")).unwrap().nlink(), 1);
    let whole = world.base().join("whole");
    world.ring(&["restore", "alice@1", "/", "--to", text(&whole)]).success();
    tree::assert_same(&tree::read(&seen), &tree::read(&whole));
    assert_eq!(picture(&world.store().join("layers")), before, "the state is only read");
    world.ring(&["umount", text(&seen)]).success();
    forgotten(&world);
    for directory in [&out, &whole] {
        fs::remove_dir_all(directory).unwrap();
    }
}

#[test]
fn what_is_in_the_way_is_named_before_anything_is_changed() {
    let world = World::new("restore-way");
    world.run_in("alice", "mkdir -p /srv/a /srv/z; echo 1 > /srv/a/f; echo 1 > /srv/z/f").success();
    let out = world.base().join("out-dir");
    fs::create_dir_all(out.join("srv/z/f")).unwrap();
    let restore = |path: &str| world.ring(&["restore", "alice", path, "--to", text(&out)]);
    restore("/srv").fails_with(1, "restore '/srv/z/f': look at what is there: a directory is there");
    assert!(!out.join("srv/a").exists());
    fs::create_dir_all(out.join("z/f")).unwrap();
    restore("/srv/z").fails_with(1, "restore '/srv/z/f': look at what is there: a directory is there");
    fs::remove_dir_all(out.join("z")).unwrap();
    fs::remove_dir_all(out.join("srv")).unwrap();
    fs::write(out.join("srv"), "").unwrap();
    restore("/srv").fails_with(1, "a file is there, and the saved state has a directory");
    restore("/nowhere").fails_with(1, "restore '/nowhere' of 'root/alice@1': no such file");
    restore("/srv/../etc").fails_with(2, "read the path: it has '..' in it: write it without");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn a_file_comes_back_into_the_container_that_runs() {
    let world = World::new("restore-live");
    world.run_in("alice", "mkdir -p /srv/conf/deep; echo good > /srv/conf/f; echo good > /srv/conf/deep/g").success();
    world.ring(&["restore", "alice@1", "/srv/conf/f"]).fails_with(1, "no container runs on it");
    let id = world.detach_in("alice", "echo bad > /srv/conf/f; exec sleep 1000");
    let root = root_of(&world, &id);
    eventually("it writes", || fs::read_to_string(root.join("srv/conf/f")).is_ok_and(|text| text == "bad\n"));
    let planned = world.ring(&["restore", "alice@1", "/srv/conf/f", "--dry-run"]);
    assert_eq!(planned.success().stdout(), "M /srv/conf/f\n");
    let said = world.ring(&["restore", "alice@1", "/srv/conf/f"]);
    assert_eq!(
        said.success().stdout(),
        format!("root/alice: 1 file and 0 directories of @1 are in container '{id}'\n")
    );
    let shown = world.regen(&["exec", &id, "cat", "/srv/conf/f"]);
    assert_eq!(shown.success().stdout(), "good\n");
    // What leads there is made again, too.
    world.regen(&["exec", &id, "rm", "-r", "/srv"]).success();
    world.ring(&["restore", "alice@1", "/srv/conf/deep/g"]).success();
    let found = world.regen(&["exec", &id, "find", "/srv"]);
    assert_eq!(found.success().stdout(), "/srv\n/srv/conf\n/srv/conf/deep\n/srv/conf/deep/g\n");
    world.delete(&id);
    assert_eq!(world.ring(&["cat", "alice", "/srv/conf/deep/g"]).success().stdout(), "good\n");
    world.ring(&["restore", "alice@1", "/srv/conf/f"]).fails_with(1, "no container runs on it");
}

#[test]
fn a_hostile_container_gets_nothing_out_of_a_restore() {
    let world = World::new("restore-hostile");
    world.run_in("alice", "mkdir -p /srv/conf; echo good > /srv/conf/f").success();
    let outside = world.base().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "of the host").unwrap();
    let id = world.detach_in("alice", "exec sleep 1000");
    let root = root_of(&world, &id);
    // Its directory is a link to one of the host's: inside of the container, that is one of its own, or none.
    fs::remove_dir_all(root.join("srv/conf")).unwrap();
    symlink(&outside, root.join("srv/conf")).unwrap();
    world.ring(&["restore", "alice@1", "/srv/conf/f"]).code(1);
    world.ring(&["restore", "alice@1", "/srv"]).fails_with(1, "a file is there");
    fs::remove_file(root.join("srv/conf")).unwrap();
    fs::create_dir(root.join("srv/conf")).unwrap();
    symlink(outside.join("f"), root.join("srv/conf/f")).unwrap();
    world.ring(&["restore", "alice@1", "/srv/conf/f"]).success();
    assert_eq!(fs::read_to_string(root.join("srv/conf/f")).unwrap(), "good\n");
    assert_eq!(fs::read_to_string(outside.join("f")).unwrap(), "of the host");
    world.delete(&id);
}

#[test]
fn what_is_mounted_in_the_container_is_left_alone() {
    let world = World::new("restore-mount");
    let volume = world.base().join("volume");
    fs::create_dir(&volume).unwrap();
    let bundle = |script: &str| {
        world.bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["annotations"] = json!({"run.regen.ring": "alice"});
            let mount =
                json!({"destination": "/srv/volume", "type": "bind", "source": volume, "options": ["rbind", "rw"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        })
    };
    let id = world.fresh_id();
    let run = bundle("echo 1 > /srv/f; echo 1 > /srv/volume/f");
    world.regen(&["run", "--bundle", run.text(), &id]).success();
    let again = bundle("rm /srv/f; exec sleep 1000");
    world.regen(&["run", "-d", "--bundle", again.text(), &id]).success();
    let root = root_of(&world, &id);
    eventually("it removes it", || !root.join("srv/f").exists());
    let said = world.ring(&["restore", "alice@1", "/srv"]);
    assert!(said.success().stdout().contains("something is mounted there: /srv/volume"), "{}", said.stdout());
    assert_eq!(fs::read_to_string(root.join("srv/f")).unwrap(), "1\n");
    world.ring(&["restore", "alice@1", "/srv/volume/f"]).code(1);
    fs::write(volume.join("f"), "2").unwrap();
    world.ring(&["restore", "alice@1", "/srv"]).success();
    assert_eq!(fs::read_to_string(volume.join("f")).unwrap(), "2");
    world.delete(&id);
}

#[test]
fn a_restore_that_is_killed_leaves_every_file_old_or_new() {
    let world = World::new("restore-kill");
    let files = "for n in 1 2 3 4; do head -c 100000 /dev/zero | tr '\\0' $n > /srv/$n; done";
    world.run_in("alice", &format!("mkdir /srv; {files}")).success();
    let out = world.base().join("out-dir");
    let new = |n: usize| n.to_string().repeat(100_000);
    let restore = ["restore", "alice@1", "/srv", "--to", text(&out)];
    let mut killed = 0;
    for call in ["copy_file_range", "fdatasync", "ftruncate", "fchown", "utimensat", "renameat"] {
        for when in 1..6 {
            let _ = fs::remove_dir_all(&out);
            fs::create_dir_all(out.join("srv")).unwrap();
            (1..4).for_each(|n| fs::write(out.join(format!("srv/{n}")), "old").unwrap());
            let command = world.command(&[&["ring"], &restore[..]].concat());
            let mut strace = Command::new("strace");
            strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            strace.args(["-e", &format!("inject={call}:signal=SIGKILL:when={when}")]);
            strace.arg(command.get_program()).args(command.get_args());
            killed += usize::from(world.finish(strace).code == 1009);
            for n in 1..5 {
                let found = fs::read_to_string(out.join(format!("srv/{n}"))).unwrap_or_default();
                let expected = [new(n), if n < 4 { "old".to_owned() } else { String::new() }];
                assert!(expected.contains(&found), "killed at {call} {when}: {} bytes in {n}", found.len());
            }
            world.ring(&restore).success();
            assert_eq!(fs::read_dir(out.join("srv")).unwrap().count(), 4, "what {call} {when} left is taken away");
            assert!((1..5).all(|n| fs::read_to_string(out.join(format!("srv/{n}"))).unwrap() == new(n)));
        }
    }
    assert!(killed > 18, "it was killed {killed} times");
    world.ring(&["recover"]).success();
    assert_eq!(fs::read_dir(world.store().join("runs")).unwrap().count(), 0, "and what was kept to look at");
    fs::remove_dir_all(&out).unwrap();
}

#[test]
fn what_is_put_back_into_one_place_at_once_takes_turns() {
    let world = World::new("restore-turns");
    world.run_in("alice", "mkdir /srv; for n in $(seq 300); do echo good > /srv/$n; done").success();
    let out = world.base().join("out-dir");
    let id = world.detach_in("alice", "exec sleep 1000");
    let root = root_of(&world, &id);
    for (more, srv) in [(&["--to", text(&out)][..], out.join("srv")), (&[][..], root.join("srv"))] {
        for _ in 0..3 {
            let restore = || world.spawn(world.command(&[&["ring", "restore", "alice@1", "/srv"], more].concat()));
            let all = [restore(), restore(), restore()];
            for one in all {
                one.finish().success();
            }
            assert_eq!(fs::read_dir(&srv).unwrap().count(), 300);
        }
    }
    // A snapshot has files under their own names, and no others.
    for n in 0..4 {
        fs::write(root.join("srv/changed"), n.to_string()).unwrap();
        let restore = world.spawn(world.command(&["ring", "restore", "alice@1", "/srv"]));
        world.ring(&["snapshot", "alice"]).success();
        restore.finish().success();
        let changes = world.ring(&["diff", "alice@1", "alice"]);
        assert!(!changes.success().stdout().contains(".tmp-"), "{}", changes.stdout());
    }
    world.delete(&id);
    fs::remove_dir_all(&out).unwrap();
}

#[test]
fn nothing_is_written_into_the_store() {
    let world = World::new("look-ours");
    world.run_in("alice", "echo one > /srv-file").success();
    world.pack();
    let before = world.picture();
    let rings = world.store().join("rings");
    for to in [rings.clone(), rings.join("new/directory"), world.store()] {
        world.ring(&["restore", "alice", "/srv-file", "--to", text(&to)]).fails_with(1, "regen keeps its own files in");
        for kind in ["oci", "oci-archive"] {
            let to = format!("{kind}:{}", to.join("x").display());
            world.ring(&["export", "alice", &to]).fails_with(1, "regen keeps its own files in");
        }
    }
    let link = world.base().join("link-to-store");
    symlink(&rings, &link).unwrap();
    world.ring(&["restore", "alice", "/srv-file", "--to", text(&link)]).fails_with(1, "name a place elsewhere");
    fs::remove_file(link).unwrap();
    assert_eq!(world.picture(), before);
}

#[test]
fn a_state_that_came_from_elsewhere_can_be_looked_at_once_its_base_was_seen() {
    let world = World::new("look-elsewhere");
    world.run_in("alice", "echo one > /srv-file").success();
    let layout = format!("oci:{}", world.base().join("layout-dir").display());
    world.ring(&["export", "alice", &layout]).success();
    world.ring(&["import", &layout, "bob"]).success();
    world.ring(&["cat", "bob", "/srv-file"]).fails_with(1, "was never seen here: a run on the ring over that base");
    world.run_in("bob", "true").success();
    assert_eq!(world.ring(&["cat", "bob", "/srv-file"]).success().stdout(), "one\n");
    fs::remove_dir_all(world.base().join("layout-dir")).unwrap();
}

#[test]
fn a_mounted_state_is_read_only_and_stays_until_it_is_unmounted() {
    let world = World::new("mount");
    world.run_in("alice", "mkdir /srv; echo one > /srv/f; mknod /srv/null c 1 3").success();
    let at = world.base().join("at");
    fs::create_dir(&at).unwrap();
    let said = world.ring(&["mount", "alice@1", text(&at)]);
    assert_eq!(said.success().stdout(), format!("root/alice: @1 is at {} until 'regen ring umount'\n", at.display()));
    assert_eq!(fs::read_to_string(at.join("srv/f")).unwrap(), "one\n");
    assert_eq!(fs::write(at.join("srv/f"), "x").unwrap_err().raw_os_error(), Some(30), "read-only");
    assert_eq!(File::open(at.join("srv/null")).unwrap_err().raw_os_error(), Some(13), "no devices");
    // Its entry goes, and its layers stay: by packing, folding, collection, and the end of the ring.
    for n in 0..12 {
        world
            .run_with(&["--ring", "alice", "--depth", "1"], &format!("echo {n} > /srv/f; echo {n} > /srv/{n}"))
            .success();
    }
    world.pack();
    assert_eq!(world.seqs("alice"), [13]);
    world.ring(&["rm", "alice"]).success();
    world.ring(&["recover"]).success();
    assert_eq!(fs::read_to_string(at.join("srv/f")).unwrap(), "one\n");
    assert_eq!(fs::read_dir(at.join("srv")).unwrap().count(), 2);
    let doctor = world.regen(&["doctor"]);
    assert!(!doctor.stdout().contains("whose container is dead"), "{}", doctor.stdout());
    // Somebody is in it.
    let user = File::open(at.join("srv/f")).unwrap();
    world.ring(&["umount", text(&at)]).fails_with(1, &format!("in use: process {}", std::process::id()));
    drop(user);
    assert_eq!(world.ring(&["umount", text(&at)]).success().stdout(), "");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    forgotten(&world);
    assert_eq!(world.layers(), [""; 0], "nobody needs them any more");
}

#[test]
fn a_mount_never_hides_the_store_or_the_state_of_containers() {
    let world = World::new("hides");
    world.run_in("alice", "echo one > /srv").success();
    let (store, root) = (world.base().join("store"), world.base().join("run"));
    for hidden in [&store, &store.join("rings/root"), &root, world.base()] {
        let output = world.ring(&["mount", "alice", text(hidden)]);
        output.fails_with(1, "it would hide what regen keeps in");
        assert!(output.stderr().contains("name a directory elsewhere"), "{output:?}");
    }
    assert_eq!(world.ring(&["cat", "alice", "/srv"]).success().stdout(), "one\n");
}

#[test]
fn a_mount_that_ended_otherwise_is_forgotten() {
    let world = World::new("mount-gone");
    world.run_with(&["--ring", "alice", "--depth", "1"], "echo one > /srv").success();
    let at = world.base().join("at");
    fs::create_dir(&at).unwrap();
    world.ring(&["mount", "alice@1", text(&at)]).success();
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    let layers = world.layers();
    world.run_in("alice", "echo two > /srv").success();
    world.ring(&["set", "alice", "--depth", "1"]).success();
    world.pack();
    world.run_in("alice", "echo three > /srv").success();
    world.pack();
    forgotten(&world);
    assert!(!layers.is_empty());
}

#[test]
fn only_what_ring_mount_has_mounted_is_unmounted() {
    let world = World::new("umount");
    world.run_in("alice", "echo one > /srv").success();
    let at = world.base().join("at");
    fs::create_dir(&at).unwrap();
    let umount = |path: &Path| world.ring(&["umount", text(path)]);
    umount(&at).fails_with(1, "nothing is mounted there");
    umount(&world.base().join("nowhere")).fails_with(1, "no such file");
    assert!(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at).status().unwrap().success());
    umount(&at).fails_with(1, "'regen ring mount' has not mounted it");
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    world.ring(&["mount", "alice", text(&at)]).success();
    umount(&at.join("etc")).fails_with(1, "nothing is mounted there");
    world.ring(&["mount", "alice@base", text(&world.base().join("nowhere"))]).fails_with(1, "no such file");
    world.ring(&["mount", "alice@base", text(&at)]).success();
    assert!(!at.join("srv").exists(), "the one that was mounted last is seen");
    umount(&at).success();
    assert!(at.join("srv").exists());
    umount(&at).success();
    forgotten(&world);
}

#[test]
fn lost_layers_are_rebuilt_for_a_look_and_a_lost_base_is_named() {
    let world = World::new("look-lost");
    world.run_in("alice", "echo one > /srv").success();
    world.pack();
    for layer in world.layers() {
        fs::remove_dir_all(world.store().join("layers").join(layer)).unwrap();
    }
    assert_eq!(world.ring(&["cat", "alice", "/srv"]).success().stdout(), "one\n");
    let elsewhere = world.base().join("elsewhere");
    fs::rename(world.rootfs(), &elsewhere).unwrap();
    for verb in
        [&["cat", "alice", "/srv"][..], &["restore", "alice", "/srv", "--to", "/tmp"], &["mount", "alice", "/mnt"]]
    {
        world.ring(verb).fails_with(1, "is gone");
    }
    fs::rename(&elsewhere, world.rootfs()).unwrap();
}

#[test]
fn the_graph_shows_what_started_where() {
    let world = World::new("graph");
    for n in 1..4 {
        world.run_in("alice", &format!("echo {n} > /srv")).success();
    }
    world.ring(&["rollback", "alice", "--to", "@1"]).success();
    world.run_in("alice", "echo 4 > /srv").success();
    world.ring(&["pin", "alice@2"]).success();
    world.pack();
    let graph = |variables: &[(&str, &str)]| {
        let mut command = world.command(&["ring", "log", "alice", "--graph"]);
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(variables.iter().copied());
        world.finish(command).success().stdout().to_owned()
    };
    let drawn = graph(&[("LC_ALL", "C.UTF-8")]);
    let first =
        |text: &str| -> Vec<String> { text.lines().map(|line| line.split("  ").next().unwrap().to_owned()).collect() };
    assert_eq!(first(&drawn), ["●", "│ ●", "│ ●", "├─╯", "●", "◌"], "{drawn}");
    assert!(drawn.contains("@4  2") && drawn.contains("(next)") && drawn.contains("(pinned)"), "{drawn}");
    assert!(drawn.contains("exit 0  +") && drawn.ends_with("◌  base\n") && !drawn.contains('\x1b'), "{drawn}");
    assert_eq!(first(&graph(&[])), ["*", "| *", "| *", "+-'", "*", "."]);
    world.ring(&["log", "alice", "--graph", "--json"]).code(2);
    world.ring(&["rm", "alice"]).success();
    world.ring(&["log", "alice", "--graph"]).fails_with(1, "no such ring");
}
