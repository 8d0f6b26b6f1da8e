//! Rings that the annotations of a pod choose.

use serde_json::Value;

use crate::cri::{Cri, shell};
use crate::daemon::{Containerd, LATER};
use crate::harness::World;
use crate::message::{Container, EXITED, Pod};

/// Runs a script in a container of a pod, both of which come and go, and gives what it printed.
fn run(cri: &Cri, pod: &Pod, container: &str, script: &str) -> String {
    let sandbox = cri.run_pod(pod).unwrap();
    let id = cri.run(&sandbox, pod, shell(container, "trap 'exit 0' TERM; while :; do sleep 0.05; done"));
    let printed = cri.shell(&id, script);
    cri.stop(&id, 30);
    cri.remove(&id);
    cri.remove_pod(&sandbox);
    printed
}

fn rings(world: &World) -> Vec<String> {
    let list = world.ring_json(&["ls"]);
    let name = |ring: &Value| format!("{}/{}", ring["owner"].as_str().unwrap(), ring["name"].as_str().unwrap());
    let mut names: Vec<_> = list.as_array().unwrap().iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn each_container_of_a_pod_has_a_ring_that_outlives_the_pod() {
    let world = World::new("rp");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web").annotate("run.regen.ring.db", "data");
    let sandbox = cri.run_pod(&pod).unwrap();
    let script = |word: &str| format!("echo {word} >/root/state");
    for (name, word) in [("app", "one"), ("side", "two"), ("db", "three")] {
        let id = cri.run(&sandbox, &pod, shell(name, &script(word)));
        assert_eq!(cri.wait(&id).exit_code, 0);
    }
    cri.remove_pod(&sandbox);
    // The pause container came through regen as well, and has none.
    assert_eq!(rings(&world), ["k8s.team/data", "k8s.team/web-app", "k8s.team/web-side"]);
    assert_eq!(run(&cri, &pod, "app", "cat /root/state"), "one\n");
    assert_eq!(run(&cri, &pod, "side", "cat /root/state"), "two\n");
    assert_eq!(run(&cri, &pod, "db", "cat /root/state; echo four >/root/state"), "three\n");
    assert_eq!(world.seqs("k8s.team/web-app"), [1], "a run that changed nothing adds no entry");
    assert_eq!(world.seqs("k8s.team/data"), [2, 1]);
    let diff = world.ring(&["diff", "k8s.team/data@base", "k8s.team/data@latest"]);
    let mut lines: Vec<_> = diff.success().stdout().lines().collect();
    // What containerd's own files were mounted on.
    lines.retain(|line| !["A /etc/hostname", "A /etc/hosts", "A /etc/resolv.conf"].contains(line));
    assert_eq!(lines, ["A /root/state"]);
    world.ring(&["rollback", "k8s.team/data", "--to", "@1"]).success();
    assert_eq!(run(&cri, &pod, "db", "cat /root/state"), "three\n");
}

#[test]
fn a_pod_of_another_namespace_has_a_ring_of_its_own_by_the_same_name() {
    let world = World::new("rn");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = |namespace: &str| cri.pod(namespace, "web").annotate("run.regen.ring", "web");
    run(&cri, &pod("team"), "app", "echo secret >/root/state");
    assert_eq!(run(&cri, &pod("other"), "app", "cat /root/state || echo none"), "none\n");
    run(&cri, &pod("other"), "app", "echo mine >/root/state");
    assert_eq!(rings(&world), ["k8s.other/web-app", "k8s.team/web-app"]);
    assert_eq!(run(&cri, &pod("team"), "app", "cat /root/state"), "secret\n");
    // Whoever writes the pod chooses neither the owner nor what the engine says of the pod.
    for (key, value) in [("run.regen.ring", "k8s.team/web-app"), ("run.regen.ring.app", "../team/web-app")] {
        let refused = refusal(&cri, &cri.pod("other", "web").annotate(key, value), app());
        assert!(refused.contains(key), "{refused}");
    }
    let forged = pod("other").annotate("io.kubernetes.cri.sandbox-namespace", "team");
    assert_eq!(run(&cri, &forged, "app", "cat /root/state"), "mine\n");
}

fn app() -> Container {
    shell("app", "true")
}

/// What is said when this container of a pod cannot be started.
fn refusal(cri: &Cri, pod: &Pod, container: Container) -> String {
    let sandbox = cri.run_pod(pod).unwrap();
    let id = cri.create(&sandbox, pod, container).unwrap();
    let error = cri.start(&id).expect_err("it was started");
    assert_eq!(cri.status(&id).state, EXITED);
    cri.remove_pod(&sandbox);
    error.message().to_owned()
}

#[test]
fn a_ring_that_is_not_on_the_node_is_refused_where_a_pod_asks_for_that() {
    let world = World::new("rc");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web");
    let strict = pod.clone().annotate("run.regen.ring.create", "never");
    let refused = refusal(&cri, &strict, app());
    assert!(refused.contains("k8s.team/web-app") && refused.contains("no such ring"), "{refused}");
    assert!(rings(&world).is_empty());
    run(&cri, &pod, "app", "echo there >/root/state");
    assert_eq!(run(&cri, &strict, "app", "cat /root/state"), "there\n");
    let unknown = refusal(&cri, &pod.clone().annotate("run.regen.ring.create", "perhaps"), app());
    assert!(unknown.contains("run.regen.ring.create='perhaps'"), "{unknown}");
}

#[test]
fn a_container_that_kubelet_starts_again_goes_on_from_its_ring() {
    let world = World::new("ra");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    for attempt in 0..3 {
        let script = "echo run >>/root/runs; cat /root/runs; exit 1";
        let id = cri.run(&sandbox, &pod, shell("app", script).attempt(attempt));
        assert_eq!(cri.wait(&id).exit_code, 1);
    }
    cri.remove_pod(&sandbox);
    assert_eq!(run(&cri, &pod, "app", "cat /root/runs"), "run\nrun\nrun\n");
}

#[test]
fn an_annotation_for_one_container_gives_the_others_no_ring() {
    let world = World::new("ro");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring.app", "web").annotate("run.regen.ring.depth", "3");
    let sandbox = cri.run_pod(&pod).unwrap();
    for name in ["init", "app", "side"] {
        let id = cri.run(&sandbox, &pod, shell(name, "echo written >/root/state"));
        assert_eq!(cri.wait(&id).exit_code, 0);
    }
    cri.remove_pod(&sandbox);
    assert_eq!(rings(&world), ["k8s.team/web"]);
    assert_eq!(world.ring_json(&["ls"])[0]["depth"], 3);
}

#[test]
fn volumes_are_no_part_of_a_ring() {
    let world = World::new("rv");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let volume = world.base().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let pod = cri.pod("team", "web").annotate("run.regen.ring.app", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let script = "echo outside >/data/state; echo inside >/root/state";
    let container = shell("app", script).mount(&volume, "/data", |_| {});
    assert_eq!(cri.wait(&cri.run(&sandbox, &pod, container)).exit_code, 0);
    cri.remove_pod(&sandbox);
    assert_eq!(std::fs::read_to_string(volume.join("state")).unwrap(), "outside\n");
    assert_eq!(run(&cri, &pod, "app", "cat /root/state; ls -A /data"), "inside\n");
}

#[test]
fn a_newer_image_below_a_ring_is_refused_unless_the_pod_says_that_it_is_meant() {
    let world = World::new("rb");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web");
    run(&cri, &pod, "app", "echo kept >/root/state");
    let later = || shell("app", "cat /root/state /etc/release").from(LATER);
    let refused = refusal(&cri, &pod, later());
    assert!(refused.contains("it was made over overlay:"), "{refused}");
    assert!(refused.contains("run.regen.ring.rebase=always"), "{refused}");
    let meant = pod.clone().annotate("run.regen.ring.rebase", "always");
    let sandbox = cri.run_pod(&meant).unwrap();
    let id = cri.run(&sandbox, &meant, later());
    assert_eq!(cri.wait(&id).exit_code, 0);
    cri.remove_pod(&sandbox);
}

#[test]
fn two_pods_do_not_write_one_ring_at_a_time() {
    let world = World::new("rt");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let (one, two) = (cri.pod("team", "one"), cri.pod("team", "two"));
    let (one, two) = (one.annotate("run.regen.ring", "web"), two.annotate("run.regen.ring", "web"));
    let sandbox = cri.run_pod(&one).unwrap();
    let id = cri.run(&sandbox, &one, shell("app", "while :; do sleep 0.05; done"));
    let refused = refusal(&cri, &two, app());
    assert!(refused.contains(&id), "the holder is named: {refused}");
    cri.remove_pod(&sandbox);
    run(&cri, &two, "app", "true");
}
