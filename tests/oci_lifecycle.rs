//! The life of a container through the real binary, as an engine or a person drives it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;

use harness::{World, cgroup_of, count_members, eventually};
use serde_json::{Value, json};

#[test]
fn a_container_goes_from_created_over_running_to_stopped_and_away() {
    let world = World::new("life");
    let bundle = world.shell("touch /tmp/ran; sleep 1000");
    let (id, pid_file) = (world.id("a"), world.base().join("pid"));
    world.regen(&["create", &id, "--bundle", bundle.text(), "--pid-file", pid_file.to_str().unwrap()]).success();
    let state = world.state(&id);
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], bundle.text());
    assert_eq!(state["id"], id);
    assert_eq!(state["ociVersion"], "1.0.2");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), state["pid"].to_string());
    assert!(!world.rootfs().join("tmp/ran").exists(), "the program ran before start");

    world.regen(&["start", &id]).success();
    assert_eq!(world.status(&id), "running");
    eventually("the program runs", || world.rootfs().join("tmp/ran").exists());
    world.regen(&["start", &id]).fails_with(1, "cannot start an already running container");
    world.regen(&["delete", &id]).fails_with(1, "not stopped");

    world.regen(&["kill", &id, "KILL"]).success();
    eventually("it stops", || world.status(&id) == "stopped");
    world.regen(&["kill", &id]).fails_with(1, "container not running");
    world.regen(&["start", &id]).fails_with(1, "stopped");
    world.regen(&["delete", &id]).success();
    world.regen(&["state", &id]).fails_with(1, "does not exist");
    world.regen(&["delete", &id]).fails_with(1, "does not exist");
    world.regen(&["delete", "--force", &id]).success();
}

#[test]
fn a_container_that_was_never_started_can_be_deleted() {
    let world = World::new("unstarted");
    let id = world.id("a");
    world.regen(&["create", "--bundle", world.shell("true").text(), &id]).success();
    world.regen(&["delete", &id]).success();
}

#[test]
fn list_shows_every_container_in_each_form() {
    let world = World::new("list");
    assert_eq!(world.regen(&["list", "--format", "json"]).success().stdout(), "[]\n");
    let (a, b) = (world.sleeper("a"), world.sleeper("b"));
    let listed: Value = serde_json::from_str(world.regen(&["list", "-f", "json"]).success().stdout()).unwrap();
    let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&a, &b]);
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), format!("{a}\n{b}\n"));
    let table = world.regen(&["list"]).success().stdout().to_owned();
    assert!(table.starts_with("ID") && table.lines().count() == 3, "{table}");
    world.delete(&a);
    world.delete(&b);
}

#[test]
fn signals_are_taken_by_name_and_number() {
    let world = World::new("signals");
    for (name, signal) in [("a", "SIGUSR1"), ("b", "usr1"), ("c", "10")] {
        let bundle = world.shell("trap 'exit 0' USR1; echo ready > /tmp/ready; while :; do sleep 0.01; done");
        let id = world.id(name);
        world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
        let ready = world.rootfs().join("tmp/ready");
        eventually("the trap is set", || ready.exists());
        world.regen(&["kill", &id, signal]).success();
        eventually("it ends", || world.status(&id) == "stopped");
        fs::remove_file(ready).unwrap();
        world.regen(&["delete", &id]).success();
    }
    world.regen(&["kill", "x", "NOPE"]).code(2);
}

#[test]
fn kill_all_reaches_processes_that_share_the_hosts_pid_namespace() {
    let world = World::new("killall");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000"]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let id = world.id("a");
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    let cgroup = cgroup_of(world.pid(&id));
    eventually("all three run", || count_members(&cgroup) == 3);
    world.regen(&["kill", "--all", &id, "KILL"]).success();
    eventually("all are gone", || count_members(&cgroup) == 0);
    world.regen(&["delete", &id]).success();
}

#[test]
fn a_surviving_process_of_a_dead_container_goes_with_delete() {
    let world = World::new("survivor");
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "sleep 1000 & exit 0"]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let id = world.id("a");
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    eventually("it stops", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
}

