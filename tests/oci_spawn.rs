//! From a specification to processes: namespaces of others, hooks, starts that fail, makers that die.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use harness::{Directory, World, eventually, process_status};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use serde_json::{Value, json};

fn namespace(pid: i32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// A bundle that joins these namespaces of a process, and has new ones of the others that a container usually has.
fn joining(world: &World, pid: i32, kinds: &[(&str, &str)]) -> Directory {
    world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        for (kind, file) in kinds {
            list.retain(|namespace| namespace["type"] != *kind);
            list.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
        }
    })
}

fn run_detached(world: &World, name: &str, bundle: &Directory) -> i32 {
    let id = world.id(name);
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    world.pid(&id)
}

#[test]
fn a_container_joins_namespaces_of_another_and_execs_follow_it() {
    let world = World::new("join");
    let first = world.sleeper("a");
    let pid = world.pid(&first);
    let kinds = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")];
    let joined = run_detached(&world, "b", &joining(&world, pid, &kinds));
    for (_, file) in kinds {
        assert_eq!(namespace(joined, file), namespace(pid, file), "{file}");
    }
    assert_ne!(namespace(joined, "mnt"), namespace(pid, "mnt"));
    let exec = |command: &[&str]| {
        let id = world.id("b");
        let arguments: Vec<&str> = ["exec", &id].into_iter().chain(command.iter().copied()).collect();
        world.regen(&arguments).success().stdout().to_owned()
    };
    assert_eq!(exec(&["readlink", "/proc/self/ns/net"]).trim(), namespace(pid, "net").to_str().unwrap());
    assert_eq!(exec(&["readlink", "/proc/self/ns/pid"]).trim(), namespace(pid, "pid").to_str().unwrap());
    // The hooks of a container in somebody else's pid namespace still see the host.
    world.delete(&world.id("b"));
    assert_eq!(world.status(&first), "running");
    world.delete(&first);
}

#[test]
fn a_namespace_file_of_the_wrong_kind_is_named() {
    let world = World::new("wrongns");
    let me = i32::try_from(std::process::id()).unwrap();
    let run = |kinds: &[(&str, &str)]| {
        let bundle = joining(&world, me, kinds);
        world.regen(&["run", "--bundle", bundle.text(), &world.id("a")])
    };
    run(&[("network", "ipc")]).fails_with(1, "another type");
    run(&[("network", "../status")]).fails_with(1, "no namespace");
    run(&[("ipc", "nothing")]).fails_with(1, "no such file or directory");
    let twice = world.bundle(|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"}));
    });
    world.regen(&["run", "--bundle", twice.text(), &world.id("a")]).fails_with(1, "listed twice");
}

/// A bundle in a new user namespace, over an image whose files are those of its root.
fn shifted(world: &World, change: impl FnOnce(&mut Value)) -> Directory {
    let chown =
        std::process::Command::new("chown").args(["-hR", "200000:200000"]).arg(world.rootfs()).status().unwrap();
    assert!(chown.success());
    world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        change(spec);
    })
}

#[test]
fn a_container_in_the_user_namespace_of_another_has_its_ids_and_may_join_the_rest() {
    let world = World::new("joinuser");
    let first = run_detached(&world, "a", &shifted(&world, |_| ()));
    let kinds = [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")];
    let second = run_detached(&world, "b", &joining(&world, first, &kinds));
    for (_, file) in kinds {
        assert_eq!(namespace(second, file), namespace(first, file), "{file}");
    }
    assert!(process_status(second, "Uid").starts_with("200000"));
    let third = run_detached(&world, "c", &joining(&world, first, &kinds[..1]));
    assert_eq!(namespace(third, "user"), namespace(first, "user"));
    assert_ne!(namespace(third, "net"), namespace(first, "net"));
    let output = world.regen(&["exec", &world.id("c"), "cat", "/proc/self/uid_map"]);
    assert_eq!(output.success().stdout().split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    for name in ["c", "b", "a"] {
        world.delete(&world.id(name));
    }
}

#[test]
fn a_new_user_namespace_owns_the_others() {
    let world = World::new("owner");
    let bundle = shifted(&world, |spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        spec["process"]["capabilities"] = json!({"bounding": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"],
            "effective": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"], "permitted": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]});
    });
    run_detached(&world, "a", &bundle);
    let exec = |script: &str| world.regen(&["exec", &world.id("a"), "sh", "-c", script]);
    // Each needs a right over the namespace, which only its owner's root has.
    exec("ip link set lo down && ip link set lo up").success();
    exec("hostname other && test $(hostname) = other").success();
    exec("mount -t tmpfs none /tmp").success();
    world.delete(&world.id("a"));
}

#[test]
fn the_clocks_of_a_new_time_namespace_are_set_before_anybody_is_in_it() {
    let world = World::new("time");
    for user in [false, true] {
        let change = |spec: &mut Value| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
            spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 50_000_000}, "monotonic": {"secs": 7}});
            spec["process"]["args"] = json!(["sleep", "1000"]);
        };
        let bundle = if user { shifted(&world, change) } else { world.bundle(change) };
        let pid = run_detached(&world, "a", &bundle);
        assert_ne!(namespace(pid, "time"), namespace(i32::try_from(std::process::id()).unwrap(), "time"));
        let output = world.regen(&["exec", &world.id("a"), "cat", "/proc/uptime"]);
        let uptime: f64 = output.success().stdout().split(' ').next().unwrap().parse().unwrap();
        assert!(uptime > 50_000_000.0, "{uptime}");
        world.delete(&world.id("a"));
    }
}

