//! Pods: containers that share namespaces, held by one that does nothing.

use crate::harness::{World, eventually};
use crate::podman::Podman;

#[test]
fn containers_of_a_pod_see_one_loopback() {
    let world = World::new("pn");
    let podman = Podman::new(&world);
    let (pod, server) = (world.id("pod"), world.id("server"));
    // podman builds the image of its pause container by itself, of catatonit.
    let parent = podman.parent();
    podman.call(&["pod", "create", "--name", &pod, "--network", "none", "--cgroup-parent", &parent]).success();
    let script = "while :; do echo hi from $HOSTNAME | nc -l -p 7777; done";
    podman.call(&["run", "--detach", "--pod", &pod, "--name", &server, "box:1", "sh", "-c", script]).success();
    let greeting = format!("hi from {pod}\n");
    let ask = ["run", "--rm", "--pod", &pod, "box:1", "nc", "127.0.0.1", "7777"];
    eventually("the server answers", || podman.call(&ask).stdout() == greeting);
    let spaces = |kind: &str| {
        let script = format!("readlink /proc/self/ns/{kind}");
        let one = podman.call(&["exec", &server, "sh", "-c", &script]).success().stdout().to_owned();
        let other = podman.call(&["run", "--rm", "--pod", &pod, "box:1", "sh", "-c", &script]);
        (one, other.success().stdout().to_owned())
    };
    let (one, other) = spaces("net");
    assert_eq!(one, other);
    let (one, other) = spaces("pid");
    assert_ne!(one, other);
    assert_eq!(podman.call(&["pod", "inspect", &pod, "--format", "{{.State}}"]).success().stdout(), "Running\n");
    podman.call(&["pod", "stop", "--time", "0", &pod]).success();
    podman.call(&["pod", "start", &pod]).success();
    eventually("the server answers again", || podman.call(&ask).stdout() == greeting);
    podman.call(&["pod", "rm", "--force", "--time", "0", &pod]).success();
}
