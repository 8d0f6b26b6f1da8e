//! What a container is made from without a bundle: a directory, an image.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::process::Command;

use harness::image::{Form, Layout, Tar};
use harness::ring::{names, picture};
use harness::{Output, REGEN, World};
use serde_json::json;

/// Runs an image with these flags, and the command after `--` if there is one.
fn run(world: &World, reference: &str, flags: &[&str], command: &[&str]) -> Output {
    let id = world.fresh_id();
    let mut arguments = vec!["run", "--image", reference];
    arguments.extend(flags);
    arguments.push(&id);
    if !command.is_empty() {
        arguments.push("--");
        arguments.extend(command);
    }
    world.regen(&arguments)
}

fn tool(world: &World, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments);
    world.finish(command).success();
}

/// The layers of the store that came from images.
fn image_layers(world: &World) -> Vec<String> {
    names(&world.store().join("layers"))
}

#[test]
fn a_directory_is_never_written() {
    let world = World::new("rootfs");
    let before = picture(&world.rootfs());
    let script = "echo x > /tmp/x; echo y >> /etc/passwd; rm -r /root /bin/vi; mkdir /new; chmod 700 /etc; touch /var";
    world.run_with(&[], script).success();
    world.run_with(&[], "test ! -e /tmp/x && test -d /root").success();
    world.run_with(&["--ring", "alice"], script).success();
    world.run_with(&["--ring", "alice"], "test -e /tmp/x").success();
    world.pack();
    assert_eq!(picture(&world.rootfs()), before);
    let (rootfs, id) = (world.rootfs_text(), world.fresh_id());
    let mut terminal = vec!["run", "--rootfs", &rootfs, &id, "--", "sh", "-c", "touch /etc/mtab; exit 9"];
    world.regen(&terminal).code(9);
    terminal.truncate(4);
    world.regen(&terminal).fails_with(2, "no command was given");
    assert_eq!(picture(&world.rootfs()), before);
}

#[test]
fn a_run_without_a_bundle_has_a_path_namespaces_and_what_was_asked_for() {
    let world = World::new("template");
    let flags = ["--env", "A=1", "--env", "B=2 3", "--workdir", "/var", "--user", "user"];
    let output =
        world.run_with(&flags, "pwd; id -u; echo $A $B $HOME; echo $PATH; echo $$; ls /proc | grep -c '^[0-9]'");
    let lines: Vec<&str> = output.success().stdout().lines().collect();
    assert_eq!(lines[..3], ["/var", "1000", "1 2 3 /home/user"]);
    assert!(lines[3].starts_with("/usr/local/sbin:") && lines[3].ends_with("/bin"), "{}", lines[3]);
    assert_eq!(lines[4], "1");
    assert!(lines[5].parse::<u32>().unwrap() < 5, "it sees other processes");
    world.run_with(&["--user", "nobody-there"], "true").fails_with(1, "nobody-there");
    let id = world.fresh_id();
    world.regen(&["run", "--rootfs", "/no/such/dir", &id, "--", "true"]).fails_with(1, "no such file or directory");
    world.regen(&["run", "--rootfs", "/etc/passwd", &id, "--", "true"]).fails_with(1, "not a directory");
    assert!(names(&world.store().join("runs")).is_empty());
}

