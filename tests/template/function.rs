//! Functions that do all the harm they can: to their clone's surroundings, their template, and their neighbours.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use regen::template::definition::{Order, Source};
use serde_json::{Value, json};

use crate::harness::template::Kept;
use crate::harness::{Output, World};
use crate::rights::{confined, rights};

/// How many processes a clone may have.
const PROCESSES: u32 = 32;

fn order(world: &World, imports: &str, change: impl FnOnce(&mut Value)) -> Order {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/template");
    for directory in ["srv", "function"] {
        fs::create_dir_all(world.rootfs().join(directory)).unwrap();
    }
    fs::create_dir_all(function(world)).unwrap();
    fs::copy(sources.join("loaded.py"), world.rootfs().join("srv/loaded.py")).unwrap();
    fs::copy(sources.join("functions.py"), function(world).join("app.py")).unwrap();
    fs::write(world.rootfs().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let bundle = world.python("", |spec| {
        let command = ["/usr/bin/python3", "-m", "regen_zygote", "--path", "/srv", "--import", imports];
        spec["process"]["args"] = json!(command);
        spec["linux"]["resources"]["pids"] = json!({"limit": PROCESSES});
        spec.as_object_mut().unwrap().remove("hostname");
        change(spec);
    });
    world.template("py", Source::Bundle(bundle.path().to_owned()), &[])
}

fn function(world: &World) -> PathBuf {
    world.base().join("function")
}

/// One call, as people make it.
fn invoke(world: &World, handler: &str, event: &Value, more: &[&str]) -> Output {
    let (template, directory) = (world.id("py"), function(world));
    let (handler, event) = (format!("app:{handler}"), event.to_string());
    let mut arguments = vec!["invoke", &template, "--function", directory.to_str().unwrap(), "--handler", &handler];
    arguments.extend(["--event", &event]);
    arguments.extend(more);
    world.regen(&arguments)
}

fn result(output: &Output) -> Value {
    serde_json::from_str(output.success().stdout()).unwrap()
}

/// A hostile call, with a neighbour who is busy all the while and one who comes after: both get the right answer, and the
/// template is the one it was.
#[track_caller]
fn besides(world: &World, kept: &Kept, handler: &str, event: &Value, more: &[&str]) -> Output {
    let template = kept.status().process.unwrap();
    let over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                invoke(world, "slow", &json!([40, 2]), &[]).success();
            }
        });
        let output = invoke(world, handler, event, more);
        over.store(true, Ordering::Relaxed);
        output
    });
    assert_eq!(result(&invoke(world, "add", &json!([40, 2]), &[])), json!(42), "after {handler}");
    assert_eq!(kept.status().process.unwrap(), template, "after {handler}");
    output
}

/// Two calls at once, and what they say of where they are.
fn two(world: &World) -> [Value; 2] {
    std::thread::scope(|scope| {
        let calls = [(); 2].map(|()| scope.spawn(|| result(&invoke(world, "clean", &json!(0.3), &[]))));
        calls.map(|call| call.join().unwrap())
    })
}

#[test]
fn what_a_fork_must_not_share_is_each_clones_own() {
    let world = World::new("clean");
    let kept = world.keep_template(&order(&world, "random,secrets,ssl,uuid,tempfile,loaded", |_| ()));
    kept.await_sandboxes(2);
    let [one, two] = two(&world);
    let third = result(&invoke(&world, "clean", &json!(0), &[]));
    for name in one["unique"].as_object().unwrap().keys() {
        let found = [&one, &two, &third].map(|clone| clone["unique"][name].to_string());
        assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2], "{name}: {found:?}");
    }
    // What Python's generator gives after the seed of the template.
    assert_ne!(one["unique"]["random"], json!(0.134_364_244_112_401_22));
    assert!(!one["unique"]["machine"].as_str().unwrap().starts_with("0123456789abcdef"));
    let clean = json!({
        "files": [0, 1, 2, 4], "umask": 0o22, "written": ["/tmp/mark", "/mark"], "shared": [], "cwd": "/",
        "pid": true, "parent": 1, "children": "", "timers": [0.0, 0.0, 0.0], "alarm": 0, "pending": [], "processes": 2,
        "variables": [], "unix": ["@clone"],
    });
    for clone in [one, two, third] {
        assert_eq!(clone["alike"], clean);
    }
    assert!(!world.rootfs().join("mark").exists());
    kept.finish();
}

#[test]
fn a_function_that_uses_up_what_there_is_gets_no_more_than_its_bounds() {
    let world = World::new("uses");
    let kept = world.keep_template(&order(&world, "json,ctypes,socket", |_| ()));
    let of = |handler: &str, event: &Value, more: &[&str]| besides(&world, &kept, handler, event, more);
    of("bomb", &json!(null), &["--timeout", "2s"]).fails_with(1, "not come to its end in 2 s");
    of("forever", &json!(null), &["--timeout", "1s"]).fails_with(1, "not come to its end in 1 s");
    assert_eq!(result(&of("files", &json!(null), &[])), json!("EMFILE"));
    of("memory", &json!(null), &["--memory", "64MiB"]).fails_with(1, "memory");
    let long = of("long", &json!(3_000_000), &["--max-output", "1MiB"]);
    assert!(long.code(1).stderr().contains("more than 1.0 MiB, and it was killed"), "{}", long.stderr());
    assert_eq!(result(&of("loud", &json!(200), &[])), json!("said"));
    kept.finish();
}

#[test]
fn a_function_can_neither_reach_nor_harm_what_is_not_its_own() {
    let world = World::new("reach");
    let kept = world.keep_template(&order(&world, "json,ctypes,socket", |_| ()));
    let of = |handler: &str, event: &Value| besides(&world, &kept, handler, event, &[]);
    let keeper = i32::try_from(kept.child.id()).unwrap();
    let pids = json!([keeper, kept.status().process.unwrap().pid, std::process::id()]);
    assert_eq!(result(&of("parent", &pids)), json!([]));
    assert_eq!(result(&of("writes", &json!(null))), json!([]));
    assert_eq!(result(&of("escapes", &json!(false))), json!([]));
    assert_eq!(result(&of("uses", &json!(null))), json!(null));
    assert_eq!(result(&of("daemons", &json!(null))), json!("gone"));
    of("closes", &json!(null)).code(1);
    assert!(fs::read_dir(function(&world)).unwrap().count() == 1);
    kept.finish();
}

#[test]
fn a_clone_has_the_rights_that_a_cold_start_has_and_no_others() {
    let world = World::new("rights");
    for privileges in [true, false] {
        let change = |spec: &mut Value| {
            confined(spec);
            spec["process"]["noNewPrivileges"] = json!(privileges);
        };
        let kept = world.keep_template(&order(&world, "json,ctypes,socket", change));
        let cold = world.python("import time; time.sleep(1000)", change);
        let id = world.id("cold");
        world.regen(&["run", "--detach", "--bundle", cold.text(), &id]).success();
        let clone = kept.clone_of(None, &["/usr/bin/python3", "-c", "import time; time.sleep(1000)"]);
        let found = rights(clone.taken().1);
        assert_eq!(found, rights(world.pid(&id)));
        assert!(found.contains(&("Seccomp", "2".into())) && found.contains(&("oom", "300\n".into())), "{found:?}");
        drop(clone);
        assert_eq!(result(&invoke(&world, "escapes", &json!(true), &[])), json!([]));
        world.delete(&id);
        kept.finish();
    }
}
