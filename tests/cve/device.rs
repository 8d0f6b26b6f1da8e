//! CVE-2026-41579, and CVE-2026-88265 of another runtime: an image whose `/dev`, or a device in it, is a symlink makes the
//! runtime delete, create or change files on the host.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::harness::World;
use crate::{add_mount, assert_untouched, drop_mounts, host_directory, image, run, shell_in};

#[test]
fn a_device_directory_that_is_a_symlink_is_refused_from_wherever_the_image_comes() {
    let world = World::new("41579-link");
    let host = host_directory(&world);
    fs::write(host.join("ptmx"), "the host's").unwrap();
    for link in ["dev", "dev/pts", "dev/shm", "dev/mqueue", "dev/net"] {
        for target in [host.to_str().unwrap(), "../../../../../../../../../..", "../host", "/nowhere"] {
            let image = image(&world, "image");
            let path = image.join(link);
            if path.exists() {
                fs::remove_dir(&path).unwrap();
            }
            symlink(target, &path).unwrap();
            let text = image.to_str().unwrap();
            for mounted in [true, false] {
                let bundle = shell_in(&world, &image, "true", |spec| {
                    drop_mounts(spec, |place| !mounted && place.starts_with("/dev"));
                    if link == "dev/mqueue" && mounted {
                        drop_mounts(spec, |place| place == "/dev");
                        add_mount(spec, json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"}));
                    }
                    let device = json!({"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200});
                    spec["linux"]["devices"] = json!([device]);
                });
                let output = run(&world, &bundle);
                // What is not mounted, or lies under a mount of the runtime's own, is never looked at.
                assert!(output.code == 1 || link != "dev", "{link} -> {target}: {output:?}");
            }
            let arguments = ["run", "--rootfs", text, "--ring", "alice", &world.fresh_id(), "--", "true"];
            let output = world.regen(&arguments);
            assert!(output.code == 1 || link != "dev", "{link} -> {target}: {output:?}");
            fs::remove_dir_all(&image).unwrap();
            assert_eq!(fs::read_to_string(host.join("ptmx")).unwrap(), "the host's");
            assert_eq!(crate::harness::ring::names(&host), ["ptmx", "secret"]);
        }
    }
}

#[test]
fn a_device_that_is_a_symlink_leads_to_no_file_of_the_host() {
    let world = World::new("41579-device");
    let host = host_directory(&world);
    let (secret, new) = (host.join("secret"), host.join("new"));
    for name in
        ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr", "core", "made"]
    {
        for target in [secret.to_str().unwrap(), new.to_str().unwrap(), "../../host/new"] {
            let image = image(&world, "image");
            symlink(target, image.join("dev").join(name)).unwrap();
            let bundle = shell_in(&world, &image, "true", |spec| {
                drop_mounts(spec, |place| place.starts_with("/dev"));
                // Standard streams that are /dev/null are opened again inside, and get the user as their owner.
                spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
                let device = json!({"path": "/dev/made", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 7, "gid": 7});
                spec["linux"]["devices"] = json!([device]);
            });
            let output = run(&world, &bundle);
            assert!(output.code == 0 || output.code == 1, "{name} -> {target}: {output:?}");
            assert_untouched(&host);
            fs::remove_dir_all(&image).unwrap();
        }
    }
}
