//! A runtime that is given little time, and an engine that dies.

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::cri::{Cri, shell};
use crate::daemon::Containerd;
use crate::harness::{World, eventually};
use crate::message::{EXITED, Pod};

/// Changes something, and runs until it is asked to stop.
const WRITER: &str = "echo kept >/root/state; echo ready; trap 'exit 0' TERM; while :; do sleep 0.05; done";
/// Changes nothing.
const READER: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A pod that comes after finds what the one before wrote, as the one entry of its ring.
fn assert_kept(world: &World, cri: &Cri, pod: &Pod) {
    let sandbox = cri.run_pod(pod).unwrap();
    let id = cri.run(&sandbox, pod, shell("app", READER));
    assert_eq!(cri.shell(&id, "cat /root/state"), "kept\n");
    assert_eq!(world.seqs("k8s.team/web-app"), [1]);
    cri.remove_pod(&sandbox);
}

#[test]
fn delete_does_not_wait_for_the_pack() {
    let world = World::new("kd");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let id = cri.run(&sandbox, &pod, shell("app", "dd if=/dev/urandom of=/root/large bs=1M count=96"));
    assert_eq!(cri.wait(&id).exit_code, 0);
    // The CRI plugin tells of the end once `delete` has returned. The worker goes on, also without the shim.
    assert_eq!(world.log("k8s.team/web-app")[0]["state"], "sealed");
    let shim = containerd.shim(&sandbox);
    killpg(shim, Signal::SIGKILL).unwrap();
    world.pack();
    assert_eq!(world.log("k8s.team/web-app")[0]["state"], "packed");
    world.ring(&["verify"]).success();
    cri.remove_pod(&sandbox);
}

#[test]
fn the_death_of_a_shim_loses_nothing() {
    let world = World::new("ks");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let id = cri.run(&sandbox, &pod, shell("app", WRITER));
    eventually("the program runs", || cri.log("web", "app").contains("ready"));
    killpg(containerd.shim(&sandbox), Signal::SIGKILL).unwrap();
    // containerd takes apart what the shim had; the pod is kubelet's to replace.
    eventually("containerd cleaned up", || cri.status(&id).state == EXITED);
    cri.remove_pod(&sandbox);
    assert_kept(&world, &cri, &pod);
}

#[test]
fn a_delete_that_dies_with_its_shim_loses_nothing() {
    let world = World::new("kt");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let _shim = containerd.shim(&sandbox);
    std::fs::write(containerd.trap(), "").unwrap();
    let id = cri.run(&sandbox, &pod, shell("app", "echo kept >/root/state"));
    eventually("delete was killed", || !containerd.trap().exists());
    cri.wait(&id);
    cri.remove_pod(&sandbox);
    assert_kept(&world, &cri, &pod);
}

#[test]
fn the_death_of_everything_loses_nothing() {
    let world = World::new("ke");
    let mut containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("team", "web").annotate("run.regen.ring", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let id = cri.run(&sandbox, &pod, shell("app", WRITER));
    eventually("the program runs", || cri.log("web", "app").contains("ready"));
    let pids = [&id, &sandbox].map(|id| i32::try_from(containerd.state(id)["pid"].as_i64().unwrap()).unwrap());
    let shim = containerd.shim(&sandbox);
    containerd.kill();
    killpg(shim, Signal::SIGKILL).unwrap();
    for pid in pids {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    containerd.start();
    let cri = containerd.cri();
    let next = cri.pod("team", "next").annotate("run.regen.ring", "web");
    assert_kept(&world, &cri, &next);
}