#[test]
fn a_specification_without_a_word_about_linux_runs() {
    let world = World::new("minimal");
    let bundle = world.bundle(|spec| {
        *spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh", "-c", "echo from inside; ls /bin/sh"],
                "env": ["PATH=/bin"]},
            "root": {"path": world.rootfs()},
        });
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    assert_eq!(output.success().stdout(), "from inside\n/bin/sh\n");
    let named = world.bundle(|spec| drop(spec.as_object_mut().unwrap().remove("linux")));
    world.regen(&["run", "--bundle", named.text(), &world.id("a")]).fails_with(1, "uts");
}

#[test]
fn a_process_of_another_user_has_the_limits_that_it_could_not_raise_itself() {
    let world = World::new("limits");
    let change = |spec: &mut Value| {
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["process"]["args"] = json!(["sleep", "1000"]);
    };
    for bundle in [world.bundle(change), shifted(&world, change)] {
        let pid = run_detached(&world, "a", &bundle);
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["100", "200"]);
        let output = world.regen(&["exec", &world.id("a"), "sh", "-c", "ulimit -Sn; ulimit -Hn"]);
        assert_eq!(output.success().stdout(), "100\n200\n");
        world.delete(&world.id("a"));
    }
}

#[test]
fn start_tells_why_a_program_could_not_be_executed() {
    let world = World::new("startfails");
    let path = world.rootfs().join("bin/garbage");
    fs::write(&path, [0_u8; 64]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let script = world.rootfs().join("bin/lost");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let id = world.id("a");
    for (program, status, words) in [("garbage", 126, "exec format error"), ("lost", 127, "no such file or directory")]
    {
        let bundle = world.bundle(|spec| spec["process"]["args"] = json!([program]));
        world.regen(&["create", "--bundle", bundle.text(), &id]).success();
        world.regen(&["start", &id]).fails_with(status, words);
        eventually("its process ends", || world.status(&id) == "stopped");
        world.regen(&["delete", &id]).success();
        world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).fails_with(status, words);
    }
}

/// A hook that leaves the state that it reads in a file, and then waits.
fn waiting_hook(world: &World) -> Value {
    let script = "cat > {0}/state.new; mv {0}/state.new {0}/state; while [ ! -e {0}/go ]; do sleep 0.01; done";
    let script = script.replace("{0}", world.base().to_str().unwrap());
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
}

#[test]
fn a_run_that_is_killed_before_the_start_takes_its_process_with_it() {
    let world = World::new("orphan");
    for phase in ["createRuntime", "createContainer"] {
        let bundle = world.bundle(|spec| spec["hooks"] = json!({phase: waiting_hook(&world)}));
        let id = world.id("a");
        let (state, go) = (world.base().join("state"), world.base().join("go"));
        let running = world.spawn(world.command(&["run", "--bundle", bundle.text(), &id]));
        eventually("the hook runs", || state.exists());
        running.signal(Signal::SIGKILL);
        running.finish().code(1009);
        fs::write(&go, "").unwrap();
        world.regen(&["delete", &id]).success();
        eventually("nothing of it is left", || world.leaks().is_empty());
        fs::remove_file(&state).unwrap();
        fs::remove_file(&go).unwrap();
    }
}

#[test]
fn only_its_creator_starts_what_run_creates() {
    let world = World::new("creator");
    let bundle = world.bundle(|spec| {
        spec["hooks"] = json!({"startContainer": [
        {"path": "/bin/sh", "args": ["sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.01; done"]}]})
    });
    let id = world.id("a");
    let running = world.spawn(world.command(&["run", "--bundle", bundle.text(), &id]));
    eventually("it is created", || world.root().join(&id).exists() && world.status(&id) == "created");
    assert!(!world.state_directory(&id).join("start").exists(), "there is a socket that nobody needs");
    fs::write(world.rootfs().join("tmp/go"), "").unwrap();
    running.finish().success();
}

