//! What podman's options say about a container's walls and limits.

use crate::harness::World;
use crate::podman::Podman;

#[test]
fn podman_limits_a_container_and_counts_what_it_takes() {
    let world = World::new("pl");
    let podman = Podman::new(&world);
    let limits = ["--pids-limit", "20", "--memory", "32m", "--cpus", "0.5", "--cpu-shares", "300"];
    let name = podman.start(&limits, "echo up; exec sleep 1000");
    let read = |file: &str| {
        let file = format!("/sys/fs/cgroup/{file}");
        podman.call(&["exec", &name, "cat", &file]).success().stdout().trim().to_owned()
    };
    // Debian's podman and this test's machine: cgroup v1.
    assert_eq!(read("pids/pids.max"), "20");
    assert_eq!(read("memory/memory.limit_in_bytes"), (32 << 20).to_string());
    assert_eq!((read("cpu/cpu.cfs_quota_us"), read("cpu/cpu.shares")), ("50000".into(), "300".into()));
    let stats = podman.call(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemLimit}} {{.MemUsageBytes}}", &name]);
    let words: Vec<_> = stats.success().stdout().split_whitespace().collect();
    assert_eq!(words[..2], ["1", "33554432"], "{stats:?}");
    podman.call(&["update", "--memory", "48m", "--cpu-shares", "400", &name]).success();
    assert_eq!(read("memory/memory.limit_in_bytes"), (48 << 20).to_string());
    assert_eq!((read("cpu/cpu.shares"), read("pids/pids.max")), ("400".into(), "20".into()));
    podman.call(&["rm", "--force", "--time", "0", &name]).success();
    // Without cgroups of its own it is where podman is.
    let mut command = podman.command(&["run", "--rm", "--network", "none", "--cgroups", "disabled", "box:1"]);
    command.args(["sh", "-c", "cat /proc/self/cgroup; echo x > /root/f"]);
    let inside = world.finish(command).success().stdout().to_owned();
    assert!(inside.contains(":memory:/") && !inside.contains("libpod"), "{inside}");
    // The limit holds, and the one who went over it is killed.
    let greedy = ["sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1; echo $?"];
    assert_eq!(podman.run(&["--rm", "--memory", "16m"], &greedy).success().stdout(), "137\n");
}

#[test]
fn podman_makes_root_file_systems_read_only_and_puts_memory_over_parts_of_them() {
    let world = World::new("pr");
    let podman = Podman::new(&world);
    let script = "echo x > /root/y || echo refused; echo x > /tmp/y && echo x > /dev/shm/y && echo written";
    assert_eq!(podman.run(&["--rm", "--read-only"], &["sh", "-c", script]).success().stdout(), "refused\nwritten\n");
    let script = "df -k /x | tail -1 | awk '{print $2}'; stat -c %a /x";
    let output = podman.run(&["--rm", "--tmpfs", "/x:size=1m,mode=700"], &["sh", "-c", script]);
    assert_eq!(output.success().stdout(), "1024\n700\n");
    // podman asks for a copy of what was there, unless told otherwise.
    let output =
        podman.run(&["--rm", "--tmpfs", "/etc"], &["sh", "-c", "cat /etc/passwd; stat -c %a /etc; touch /etc/x"]);
    assert!(output.success().stdout().starts_with("root:x:0:0:"), "{output:?}");
    assert!(output.stdout().ends_with("755\n"), "{output:?}");
    let script = "test ! -e /etc/passwd && stat -c %a /etc";
    let output = podman.run(&["--rm", "--tmpfs", "/etc:notmpcopyup"], &["sh", "-c", script]);
    assert_eq!(output.success().stdout(), "755\n");
}

#[test]
fn podman_gives_a_container_other_user_ids() {
    let world = World::new("pu");
    let podman = Podman::new(&world);
    let map = ["--rm", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let script = "cat /proc/self/uid_map; id -u; echo x > /root/f; stat -c %u:%g /root/f";
    let output = podman.run(&map, &["sh", "-c", script]);
    let words: Vec<_> = output.success().stdout().split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "0:0"], "{output:?}");
    let user = ["--rm", "--user", "1000:1000", "--cap-drop", "all", "--security-opt", "no-new-privileges"];
    let fields = podman.run(&user, &["grep", "-E", "^(CapEff|CapBnd|NoNewPrivs|Seccomp|Uid):", "/proc/self/status"]);
    let fields = fields.success().stdout().replace('\t', " ");
    for field in ["Uid: 1000 ", "CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"] {
        assert!(fields.contains(field), "{fields}");
    }
}

#[test]
fn podman_shares_parts_of_the_host_where_it_is_told_to() {
    let world = World::new("ph");
    let podman = Podman::new(&world);
    let script = "for kind in pid ipc uts; do readlink /proc/self/ns/$kind; done";
    let shared = podman.run(&["--rm", "--pid", "host", "--ipc", "host", "--uts", "host"], &["sh", "-c", script]);
    let own: Vec<_> = ["pid", "ipc", "uts"]
        .map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned())
        .into();
    assert_eq!(shared.success().stdout().lines().collect::<Vec<_>>(), own);
    let output = podman.run(
        &["--rm", "--device", "/dev/null:/dev/nil", "--oom-score-adj", "500", "--sysctl", "net.ipv4.ip_forward=1"],
        &["sh", "-c", "echo x > /dev/nil && cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward"],
    );
    assert_eq!(output.success().stdout(), "500\n1\n");
    let script = "grep Seccomp: /proc/self/status; test -b /dev/loop0 -o -c /dev/kmsg && echo devices";
    let output = podman.run(&["--rm", "--privileged"], &["sh", "-c", script]);
    assert_eq!(output.success().stdout(), "Seccomp:\t0\ndevices\n");
}