#[test]
fn exec_runs_in_the_container_and_gives_its_status() {
    let world = World::new("exec");
    let id = world.sleeper("a");
    let exec = |arguments: &[&str]| world.regen(&[&["exec"], arguments].concat());
    assert_eq!(exec(&[&id, "hostname"]).success().stdout(), "box\n");
    exec(&[&id, "sh", "-c", "exit 3"]).code(3);
    exec(&[&id, "sh", "-c", "kill -9 $$"]).code(137);
    exec(&[&id, "no-such-program"]).fails_with(127, "executable file not found in");
    exec(&[&id, "/no/such/program"]).fails_with(127, "no such file or directory");
    exec(&[&id, "/etc/passwd"]).fails_with(126, "permission denied");
    let output =
        exec(&["-e", "A=1", "--env", "TERM=dumb", "--cwd", "/tmp", &id, "sh", "-c", "echo $A $TERM $PWD $PATH"]);
    assert_eq!(output.success().stdout(), "1 dumb /tmp /usr/bin:/bin\n");
    let output = exec(&[&id, "--user", "1000:7", "-g", "8", "sh", "-c", "id -u; id -g; id -G; echo $HOME"]);
    assert_eq!(output.success().stdout(), "1000\n7\n7 8\n/home/user\n");
    exec(&["--cwd", "relative", &id, "true"]).fails_with(1, "absolute");
    exec(&["--cap", "CAP_NOPE", &id, "true"]).fails_with(1, "CAP_NOPE");
    world.delete(&id);
    exec(&[&id, "true"]).fails_with(1, "does not exist");
}