#[test]
fn hooks_inside_see_their_own_pid_and_those_on_the_host_the_hosts() {
    let world = World::new("hookpid");
    let log = |name: &str| {
        let script = format!("echo {name} $(readlink /proc/self/ns/mnt) $(cat) >> {}/log", world.base().display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["hooks"] = json!({"prestart": log("prestart"), "createRuntime": log("createRuntime"),
            "createContainer": log("createContainer"), "poststart": log("poststart")});
    });
    let pid = run_detached(&world, "a", &bundle);
    let text = fs::read_to_string(world.base().join("log")).unwrap();
    let host = fs::read_link("/proc/self/ns/mnt").unwrap();
    let mut names = Vec::new();
    for line in text.lines() {
        let (name, rest) = line.split_once(' ').unwrap();
        let (mount, state) = rest.split_once(' ').unwrap();
        let state: Value = serde_json::from_str(state).unwrap();
        names.push(name.to_owned());
        if name == "createContainer" {
            assert_eq!((state["pid"].as_i64(), Path::new(mount)), (Some(1), namespace(pid, "mnt").as_path()));
        } else {
            assert_eq!((state["pid"].as_i64(), Path::new(mount)), (Some(pid.into()), host.as_path()), "{name}");
        }
    }
    assert_eq!(names, ["prestart", "createRuntime", "createContainer", "poststart"]);
    world.delete(&world.id("a"));
}

#[test]
fn a_hook_has_only_as_much_time_as_it_is_given() {
    let world = World::new("hooklimit");
    let slow = json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]);
    for phase in ["createRuntime", "createContainer"] {
        let bundle = world.bundle(|spec| spec["hooks"] = json!({phase: slow}));
        world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]).fails_with(1, "more than 1 s");
    }
}

#[test]
fn an_exec_shares_the_session_keyring_of_its_container() {
    let world = World::new("execkeys");
    let id = world.sleeper("a");
    let keys = world.regen(&["exec", &id, "cat", "/proc/keys"]).success().stdout().to_owned();
    assert!(keys.contains(&format!("_ses.{id}")), "{keys}");
    world.delete(&id);
}

#[test]
fn an_exec_finds_the_root_of_a_container_that_was_not_pivoted() {
    let world = World::new("chroot");
    fs::write(world.rootfs().join("etc/mark"), "inside\n").unwrap();
    let bundle = world.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    let id = world.id("a");
    world.regen(&["run", "-d", "--no-pivot", "--bundle", bundle.text(), &id]).success();
    assert_eq!(world.regen(&["exec", &id, "cat", "/etc/mark"]).success().stdout(), "inside\n");
    assert_eq!(world.regen(&["exec", "--cwd", "/tmp", &id, "pwd"]).success().stdout(), "/tmp\n");
    world.delete(&id);
}

#[test]
fn an_exec_in_a_container_that_has_just_died_says_so() {
    let world = World::new("dead");
    let id = world.sleeper("a");
    let pid = world.pid(&id);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let dead = || fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    eventually("it is dead", dead);
    world.regen(&["exec", &id, "true"]).fails_with(1, "container not running");
    world.delete(&id);
}

#[test]
fn the_listener_of_a_filter_goes_to_its_socket_with_the_containers_state() {
    let world = World::new("listener");
    let path = world.base().join("listener");
    let listener = UnixListener::bind(&path).unwrap();
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "for the test",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        });
    });
    let id = world.id("a");
    let pid = run_detached(&world, "a", &bundle);
    let (state, descriptors) = receive(&listener);
    assert_eq!(descriptors.len(), 1);
    assert_eq!((state["fds"][0].as_str(), state["pid"].as_i64()), (Some("seccompFd"), Some(pid.into())));
    assert_eq!((state["metadata"].as_str(), state["state"]["id"].as_str()), (Some("for the test"), Some(id.as_str())));
    // Nobody listens any more: the kernel answers for us.
    drop(descriptors);
    let arguments = ["exec", &id, "mkdir", "/tmp/x"];
    let running = world.spawn(world.command(&arguments));
    let (state, descriptors) = receive(&listener);
    assert_ne!(state["pid"], state["state"]["pid"]);
    assert_eq!(state["state"]["pid"].as_i64(), Some(pid.into()));
    drop(descriptors);
    assert_ne!(running.finish().code, 0);
    world.delete(&id);
}

fn receive(listener: &UnixListener) -> (Value, Vec<std::fs::File>) {
    use std::os::fd::FromRawFd;
    let (stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let rights = message.cmsgs().unwrap().filter_map(|control| match control {
        ControlMessageOwned::ScmRights(numbers) => Some(numbers),
        _ => None,
    });
    // SAFETY: the kernel has just installed these descriptors for us, and nobody else knows their numbers.
    let files = rights.flatten().map(|number| unsafe { std::fs::File::from_raw_fd(number) }).collect();
    let count = message.bytes;
    (serde_json::from_slice(&buffer[..count]).unwrap(), files)
}

#[test]
fn a_standard_input_that_is_the_null_device_is_the_containers_own() {
    let world = World::new("null");
    let look = "stat -L -c %d:%i /proc/self/fd/0 /dev/null";
    let output = world.regen(&["run", "--bundle", world.shell(look).text(), &world.id("a")]);
    let lines: Vec<&str> = output.success().stdout().lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{lines:?}");
}
