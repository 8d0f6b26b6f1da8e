//! The root of a container in a user namespace, and what a container's program sees of one: through the binary.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use harness::{Output, World};
use serde_json::{Value, json};

const FIRST: u32 = 100_000;

/// Runs a script as root of a user namespace, whose ids are 100000 and up on the host.
fn run(world: &World, mounts: &Value, script: &str) -> Output {
    chown_all(&world.rootfs());
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for kind in ["uidMappings", "gidMappings"] {
            spec["linux"][kind] = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
        }
        spec["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/fs", "/secret"]);
        spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
        spec["mounts"].as_array_mut().unwrap().extend(mounts.as_array().unwrap().iter().cloned());
    });
    world.regen(&["run", "--bundle", bundle.text(), &world.id("a")])
}

fn chown_all(path: &std::path::Path) {
    std::os::unix::fs::lchown(path, Some(FIRST), Some(FIRST)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| chown_all(&entry.unwrap().path()));
    }
}

/// A volume that nobody but the host's root can reach.
fn volume(world: &World) -> PathBuf {
    let hidden = world.base().join("hidden");
    fs::create_dir_all(hidden.join("volume")).unwrap();
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(hidden.join("volume/file"), "content").unwrap();
    hidden.join("volume")
}

#[test]
fn privileged_devices_masks_and_read_only_paths_hold_in_a_user_namespace() {
    let world = World::new("userns");
    fs::write(world.rootfs().join("secret"), "secret").unwrap();
    let script = "echo x >/dev/null && head -c 4 /dev/zero | wc -c && cat /secret /proc/keys && ls -A /proc/fs && \
        ! touch /proc/sys/kernel/x 2>/dev/null && ls -l /dev/null | cut -c1-10 && ls -ld /dev/shm | cut -c1-10";
    let output = run(&world, &json!([]), script);
    assert_eq!(output.success().stdout(), "4\ncrw-rw-rw-\ndrwxrwxrwt\n");
    assert_eq!(fs::metadata("/dev/null").unwrap().rdev(), 0x103);
}

#[test]
fn privileged_a_volume_that_only_the_creator_can_reach_is_bound() {
    let world = World::new("usersource");
    let volume = volume(&world);
    chown(volume.join("file"), Some(FIRST), Some(FIRST + 1)).unwrap();
    let mounts = json!([
        {"destination": "/v", "type": "bind", "source": volume, "options": ["rbind", "ro", "nosuid"]},
        {"destination": "/deep/file", "type": "bind", "source": volume.join("file"), "options": ["bind"]},
    ]);
    let script = "cat /v/file /deep/file; stat -c ' %u %g' /v/file; ! touch /v/x 2>/dev/null && grep -c ' /v ro,nosuid' /proc/self/mountinfo";
    assert_eq!(run(&world, &mounts, script).success().stdout(), "contentcontent 0 1\n1\n");
}

#[test]
fn privileged_a_volume_is_mapped_by_the_containers_own_maps() {
    let world = World::new("useridmap");
    let volume = volume(&world);
    chown(volume.join("file"), Some(7), Some(8)).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o755)).unwrap();
    let mounts = json!([
        {"destination": "/mapped", "type": "bind", "source": volume, "options": ["bind", "idmap"]},
        {"destination": "/plain", "type": "bind", "source": volume, "options": ["bind"]},
    ]);
    let script = "stat -c '%u %g' /mapped/file /plain/file; echo new >/mapped/new; ! touch /plain/x 2>/dev/null";
    assert_eq!(run(&world, &mounts, script).success().stdout(), "7 8\n65534 65534\n");
    let made = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0), "root of the container writes as the volume's root");
}

#[test]
fn privileged_a_tmpfs_is_filled_in_a_user_namespace() {
    let world = World::new("usercopy");
    fs::write(world.rootfs().join("var/file"), "content").unwrap();
    let mounts = json!([{"destination": "/var", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "mode=711"]}]);
    let script = "cat /var/file; stat -c ' %u %g' /var/file; stat -c %a /var; stat -f -c %T /var; echo x >/var/file";
    assert_eq!(run(&world, &mounts, script).success().stdout(), "content 0 0\n711\ntmpfs\n");
    assert_eq!(fs::read_to_string(world.rootfs().join("var/file")).unwrap(), "content");
}

#[test]
fn privileged_a_terminal_is_the_console_of_its_container() {
    let world = World::new("console");
    let bundle = world.bundle(|spec| {
        let script = "tty; [ $(stat -c %t:%T /dev/console) = $(stat -c %t:%T /dev/pts/0) ] && echo same >/dev/console";
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["process"]["terminal"] = true.into();
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    assert_eq!(output.success().stdout(), "/dev/pts/0\r\nsame\r\n");
}

#[test]
fn privileged_a_missing_source_is_named_as_engines_expect() {
    let world = World::new("missing");
    let bundle = world.bundle(|spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!(
            {"destination": "/x", "type": "bind", "source": "/no/such/place", "options": ["rbind"]}));
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    output.fails_with(1, "open '/no/such/place': no such file or directory");
}
