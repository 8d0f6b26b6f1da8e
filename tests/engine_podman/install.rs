//! `regen install` where podman really looks, in a mount namespace in which that is the test's own.

use crate::harness::enclosure::Enclosure;
use crate::harness::{REGEN, World};

#[test]
fn podman_finds_regen_once_it_is_installed_and_no_more_once_it_is_not() {
    let world = World::new("po");
    let machine = Enclosure::new(&world, "mount -t tmpfs none /etc/containers");
    let place = |name: &str| world.base().join(name).to_str().unwrap().to_owned();
    let (root, runroot, tmp) = (place("podman"), place("r"), place("t"));
    let podman = ["podman", "--root", &root, "--runroot", &runroot, "--tmpdir", &tmp, "--cgroup-manager", "cgroupfs"];
    let ask = ["--runtime", "regen", "info", "--format", "{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}"];
    let info = || machine.run(&[&podman[..], &ask].concat());
    assert!(info().code != 0, "podman knows regen before it is told");
    machine.run(&[REGEN, "install", "--engine", "podman"]).success();
    assert_eq!(info().success().stdout(), format!("regen {REGEN}\n"));
    machine.run(&[REGEN, "install", "--engine", "podman", "--undo"]).success();
    assert!(info().code != 0, "podman knows regen after it was to forget");
}
