//! `install`: the files that make regen known to engines, in a root directory of the test's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use harness::{Output, REGEN, World};
use serde_json::Value;

const FILES: [(&str, &str); 4] = [
    ("podman", "etc/containers/containers.conf.d/50-regen.conf"),
    ("containerd", "etc/containerd/config.toml"),
    ("docker", "etc/docker/daemon.json"),
    ("crio", "etc/crio/crio.conf.d/50-regen.conf"),
];

/// A machine whose files nobody else reads, with regen where it says it is.
fn machine(world: &World) -> PathBuf {
    let root = world.base().join("machine");
    let binary = root.join(Path::new(REGEN).strip_prefix("/").unwrap());
    fs::create_dir_all(binary.parent().unwrap()).unwrap();
    fs::copy(REGEN, binary).unwrap();
    root
}

fn install(world: &World, root: &Path, arguments: &[&str]) -> Output {
    world.finish({
        let mut command = std::process::Command::new(REGEN);
        command.args(["install", "--root-dir", root.to_str().unwrap(), "--engine"]).args(arguments);
        command
    })
}

#[test]
fn an_engine_is_told_once_and_made_to_forget() {
    let world = World::new("in");
    let root = machine(&world);
    for (engine, file) in FILES {
        let file = root.join(file);
        let printed = install(&world, &root, &[engine, "--print"]).success().stdout().to_owned();
        assert!(!file.exists(), "--print wrote {}", file.display());
        let said = install(&world, &root, &[engine]);
        let undo = format!("undo: regen install --engine {engine} --undo");
        assert!(said.success().stdout().contains(&undo), "{said:?}");
        let written = fs::read_to_string(&file).unwrap();
        assert!(written.contains(&printed) && written.contains(REGEN), "{written}");
        assert!(install(&world, &root, &[engine]).success().stdout().contains("already"));
        assert_eq!(fs::read_to_string(&file).unwrap(), written);
        assert!(install(&world, &root, &[engine, "--undo"]).success().stdout().contains("is gone"));
        assert!(!file.exists(), "{} is left", file.display());
        assert!(install(&world, &root, &[engine, "--undo"]).success().stdout().contains("no runtime 'regen'"));
    }
}

#[test]
fn what_others_wrote_is_not_touched() {
    let world = World::new("io");
    let root = machine(&world);
    for (engine, file) in FILES {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        for text in ["[broken", "# mine\n[plugins]\n"] {
            fs::write(&file, text).unwrap();
            install(&world, &root, &[engine]).fails_with(1, "");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "{engine}");
        }
        let names = fs::read_dir(file.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "{engine} leaves files beside it");
    }
}

#[test]
fn docker_can_have_an_entry_for_each_ring() {
    let world = World::new("id");
    let root = machine(&world);
    install(&world, &root, &["docker"]).success();
    install(&world, &root, &["docker", "--ring", "alice", "--depth", "3"]).success();
    let text = fs::read_to_string(root.join("etc/docker/daemon.json")).unwrap();
    let runtimes = &serde_json::from_str::<Value>(&text).unwrap()["runtimes"];
    assert_eq!(runtimes["regen-alice"]["runtimeArgs"], serde_json::json!(["--ring", "alice", "--depth", "3"]));
    assert_eq!(runtimes["regen"]["path"], REGEN);
    install(&world, &root, &["podman", "--ring", "alice"]).fails_with(1, "no flags");
    install(&world, &root, &["docker", "--ring", "../x"]).fails_with(1, "name");
    install(&world, &root, &["docker", "--binary", "/nowhere"]).fails_with(1, "no such file");
}

#[test]
fn containerd_reads_what_was_added_to_its_file_beside_what_was_there() {
    let world = World::new("ic");
    let root = machine(&world);
    let file = root.join("etc/containerd/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    // As Debian's package has it.
    let old = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
               [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n";
    fs::write(&file, old).unwrap();
    install(&world, &root, &["containerd"]).success();
    let mut command = std::process::Command::new("containerd");
    command.arg("--config").arg(&file).args(["config", "dump"]);
    let dump: toml::Table = world.finish(command).success().stdout().parse().unwrap();
    let cri = &dump["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(cri["cni"]["bin_dir"].as_str(), Some("/usr/lib/cni"));
    let runtime = &cri["containerd"]["runtimes"]["regen"];
    assert_eq!(runtime["options"]["BinaryName"].as_str(), Some(REGEN));
    assert_eq!(runtime["pod_annotations"][0].as_str(), Some("run.regen.*"));
    install(&world, &root, &["containerd", "--undo"]).success();
    assert_eq!(fs::read_to_string(&file).unwrap(), old);
}
