//! What a pod's security context asks for, as the program in the container sees it.

use crate::cri::{Cri, shell};
use crate::daemon::Containerd;
use crate::harness::World;
use crate::message::{Capability, Container, Number, Profile, RUNTIME_DEFAULT};

/// What a container of this kind says of itself: the fields of /proc/self/status, and what a script prints.
fn look(cri: &Cri, change: impl FnOnce(Container) -> Container, script: &str) -> String {
    let pod = cri.pod("default", "web");
    let sandbox = cri.run_pod(&pod).unwrap();
    let id = cri.run(&sandbox, &pod, change(shell("app", "while :; do sleep 0.05; done")));
    let fields = "grep -E '^(CapBnd|CapEff|Seccomp|NoNewPrivs|Uid|Groups):' /proc/1/status | while read a b c; do echo $a$b; done";
    let text = cri.shell(&id, &format!("{fields}; {script}"));
    cri.remove_pod(&sandbox);
    text
}

#[test]
fn capabilities_are_added_and_dropped() {
    let world = World::new("sc");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let of = |add: &[&str], drop: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capability { add: list(add), drop: list(drop) };
        look(&cri, |container| container.secure(|security| security.capabilities = Some(capabilities)), "")
    };
    assert!(of(&[], &["ALL"]).contains("CapEff:0000000000000000"));
    let one = of(&["NET_ADMIN"], &["ALL"]);
    assert!(one.contains("CapEff:0000000000001000") && one.contains("CapBnd:0000000000001000"), "{one}");
    assert!(of(&[], &["CHOWN"]).contains("CapEff:00000000a80425fa"), "containerd's own list without the first");
}

#[test]
fn a_user_is_chosen_and_the_root_made_read_only() {
    let world = World::new("su");
    let containerd = Containerd::new(&world);
    let text = look(
        &containerd.cri(),
        |container| {
            container.secure(|security| {
                security.run_as_user = Some(Number { value: 1000 });
                security.supplemental_groups = vec![2000];
                security.readonly_rootfs = true;
                security.no_new_privs = true;
            })
        },
        "id -u; id -G; touch /tmp/x 2>&1 || echo refused; grep ' / ' /proc/mounts",
    );
    for line in ["Uid:1000", "NoNewPrivs:1", "CapEff:0000000000000000", "1000", "0 2000", "refused"] {
        assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
    }
    assert!(text.contains("Read-only file system"), "{text}");
}

#[test]
fn the_default_filter_and_the_hidden_paths_hold() {
    let world = World::new("sf");
    let containerd = Containerd::new(&world);
    let text = look(
        &containerd.cri(),
        |container| {
            container.secure(|security| {
                security.seccomp = Some(Profile { kind: RUNTIME_DEFAULT });
                security.masked_paths = ["/proc/version", "/proc/irq"].map(str::to_owned).into();
                security.readonly_paths = ["/proc/sys"].map(str::to_owned).into();
            })
        },
        "test -c /proc/version && echo file hidden; grep -q '^[^ ]* /proc/irq tmpfs' /proc/mounts && echo directory hidden; \
         sh -c 'echo 1 >/proc/sys/kernel/panic' 2>&1 || echo refused; \
         mount -t tmpfs x /tmp 2>&1 || echo unmounted; \
         grep Seccomp: /proc/self/status",
    );
    for line in ["Seccomp:2", "file hidden", "directory hidden", "refused", "unmounted", "Seccomp:\t2"] {
        assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
    }
}

#[test]
fn a_privileged_container_sees_the_nodes_devices_and_may_do_everything() {
    let world = World::new("sp");
    let containerd = Containerd::new(&world);
    let cri = containerd.cri();
    let pod = cri.pod("default", "web").privilege();
    let sandbox = cri.run_pod(&pod).unwrap();
    let container = shell("app", "while :; do sleep 0.05; done").secure(|security| security.privileged = true);
    let id = cri.run(&sandbox, &pod, container);
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |text: &str| text.lines().find(|line| line.starts_with("CapBnd:")).unwrap().to_owned();
    for process in ["1", "self"] {
        assert_eq!(field(&cri.shell(&id, &format!("cat /proc/{process}/status"))), field(&all));
    }
    assert!(cri.shell(&id, "grep Seccomp: /proc/1/status").contains("Seccomp:\t0"));
    cri.shell(&id, "mkdir /tmp/m && mount -t tmpfs x /tmp/m && touch /tmp/m/x && test -c /dev/fuse");
    cri.remove_pod(&sandbox);
}
