//! Containers that somebody else has made, an engine or `run`, and that become clones when they are started.

use std::io::{Read, Write};
use std::time::Duration;

use regen::sys::tty::receive_descriptor;
use serde_json::{Value, json};

use crate::harness::visitor::children;
use crate::harness::{Directory, World, eventually, process_status};

/// Says whether `ssl` was there before anybody asked for it: only in a clone.
const LOADED: &str = "import sys; print('ssl' in sys.modules)";

fn bundle(world: &World, template: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Directory {
    world.python("", |spec| {
        spec["process"]["args"] = [&["/usr/bin/python3"], args].concat().into();
        spec["annotations"] = json!({"run.regen.template": template, "run.regen.template.required": "true"});
        change(spec);
    })
}

#[test]
fn a_container_of_the_same_base_begins_with_what_was_loaded() {
    let world = World::new("wbase");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let run = |id: &str, args: &[&str], change: fn(&mut Value)| {
        let bundle = bundle(&world, order.definition.name.as_str(), args, change);
        world.regen(&["run", "--bundle", bundle.text(), &world.id(id)])
    };
    assert_eq!(run("a", &["-c", LOADED], |_| ()).success().stdout(), "True\n");
    run("b", &["-c", "import sys; sys.exit(7)"], |_| ()).code(7);
    run("c", &["-c", "import os; os.kill(os.getpid(), 9)"], |_| ()).code(137);
    kept.finish();
}

/// What a process can see of who it is.
const WHO: &str = r#"
import os, resource
fields = ['Umask', 'Uid', 'Gid', 'Groups', 'SigBlk', 'SigIgn', 'SigCgt', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb',
          'NoNewPrivs', 'Seccomp', 'Seccomp_filters', 'Cpus_allowed_list']
status = dict(line.rstrip().split(':', 1) for line in open('/proc/self/status'))
print([(name, status.get(name)) for name in fields])
print(sorted(os.listdir('/proc/self/fd'))[:-1], [os.readlink(f'/proc/self/fd/{n}') for n in range(1)])
print(os.getcwd(), sorted(os.environ.items()), os.uname()[1], os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
print([resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name.startswith('RLIMIT_')])
print(open('/proc/self/oom_score_adj').read(), [line.split(':')[2].count('/') for line in open('/proc/self/cgroup')])
print([line.split(' - ')[0].split(' ')[3:6] for line in open('/proc/self/mountinfo')])
print(open('/proc/self/setgroups').read(), os.path.exists('/proc/self/loginuid') and open('/proc/self/loginuid').read())
"#;

#[test]
fn a_clone_sees_itself_as_the_program_would() {
    let world = World::new("wwho");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let users = [json!({"uid": 0, "gid": 0}), json!({"uid": 1000, "gid": 7, "additionalGids": [8], "umask": 0o27})];
    for (turn, user) in users.iter().enumerate() {
        let see = |id: &str, warm: bool| {
            let bundle = bundle(&world, order.definition.name.as_str(), &["-c", WHO], |spec| {
                spec["process"]["user"] = user.clone();
                spec["process"]["env"] = json!(["A=1", "PATH=/usr/bin:/bin"]);
                spec["process"]["cwd"] = json!("/tmp");
                spec["process"]["oomScoreAdj"] = json!(77);
                spec["process"]["noNewPrivileges"] = json!(turn == 0);
                spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]);
                spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
                if !warm {
                    spec["annotations"] = json!({});
                }
            });
            let output = world.regen(&["run", "--bundle", bundle.text(), &world.id(id)]);
            output.success().stdout().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let (warm, cold) = (see("a", true), see("b", false));
        for (warm, cold) in warm.iter().zip(&cold) {
            assert_eq!(warm, cold);
        }
        assert_eq!(warm.len(), cold.len());
    }
    kept.finish();
}

#[test]
fn what_an_engine_starts_is_a_clone_and_every_verb_works() {
    let world = World::new("wverbs");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let script = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n\
        open('/tmp/up', 'w').write(str('ssl' in sys.modules))\nwhile True: time.sleep(0.01)";
    let bundle = bundle(&world, order.definition.name.as_str(), &["-c", script], |_| ());
    let id = world.id("a");
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    assert_eq!(world.status(&id), "created");
    world.regen(&["start", &id]).success();
    let up = world.rootfs().join("tmp/up");
    eventually("it runs", || std::fs::read_to_string(&up).is_ok_and(|text| text == "True"));
    let program = children(world.pid(&id))[0];
    assert_eq!(process_status(program, "NSpid").split_whitespace().count(), 2);
    world.regen(&["exec", &id, "true"]).success();
    let pids: Vec<i32> =
        serde_json::from_str(world.regen(&["ps", "--format", "json", &id]).success().stdout()).unwrap();
    assert_eq!(pids.len(), 2, "{pids:?}");
    world.regen(&["pause", &id]).success();
    world.regen(&["resume", &id]).success();
    world.regen(&["kill", &id, "TERM"]).success();
    eventually("it stops", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
    kept.finish();
}

#[test]
fn a_container_of_another_base_is_refused_or_starts_as_ever() {
    let world = World::new("wother");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let name = order.definition.name.as_str();
    let other = |spec: &mut Value| {
        spec["process"]["args"] = json!(["sh", "-c", "echo cold"]);
        spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/usr");
    };
    let strict = bundle(&world, name, &[], other);
    world.regen(&["run", "--bundle", strict.text(), &world.id("a")]).fails_with(1, "it has another base");
    let lenient = bundle(&world, name, &[], |spec| {
        other(spec);
        spec["annotations"] = json!({"run.regen.template": name});
    });
    let output = world.regen(&["run", "--bundle", lenient.text(), &world.id("b")]);
    assert_eq!(output.success().stdout(), "cold\n");
    assert!(output.stderr().contains("it has another base"), "{}", output.stderr());
    kept.finish();
}

#[test]
fn what_the_template_cannot_be_is_executed_all_the_same() {
    let world = World::new("wexec");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let bundle = bundle(&world, order.definition.name.as_str(), &[], |spec| {
        spec["process"]["args"] = json!(["sh", "-c", "echo $$ is not the first; exit 5"]);
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    assert!(output.code(5).stdout().contains("is not the first"));
    kept.finish();
}

#[test]
fn a_container_starts_as_ever_when_the_keeper_is_killed_before() {
    let world = World::new("wkill");
    let order = world.python_template("py", "ssl");
    let mut kept = world.keep_template(&order);
    kept.kill();
    let left = world.regen(&["list", "-q"]).success().stdout().to_owned();
    left.lines().for_each(|id| world.delete(id));
    let bundle = bundle(&world, order.definition.name.as_str(), &["-c", LOADED], |spec| {
        spec["annotations"].as_object_mut().unwrap().remove("run.regen.template.required");
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    assert_eq!(output.success().stdout(), "False\n");
    assert!(output.stderr().contains("without template"), "{}", output.stderr());
}

#[test]
fn a_clone_has_the_terminal_of_its_container() {
    let world = World::new("wtty");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let script = "import os, signal, sys, time\n\
        signal.signal(signal.SIGINT, lambda *_: sys.exit(4))\n\
        print('on', os.ttyname(0), os.tcgetpgrp(0) == os.getpid(), open('/dev/tty') and 'ssl' in sys.modules, flush=True)\n\
        while True: time.sleep(0.01)";
    let bundle = bundle(&world, order.definition.name.as_str(), &["-c", script], |spec| {
        spec["process"]["terminal"] = json!(true);
    });
    let (id, socket) = (world.id("a"), world.base().join("console"));
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    world.regen(&["create", "--bundle", bundle.text(), "--console-socket", socket.to_str().unwrap(), &id]).success();
    let mut near = std::fs::File::from(receive_descriptor(&listener, Duration::from_secs(60)).unwrap());
    world.regen(&["start", &id]).success();
    let mut seen = String::new();
    let mut buffer = [0; 512];
    while !seen.ends_with('\n') {
        let count = near.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert_eq!(seen, "on /dev/pts/0 True True\r\n");
    near.write_all(b"\x03").unwrap();
    eventually("it is interrupted", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
    kept.finish();
}

#[test]
fn whoever_starts_a_clone_may_be_killed_at_any_moment() {
    let world = World::new("wstarter");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let bundle = bundle(&world, order.definition.name.as_str(), &["-c", "import time; time.sleep(1000)"], |_| ());
    for turn in 0..16 {
        let id = world.id(&format!("a{turn}"));
        world.regen(&["create", "--bundle", bundle.text(), &id]).success();
        let mut starter = world.spawn(world.command(&["start", &id])).child;
        std::thread::sleep(Duration::from_millis(3 * turn));
        let _ = starter.kill();
        starter.wait().unwrap();
        let status = world.status(&id);
        assert!(["created", "running", "stopped"].contains(&&*status), "{status}");
        world.delete(&id);
    }
    let id = world.id("last");
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    world.regen(&["start", &id]).success();
    assert_eq!(world.status(&id), "running");
    world.delete(&id);
    kept.finish();
}