#[test]
fn a_caller_whose_root_is_not_the_hosts_runs_containers_too() {
    let world = World::new("chroot");
    let root = world.base().join("root");
    fs::create_dir(&root).unwrap();
    // What lies under /run there is seen by nobody else: a path that goes astray leads to nothing.
    let script = format!(
        "mount --rbind / {root} && mount -t tmpfs tmpfs {root}/run && cd / &&
         exec chroot {root} {REGEN} --root /run/regen --store {store} run --rootfs {rootfs} {id} -- echo inside",
        root = root.display(),
        store = world.store().display(),
        rootfs = world.rootfs_text(),
        id = world.fresh_id(),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    assert_eq!(world.finish(command).success().stdout(), "inside\n");
}

#[test]
fn images_that_umoci_and_skopeo_made_run_from_layouts_and_archives() {
    let world = World::new("tools");
    let text = |name: &str| world.base().join(name).to_str().unwrap().to_owned();
    let (layout, image) = (text("gzip"), text("gzip:v1"));
    tool(&world, "umoci", &["init", "--layout", &layout]);
    tool(&world, "umoci", &["new", "--image", &image]);
    tool(&world, "umoci", &["insert", "--image", &image, &world.rootfs_text(), "/"]);
    tool(&world, "umoci", &["config", "--image", &image, "--config.cmd=cat", "--config.cmd=/etc/passwd"]);
    let copy = |options: &[&str], from: &str, to: &str| {
        tool(&world, "skopeo", &[&["--insecure-policy", "copy", "--quiet"], options, &[from, to]].concat());
    };
    let from = format!("oci:{image}");
    copy(&["--dest-compress", "--dest-compress-format", "zstd"], &from, &format!("dir:{}", text("dir")));
    copy(&[], &format!("dir:{}", text("dir")), &format!("oci:{}", text("zstd:v1")));
    copy(&["--dest-decompress"], &from, &format!("dir:{}", text("plain-dir")));
    let accept = ["--dest-oci-accept-uncompressed-layers"];
    copy(&accept, &format!("dir:{}", text("plain-dir")), &format!("oci:{}", text("plain:v1")));
    copy(&[], &from, &format!("oci-archive:{}", text("gzip.tar:v1")));
    copy(&[], &format!("oci:{}", text("zstd:v1")), &format!("oci-archive:{}", text("zstd.tar:v1")));
    let expected = fs::read_to_string(world.rootfs().join("etc/passwd")).unwrap();
    for reference in
        ["oci:gzip:v1", "oci:zstd:v1", "oci:plain:v1", "oci-archive:gzip.tar:v1", "oci-archive:zstd.tar", "oci:gzip"]
    {
        assert_eq!(run(&world, reference, &[], &[]).success().stdout(), expected, "{reference}");
        assert_eq!(image_layers(&world).len(), 1, "the same layer, however it is compressed");
    }
}

#[test]
fn the_images_config_is_honoured_and_the_caller_goes_before_it() {
    let world = World::new("config");
    let layout = Layout::new(world.base().join("image"));
    let users = b"root:x:0:0::/root:/bin/sh\nweb:x:7:8::/srv/web:/bin/sh\n".as_slice();
    let tar = || Tar::new().busybox().file("etc/passwd", users).file("etc/group", b"wheel:x:9:web\n");
    let script = "id; pwd; echo $GREETING $HOME; echo \"$0 $@\"";
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c", script], "Cmd": ["a", "b"], "Env": ["GREETING=hi", "PATH=/bin"],
        "User": "web", "WorkingDir": "/etc",
    });
    layout.image("v1", vec![(tar(), Form::Gzip)], &config);
    let reference = layout.reference("v1");
    let output = run(&world, &reference, &[], &[]);
    assert_eq!(output.success().stdout(), "uid=7(web) gid=8 groups=9(wheel)\n/etc\nhi /srv/web\na b\n");
    let flags = ["--env", "GREETING=ho", "--user", "0:0", "--workdir", "/"];
    let output = run(&world, &reference, &flags, &["c", "d e"]);
    assert!(output.success().stdout().starts_with("uid=0(root) gid=0"), "{}", output.stdout());
    assert!(output.stdout().ends_with("\n/\nho /root\nc d e\n"), "{}", output.stdout());

    layout.image("cmd", vec![(tar(), Form::Gzip)], &json!({"Cmd": ["pwd"], "WorkingDir": "/made/anew"}));
    assert_eq!(run(&world, &layout.reference("cmd"), &[], &[]).success().stdout(), "/made/anew\n");
    run(&world, &layout.reference("cmd"), &["--ring", "alice"], &[]).success();
    assert_eq!(world.ring_json(&["ls"])[0]["entries"], 0, "that it was made is no change");
    run(&world, &layout.reference("cmd"), &["--workdir", "/etc/passwd/x"], &[]).fails_with(1, "cwd");
    assert_eq!(run(&world, &layout.reference("cmd"), &[], &["echo", "x"]).success().stdout(), "x\n");
    layout.image("nothing", vec![(tar(), Form::Gzip)], &json!({}));
    run(&world, &layout.reference("nothing"), &[], &[]).fails_with(1, "command");
    layout.image("ghost", vec![(tar(), Form::Gzip)], &json!({"Cmd": ["true"], "User": "ghost"}));
    run(&world, &layout.reference("ghost"), &[], &[]).fails_with(1, "ghost");
    assert_eq!(image_layers(&world).len(), 1);
}

