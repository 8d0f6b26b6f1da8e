//! Pods and their containers, as kubelet handles them.

use nix::mount::MsFlags;

use crate::cri::shell;
use crate::daemon::Containerd;
use crate::harness::{World, eventually};
use crate::message::{
    CONTAINER, Container, EXITED, HOST_TO_CONTAINER, NODE, NamespaceOption, POD, RUNNING, Resources, Usage,
};

/// Ends with 7 when it is asked to stop.
const SERVICE: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";

#[test]
fn a_container_of_a_pod_is_entered_measured_stopped_and_removed() {
    let world = World::new("po");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let id = cri.run(&sandbox, &pod, shell("app", SERVICE));
    assert_eq!(cri.status(&id).state, RUNNING);
    eventually("containerd wrote the log", || cri.log("web", "app").contains(" stdout F ready\n"));
    let answer = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"]).unwrap();
    assert_eq!((&*answer.stdout, &*answer.stderr, answer.exit_code), (&b"out\n"[..], &b"err\n"[..], 3));
    eventually("there are numbers", || {
        let stats = cri.stats(&id);
        let used = |usage: Option<Usage>| usage.and_then(|usage| usage.used).is_some_and(|used| used.value > 0);
        used(stats.cpu) && used(stats.memory)
    });
    cri.stop(&id, 30);
    let status = cri.status(&id);
    assert_eq!((status.state, status.exit_code, &*status.reason), (EXITED, 7, "Error"));
    cri.remove(&id);
    cri.remove_pod(&sandbox);
}

#[test]
fn what_does_not_stop_in_time_is_killed() {
    let world = World::new("pk");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let deaf = cri.run(&sandbox, &pod, shell("deaf", "trap '' TERM; while :; do sleep 0.05; done"));
    cri.stop(&deaf, 1);
    assert_eq!(cri.status(&deaf).exit_code, 137);
    // Also by the end of the pod.
    let left = cri.run(&sandbox, &pod, shell("left", SERVICE));
    cri.remove_pod(&sandbox);
    let calls = containerd.calls();
    assert!(calls.lines().any(|line| line.contains(" delete ") && line.ends_with(&left)), "{calls}");
}

#[test]
fn programs_that_cannot_be_started_are_told_of_as_kubelet_expects() {
    let world = World::new("pm");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let missing = cri.create(&sandbox, &pod, command("missing", &["nonesuch"])).unwrap();
    let error = cri.start(&missing).unwrap_err();
    assert!(error.message().contains("executable file not found in $PATH"), "{error}");
    let status = cri.status(&missing);
    assert_eq!((status.state, &*status.reason), (EXITED, "StartError"));
    let denied = cri.create(&sandbox, &pod, command("denied", &["/dev/null"])).unwrap();
    let error = cri.start(&denied).unwrap_err();
    assert!(error.message().contains("permission denied"), "{error}");

    let id = cri.run(&sandbox, &pod, shell("app", SERVICE));
    let error = cri.exec(&id, &["nonesuch"]).unwrap_err();
    assert!(error.message().contains("executable file not found in $PATH"), "{error}");
    // As a probe that hangs.
    let error = cri.exec_within(&id, &["sleep", "1000"], 1).unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    eventually("the probe is gone", || !cri.shell(&id, "ps").contains("sleep 1000"));
    cri.stop(&id, 30);
    let error = cri.exec(&id, &["true"]).unwrap_err();
    assert!(error.message().contains("state"), "{error}");
    cri.remove_pod(&sandbox);
}

fn command(name: &str, words: &[&str]) -> Container {
    let mut container = shell(name, "");
    container.command = words.iter().map(|word| (*word).to_owned()).collect();
    container
}

#[test]
fn containers_of_a_pod_share_the_namespaces_that_it_says() {
    let world = World::new("pn");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let mut pod = cri.pod("default", "web").share(POD, POD);
    pod.hostname = "webhost".into();
    let sandbox = cri.run_pod(&pod).unwrap();
    let share = |container: Container| {
        container.secure(|security| {
            security.namespaces = Some(NamespaceOption { network: POD, pid: POD, ipc: POD });
        })
    };
    let one = cri.run(&sandbox, &pod, share(shell("one", SERVICE)));
    let two = cri.run(&sandbox, &pod, share(shell("two", SERVICE)));
    let spaces = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done";
    assert_eq!(cri.shell(&one, spaces), cri.shell(&two, spaces));
    assert_eq!(cri.shell(&one, "hostname"), "webhost\n");
    assert!(cri.shell(&one, "ps").contains("sleep infinity"), "the pause container is pid 1");
    cri.shell(&one, "echo hi >/dev/shm/x");
    assert_eq!(cri.shell(&two, "cat /dev/shm/x"), "hi\n");
    assert_ne!(cri.shell(&one, "readlink /proc/self/ns/mnt"), cri.shell(&two, "readlink /proc/self/ns/mnt"));
    // One that ends takes nobody with it.
    cri.stop(&one, 30);
    assert_eq!(cri.status(&two).state, RUNNING);
    cri.remove_pod(&sandbox);

    let pod = cri.pod("default", "node").share(NODE, NODE);
    let sandbox = cri.run_pod(&pod).unwrap();
    let node = cri.run(
        &sandbox,
        &pod,
        shell("node", SERVICE).secure(|security| {
            security.namespaces = Some(NamespaceOption { network: NODE, pid: NODE, ipc: NODE });
        }),
    );
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(cri.shell(&node, "readlink /proc/self/ns/pid").trim_end(), own.to_str().unwrap());
    cri.remove_pod(&sandbox);
}