#[test]
fn exec_takes_a_whole_process_from_a_file_and_detaches() {
    let world = World::new("execfile");
    let id = world.sleeper("a");
    let (process, pid_file) = (world.base().join("process.json"), world.base().join("pid"));
    fs::write(&process, json!({"user": {"uid": 0, "gid": 0}, "cwd": "/tmp", "args": ["sleep", "1000"]}).to_string())
        .unwrap();
    let (process, pid_text) = (process.to_str().unwrap(), pid_file.to_str().unwrap());
    let files = || {
        let entries = fs::read_dir(world.state_directory(&id)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    world.regen(&["exec", "--process", process, "--detach", "--pid-file", pid_text, &id]).success();
    assert_eq!(files(), before, "files of the exec are left");
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.starts_with("sleep"), "{line}");
    let own = |kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let init = |kind: &str| fs::read_link(format!("/proc/{}/ns/{kind}", world.pid(&id))).unwrap();
    for kind in ["pid", "mnt", "net", "ipc", "uts"] {
        assert_eq!(own(kind), init(kind), "{kind}");
    }
    world.delete(&id);
}

#[test]
fn exec_in_a_user_namespace_is_nobody_on_the_host() {
    let world = World::new("userns");
    // The ids of the image must exist in the container.
    let chown =
        std::process::Command::new("chown").args(["-hR", "200000:200000"]).arg(world.rootfs()).status().unwrap();
    assert!(chown.success());
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    let id = world.id("a");
    world.regen(&["run", "-d", "--bundle", bundle.text(), &id]).success();
    let inside = world.regen(&["exec", &id, "cat", "/proc/self/uid_map"]).success().stdout().to_owned();
    assert_eq!(inside.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    let pid_file = world.base().join("pid");
    world.regen(&["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), &id, "sleep", "1000"]).success();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(harness::process_status(pid, "Uid").starts_with("200000"));
    world.delete(&id);
}

#[test]
fn a_process_without_a_path_variable_runs() {
    let world = World::new("nopath");
    for env in [json!([]), Value::Null] {
        let bundle = world.bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", "echo hi"]);
            spec["process"]["env"] = env;
        });
        let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
        assert_eq!(output.success().stdout(), "hi\n");
    }
}

#[test]
fn new_specifications_capabilities_and_propagation_words_are_accepted() {
    let world = World::new("words");
    for word in ["private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"] {
        let bundle = world.bundle(|spec| {
            spec["ociVersion"] = "1.3.0".into();
            spec["linux"]["rootfsPropagation"] = word.into();
            spec["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_NOT_YET_INVENTED"]);
        });
        world.regen(&["run", "--bundle", bundle.text(), &world.id(word)]).success();
    }
}

#[test]
fn hooks_get_the_users_state_on_standard_input_in_their_order() {
    let world = World::new("hooks");
    let log = world.base().join("hooks.log");
    let hook = |name: &str| {
        let script = format!("(echo {name}; cat; echo) >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let inside =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "(echo startContainer; cat; echo) >> /tmp/inside.log"]}]);
    let bundle = world.bundle(|spec| {
        spec["annotations"] = json!({"a.b": "c"});
        spec["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "createContainer": hook("createContainer"), "startContainer": inside,
            "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
    });
    let id = world.id("a");
    world.regen(&["run", "--bundle", bundle.text(), &id]).success();
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str(&fs::read_to_string(world.rootfs().join("tmp/inside.log")).unwrap());
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let names: Vec<&str> = lines.iter().step_by(2).copied().collect();
    assert_eq!(names, ["prestart", "createRuntime", "createContainer", "poststart", "poststop", "startContainer"]);
    for (name, line) in names.iter().zip(lines.iter().skip(1).step_by(2)) {
        let state: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"));
        assert_eq!(state["id"], id, "{name}");
        assert_eq!(state["bundle"], bundle.text(), "{name}");
        assert_eq!(state["annotations"]["a.b"], "c", "{name}");
        let status = state["status"].as_str().unwrap();
        let expected = match *name {
            "prestart" | "createRuntime" | "createContainer" => "creating",
            "startContainer" => "created",
            "poststart" => "running",
            _ => "stopped",
        };
        assert_eq!(status, expected, "{name}");
    }
}

#[test]
fn a_failing_hook_stops_a_creation_but_no_deletion() {
    let world = World::new("badhooks");
    let failing = json!([{"path": "/bin/false"}]);
    for phase in ["prestart", "createRuntime", "createContainer"] {
        let bundle = world.bundle(|spec| spec["hooks"] = json!({phase: failing}));
        world.regen(&["run", "--bundle", bundle.text(), &world.id(phase)]).fails_with(1, "hook");
    }
    let bundle = world.bundle(|spec| {
        spec["hooks"] = json!({"poststop": [{"path": "/bin/false"}, {"path": "/no/such/hook"},
            {"path": "/bin/touch", "args": ["touch", world.base().join("last")]}]});
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("b")]);
    assert!(world.base().join("last").exists(), "the hook after a failing one did not run");
    assert!(output.success().stderr().contains("/no/such/hook"), "nobody was warned: {output:?}");
    // An engine gets one error in its file, or nothing.
    let log = world.base().join("log");
    world.regen(&["--log", log.to_str().unwrap(), "run", "--bundle", bundle.text(), &world.id("d")]).success();
    assert!(!log.exists());
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["hooks"] = json!({"poststart": failing});
    });
    world.regen(&["run", "--detach", "--bundle", bundle.text(), &world.id("c")]).fails_with(1, "poststart");
}

#[test]
fn bad_input_is_one_clear_line_and_changes_nothing() {
    type Change = fn(&mut Value);
    let world = World::new("bad");
    let id = world.id("a");
    let cases: Vec<(&str, Change)> = vec![
        ("root", |v| drop(v.as_object_mut().unwrap().remove("root"))),
        ("no such file or directory", |v| v["root"]["path"] = "/no/such/dir".into()),
        ("not a directory", |v| v["root"]["path"] = "/etc/passwd".into()),
        ("ociVersion", |v| v["ociVersion"] = "2.0.0".into()),
        ("process", |v| drop(v.as_object_mut().unwrap().remove("process"))),
        ("process.args", |v| v["process"]["args"] = json!([])),
        ("process.args", |v| drop(v["process"].as_object_mut().unwrap().remove("args"))),
        ("executable file not found in", |v| v["process"]["args"] = json!(["nope"])),
        ("root of the hierarchy", |v| v["linux"]["cgroupsPath"] = "/".into()),
        ("console-socket", |v| v["process"]["terminal"] = true.into()),
        ("hooks.poststop[1].path", |v| v["hooks"] = json!({"poststop": [{"path": "/bin/true"}, {"path": "true"}]})),
        ("parse JSON", |v| v["root"] = "text".into()),
    ];
    for (words, change) in cases {
        let bundle = world.bundle(change);
        let output = world.regen(&["create", "--bundle", bundle.text(), &id]);
        output.fails_with(if words.starts_with("executable") { 127 } else { 1 }, words);
        assert_eq!(fs::read_dir(world.root()).unwrap().count(), 0, "{words}: a state is left");
    }
    let empty = world.base().join("empty");
    fs::create_dir(&empty).unwrap();
    world.regen(&["create", "--bundle", empty.to_str().unwrap(), &id]).fails_with(1, "config.json");
    fs::write(empty.join("config.json"), "{").unwrap();
    world.regen(&["create", "--bundle", empty.to_str().unwrap(), &id]).fails_with(1, "JSON");
    world.regen(&["create", "--bundle", "/no/such/dir", &id]).fails_with(1, "no such file or directory");
    world.regen(&["create", "--bundle", "/etc/passwd", &id]).fails_with(1, "not a directory");
    for wrong in ["a/b", "..", "", "a b"] {
        world.regen(&["state", wrong]).code(2);
    }
}

#[test]
fn the_log_of_an_error_is_one_json_object() {
    let world = World::new("log");
    let log = world.base().join("log.json");
    world
        .regen(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "nobody"])
        .fails_with(1, "does not exist");
    let entry: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(entry["level"], "error");
    assert!(entry["msg"].as_str().unwrap().contains("does not exist"));
    assert!(entry["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(entry.as_object().unwrap().len(), 3);
    let quiet = world.base().join("quiet.json");
    world.regen(&["--log", quiet.to_str().unwrap(), "--log-format=json", "list"]).success();
    assert!(!quiet.exists(), "a success was logged");
}

#[test]
fn spec_writes_a_file_that_runs_and_never_over_another() {
    let world = World::new("spec");
    let directory = world.base().join("fresh");
    fs::create_dir(&directory).unwrap();
    let text = directory.to_str().unwrap();
    world.regen(&["spec", "--bundle", text]).success();
    world.regen(&["spec", "--bundle", text]).fails_with(1, "exists");
    let path = directory.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(spec["process"]["terminal"], true);
    spec["process"]["terminal"] = false.into();
    spec["root"]["path"] = world.rootfs().to_str().unwrap().into();
    spec["process"]["args"] = json!(["id", "-u"]);
    fs::write(&path, spec.to_string()).unwrap();
    assert_eq!(world.regen(&["run", "--bundle", text, &world.id("a")]).success().stdout(), "0\n");
}

#[test]
fn features_name_what_is_there() {
    let world = World::new("features");
    let features: Value = serde_json::from_str(world.regen(&["features"]).success().stdout()).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["linux"]["capabilities"].as_array().unwrap().contains(&"CAP_SYS_ADMIN".into()));
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert!(features["mountOptions"].as_array().unwrap().len() > 30);
}

#[test]
fn descriptors_are_passed_on_only_when_promised_and_there() {
    let world = World::new("fds");
    let bundle = world.shell("ls /proc/self/fd | wc -l; cat <&3");
    let file = world.base().join("passed");
    fs::write(&file, "through\n").unwrap();
    let shell = format!(
        "exec {} --root {} run --preserve-fds 1 --bundle {} {} 3<{}",
        harness::REGEN,
        world.root().display(),
        bundle.text(),
        world.id("a"),
        file.display()
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &shell]);
    let output = world.finish(command);
    assert!(output.success().stdout().ends_with("through\n"), "{output:?}");
    world
        .regen(&["run", "--preserve-fds", "9", "--bundle", bundle.text(), &world.id("b")])
        .fails_with(1, "is not open");
}

#[test]
fn a_container_keeps_no_descriptor_of_the_runtime() {
    let world = World::new("nofds");
    let id = world.sleeper("a");
    let pid = world.pid(&id);
    let open: Vec<i32> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    assert!(open.iter().all(|number| *number <= 2), "{open:?}");
    assert_eq!(harness::process_status(pid, "SigBlk"), "0000000000000000");
    let ignored = u64::from_str_radix(&harness::process_status(pid, "SigIgn"), 16).unwrap();
    assert_eq!(ignored & 1 << (nix::sys::signal::Signal::SIGPIPE as u64 - 1), 0, "SIGPIPE is ignored");
    world.delete(&id);
}