#[test]
fn layers_are_unpacked_once_and_shared_and_stack_as_the_image_says() {
    let world = World::new("stack");
    let layout = Layout::new(world.base().join("image"));
    let base = || {
        (
            Tar::new().busybox().file("etc/one", b"1").file("etc/two", b"2").directory("old").file("old/f", b""),
            Form::Zstd,
        )
    };
    let second = (
        Tar::new().file("etc/.wh.one", b"").file("etc/two", b"zwei").directory("old").file("old/.wh..wh..opq", b""),
        Form::Gzip,
    );
    layout.image("a", vec![base()], &json!({}));
    layout.image("b", vec![base(), second], &json!({}));
    let look = ["sh", "-c", "ls /etc /old; cat /etc/two"];
    assert_eq!(run(&world, &layout.reference("a"), &[], &look).success().stdout(), "/etc:\none\ntwo\n\n/old:\nf\n2");
    let before = picture(&world.store().join("layers"));
    assert_eq!(run(&world, &layout.reference("b"), &[], &look).success().stdout(), "/etc:\ntwo\n\n/old:\nzwei");
    assert_eq!(image_layers(&world).len(), 2);
    let mut after = picture(&world.store().join("layers"));
    after.retain(|path, _| before.contains_key(path));
    assert_eq!(after, before, "what both stand on was not unpacked again");
    run(&world, &layout.reference("b"), &[], &["sh", "-c", "echo x > /etc/two"]).success();
    assert_eq!(run(&world, &layout.reference("b"), &[], &look).success().stdout(), "/etc:\ntwo\n\n/old:\nzwei");
    world.pack();
    assert_eq!(image_layers(&world).len(), 2, "collecting leaves images alone");
}

#[test]
fn a_ring_over_an_image_goes_on_wherever_the_image_lies() {
    let world = World::new("ring");
    let layout = Layout::new(world.base().join("image"));
    layout.image("v1", vec![(Tar::new().busybox(), Form::Zstd)], &json!({}));
    let archive = world.base().join("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&archive).arg("-C").arg(layout.directory()).args(["oci-layout", "index.json", "blobs"]);
    world.finish(tar).success();
    let ring = ["--ring", "alice"];
    run(&world, &layout.reference("v1"), &ring, &["sh", "-c", "echo one > /tmp/f"]).success();
    fs::remove_dir_all(layout.directory()).unwrap();
    let moved = format!("oci-archive:{}", archive.display());
    assert_eq!(run(&world, &moved, &ring, &["cat", "/tmp/f"]).success().stdout(), "one\n");
    assert!(world.ring(&["diff", "alice@base", "@1"]).success().stdout().contains("A /tmp/f\n"));
    // Another image is another base.
    let layout = Layout::new(world.base().join("other"));
    layout.image("v2", vec![(Tar::new().busybox().file("more", b""), Form::Zstd)], &json!({}));
    run(&world, &layout.reference("v2"), &ring, &["true"]).fails_with(1, "it was made over image:");
    let rebased = run(&world, &layout.reference("v2"), &["--ring", "alice", "--rebase"], &["cat", "/tmp/f", "/more"]);
    assert_eq!(rebased.success().stdout(), "one\n");
    world.pack();
}