#[test]
fn volumes_are_mounted_as_the_pod_says() {
    let world = World::new("pv");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let volume = world.base().join("volume");
    std::fs::create_dir_all(volume.join("inner")).unwrap();
    std::fs::write(volume.join("file"), "of the node\n").unwrap();
    // containerd hands on only mounts of what is shared, as everything is under systemd.
    let none = None::<&str>;
    nix::mount::mount(Some(&volume), &volume, none, MsFlags::MS_BIND, none).unwrap();
    nix::mount::mount(none, &volume, none, MsFlags::MS_SHARED, none).unwrap();
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let container = shell("app", SERVICE)
        .mount(&volume, "/data", |_| {})
        .mount(&volume, "/read", |mount| mount.readonly = true)
        .mount(&volume.join("file"), "/etc/app/settings", |mount| mount.readonly = true)
        .mount(&volume, "/later", |mount| mount.propagation = HOST_TO_CONTAINER);
    let id = cri.run(&sandbox, &pod, container);
    assert_eq!(cri.shell(&id, "cat /etc/app/settings /read/file"), "of the node\nof the node\n");
    cri.shell(&id, "echo written >/data/new; ! touch /read/x 2>/dev/null; ! touch /etc/app/settings 2>/dev/null");
    assert_eq!(std::fs::read_to_string(volume.join("new")).unwrap(), "written\n");
    let inner = volume.join("inner");
    nix::mount::mount(Some("x"), &inner, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    std::fs::write(inner.join("x"), "").unwrap();
    let seen = cri.exec(&id, &["sh", "-c", "ls /later/inner /data/inner"]);
    nix::mount::umount(&inner).unwrap();
    let seen = String::from_utf8(seen.unwrap().stdout).unwrap();
    assert_eq!(seen.matches('x').count(), 1, "only where it was asked for: {seen}");
    cri.remove_pod(&sandbox);
    nix::mount::umount(&volume).unwrap();
}

#[test]
fn a_container_of_a_pod_may_have_a_terminal() {
    let world = World::new("pt");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let mut container = shell("app", "tty; test -t 0 && test -t 2 && echo all");
    container.tty = true;
    let id = cri.run(&sandbox, &pod, container);
    assert_eq!(cri.wait(&id).exit_code, 0);
    eventually("containerd wrote the log", || cri.log("web", "app").contains("all"));
    assert!(cri.log("web", "app").contains("/dev/pts/0"));
    cri.remove_pod(&sandbox);
}

#[test]
fn a_container_that_takes_too_much_memory_is_told_of() {
    let world = World::new("pe");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let limit = Resources { memory_limit: 32 << 20, ..Resources::default() };
    // A variable that doubles until there is no room.
    let greedy = shell("app", "sleep 0.2; a=0123456789abcdef; while :; do a=$a$a; done").limit(limit);
    let id = cri.run(&sandbox, &pod, greedy);
    let status = cri.wait(&id);
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    cri.remove_pod(&sandbox);
}

#[test]
fn the_limits_of_a_container_are_set_and_changed() {
    let world = World::new("pu");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let limit = |mebibytes: i64, quota: i64| Resources {
        memory_limit: mebibytes << 20,
        cpu_period: 100_000,
        cpu_quota: quota,
        cpu_shares: 512,
        ..Resources::default()
    };
    let id = cri.run(&sandbox, &pod, shell("app", SERVICE).limit(limit(64, 50_000)));
    let read = |controller: &str, file: &str| {
        let pid = containerd.state(&id)["pid"].as_i64().unwrap();
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let mut lines = groups.lines().filter_map(|line| line.split_once(&format!(":{controller}:")));
        let (_, path) = lines.next().unwrap();
        let path = format!("/sys/fs/cgroup/{controller}{path}/{file}");
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim_end().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!((read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.shares")), ("50000".into(), "512".into()));
    cri.update(&id, limit(96, 80_000)).unwrap();
    assert_eq!(read("memory", "memory.limit_in_bytes"), (96 << 20).to_string());
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "80000");
    cri.remove_pod(&sandbox);
}

#[test]
fn a_pod_may_be_isolated_from_the_node_in_every_namespace() {
    let world = World::new("pi");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let port = ("net.ipv4.ip_unprivileged_port_start", "/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let pod = cri.pod("default", "web").share(POD, CONTAINER).tune(port.0, "80");
    let sandbox = cri.run_pod(&pod).unwrap();
    let container = shell("app", SERVICE).secure(|security| {
        security.namespaces = Some(NamespaceOption { network: POD, pid: CONTAINER, ipc: POD });
    });
    let id = cri.run(&sandbox, &pod, container);
    for space in ["net", "ipc", "uts", "pid", "mnt"] {
        let inside = cri.shell(&id, &format!("readlink /proc/self/ns/{space}"));
        let own = std::fs::read_link(format!("/proc/self/ns/{space}")).unwrap();
        assert_ne!(inside.trim_end(), own.to_str().unwrap());
    }
    assert_eq!(cri.shell(&id, "cat /proc/1/comm"), "sh\n");
    assert_eq!(cri.shell(&id, &format!("cat {}", port.1)), "80\n");
    assert_ne!(std::fs::read_to_string(port.1).unwrap(), "80\n");
    cri.remove_pod(&sandbox);
}
