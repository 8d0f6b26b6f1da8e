//! Functions that are called.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::daemon::Daemon;
use crate::harness::{Output, World, eventually};

const FUNCTIONS: &str = r#"
import asyncio, json, os, subprocess, sys, time
def echo(event): return event
async def later(event):
    await asyncio.sleep(0)
    return {"later": event}
class Box:
    @staticmethod
    def get(event): return "boxed"
def speak(event):
    print("said out")
    print("said err", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo said by a child"])
    return None
def fail(event): raise ValueError("no\ngood")
def leave(event): sys.exit(3)
def die(event): os.kill(os.getpid(), 9)
def abort(event): os.abort()
def sleep(event): time.sleep(1000)
def big(event): return "x" * event
def eat(event): return len(bytearray(event))
def odd(event): return object()
def fork(event):
    if os.fork() == 0:
        time.sleep(1000)
    return "not waiting"
value = 7
"#;

/// A template and a function.
struct Stage<'a> {
    daemon: Daemon<'a>,
    world: &'a World,
    name: String,
    function: String,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World) -> Self {
        let daemon = world.daemon();
        let name = daemon.name("py");
        daemon.create(&name, &["--pool", "2"]);
        let function = world.function("f", FUNCTIONS).to_str().unwrap().to_owned();
        Self { daemon, world, name, function }
    }

    fn call(&self, handler: &str, more: &[&str]) -> Output {
        self.world.invoke(&self.name, &self.function, handler, more)
    }

    fn result(&self, handler: &str, more: &[&str]) -> Value {
        let output = self.call(handler, more);
        let text = output.success().stdout();
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
        serde_json::from_str(text).unwrap()
    }

    /// Nothing but the template and its sandboxes is there.
    fn is_clean(&self) {
        eventually("only what the template needs is there", || {
            let show = self.daemon.template_show(&self.name);
            let list = self.world.regen(&["list", "--json"]);
            let list: Value = serde_json::from_str(list.stdout()).unwrap();
            let running = list.as_array().unwrap().iter().filter(|one| one["status"] != "created").count();
            show["sandboxes"] == 2 && show["waiting"] == 0 && running == 0
        });
    }
}

#[test]
fn what_a_function_returns_is_printed() {
    let world = World::new("tpl-call");
    let stage = Stage::new(&world);
    for event in ["null", "1", r#""text""#, r#"{"a": [1, 2, {"b": null}]}"#, "1e3", r#""\u00e4\n""#, " [ 1 ] "] {
        let expected: Value = serde_json::from_str(event).unwrap();
        assert_eq!(stage.result("app:echo", &["--event", event]), expected, "{event}");
    }
    assert_eq!(stage.result("app:echo", &[]), Value::Null);
    assert_eq!(stage.result("app:later", &["--event", "5"]), json!({"later": 5}));
    assert_eq!(stage.result("app:Box.get", &[]), "boxed");
    assert_eq!(stage.result("app:echo", &["--event", "1", "--json"]), json!({"result": 1}));
    let spoken = stage.call("app:speak", &[]);
    assert_eq!(spoken.success().stdout(), "null\n");
    for words in ["said out", "said err", "said by a child"] {
        assert!(spoken.stderr().contains(words), "{}", spoken.stderr());
    }
    assert_eq!(stage.result("app:fork", &[]), "not waiting", "what it leaves running keeps nobody waiting");
    stage.is_clean();
    assert_eq!(stage.daemon.template_show(&stage.name)["failed"], 0);
}

#[test]
fn an_event_comes_from_a_file_or_standard_input() {
    let world = World::new("tpl-event");
    let stage = Stage::new(&world);
    let file = world.base().join("event.json");
    let long = json!("x".repeat((1 << 20) - 100));
    std::fs::write(&file, long.to_string()).unwrap();
    let from_file = ["--event-file", file.to_str().unwrap()];
    assert_eq!(stage.result("app:echo", &from_file), long, "a mebibyte goes there and back");
    let arguments =
        ["invoke", &stage.name, "--function", &stage.function, "--handler", "app:echo", "--event-file", "-"];
    let output = world.regen_with_input(&arguments, b"{\"n\":\n 1}");
    assert_eq!(output.success().stdout().trim().replace(' ', ""), r#"{"n":1}"#);
    let clones = stage.daemon.template_show(&stage.name)["clones"].clone();
    std::fs::write(&file, json!("x".repeat(1 << 20)).to_string()).unwrap();
    stage.call("app:echo", &from_file).fails_with(2, "it has more than 1 MiB");
    for wrong in ["{", "", "nope", "1 2", "{'a': 1}"] {
        stage.call("app:echo", &["--event", wrong]).fails_with(2, "read the event: it is not JSON");
    }
    std::fs::write(&file, b"\xff\xfe").unwrap();
    stage.call("app:echo", &from_file).fails_with(2, "it is not UTF-8");
    stage.call("app:echo", &["--event-file", "/nowhere"]).fails_with(1, "read event '/nowhere': no such file");
    assert_eq!(stage.daemon.template_show(&stage.name)["clones"], clones, "nothing was begun for them");
}

#[test]
fn what_a_function_fails_with_is_told_in_a_line_and_with_its_traceback() {
    let world = World::new("tpl-error");
    let stage = Stage::new(&world);
    let failed = stage.call("app:fail", &[]);
    failed.code(1);
    let line = format!("regen: invoke 'app:fail' in a clone of '{}': ValueError: no; good", stage.name);
    assert_eq!(failed.stderr().lines().last().unwrap(), line);
    assert!(failed.stderr().contains("Traceback") && failed.stderr().contains("in fail"), "{}", failed.stderr());
    assert_eq!(failed.stdout(), "");
    let told = stage.call("app:fail", &["--json"]);
    let object: Value = serde_json::from_str(told.code(1).stdout()).unwrap();
    assert_eq!((&object["error"]["type"], &object["error"]["message"]), (&json!("ValueError"), &json!("no\ngood")));
    assert_eq!(told.stderr().lines().count(), 1, "{}", told.stderr());
    for (handler, words) in [
        ("app:nosuch", "HandlerNotFound"),
        ("nosuch:main", "HandlerNotFound"),
        ("app:value", "HandlerNotCallable"),
        ("app:odd", "ResultNotJson"),
    ] {
        let output = stage.call(handler, &[]);
        let last = output.code(1).stderr().lines().last().unwrap();
        assert!(last.starts_with("regen: invoke") && last.contains(words), "{handler}: {last}");
    }
    stage.is_clean();
}

#[test]
fn a_function_that_does_not_come_to_its_end_is_told_how_it_ended() {
    let world = World::new("tpl-ends");
    let stage = Stage::new(&world);
    let begins = format!("invoke 'app:die' in a clone of '{}': run it: ", stage.name);
    stage.call("app:die", &[]).fails_with(1, &format!("{begins}it was killed by signal 9"));
    stage
        .call("app:sleep", &["--timeout", "300ms"])
        .fails_with(1, "it has not come to its end in 0.3 s, and was killed");
    let abort = stage.call("app:abort", &[]);
    assert!(abort.code(1).stderr().contains("it was killed by signal 6"), "{}", abort.stderr());
    let exit = stage.call("app:leave", &[]);
    assert!(exit.code(1).stderr().contains("SystemExit") || exit.stderr().contains("status 3"), "{}", exit.stderr());
    stage.is_clean();
}

#[test]
fn what_a_function_may_use_is_bounded() {
    let world = World::new("tpl-bounds");
    let stage = Stage::new(&world);
    assert_eq!(stage.result("app:big", &["--event", "6000000"]).as_str().unwrap().len(), 6_000_000);
    stage.call("app:big", &["--event", "7000000"]).fails_with(1, "its result has more than 6.0 MiB, and it was killed");
    stage.call("app:big", &["--event", "2000", "--max-output", "1KiB"]).fails_with(1, "more than 1.0 KiB");
    assert_eq!(stage.result("app:eat", &["--event", "1000000", "--memory", "128MiB"]), 1_000_000);
    let eaten = stage.call("app:eat", &["--event", "500000000", "--memory", "64MiB"]);
    eaten.fails_with(1, "it needed more memory than it may have, and was killed: allow more: --memory");
    stage.is_clean();
}

#[test]
fn a_tar_file_is_a_function_too() {
    let world = World::new("tpl-tar");
    let stage = Stage::new(&world);
    let tar = world.base().join("f.tar.gz");
    let mut command = Command::new("tar");
    command.args(["-czf"]).arg(&tar).args(["-C", &stage.function, "."]);
    world.finish(command).success();
    for _ in 0..3 {
        let output = world.invoke(&stage.name, tar.to_str().unwrap(), "app:echo", &["--event", "[1]"]);
        assert_eq!(output.success().stdout(), "[1]\n");
    }
    std::fs::write(&tar, "nonsense").unwrap();
    let output = world.invoke(&stage.name, tar.to_str().unwrap(), "app:echo", &[]);
    output.fails_with(1, "open function");
    stage.is_clean();
}

#[test]
fn nothing_of_a_call_is_left_whoever_is_killed() {
    let world = World::new("tpl-killed");
    let stage = Stage::new(&world);
    let arguments = ["invoke", &stage.name, "--function", &stage.function, "--handler", "app:sleep"];
    let caller = world.spawn(world.command(&arguments));
    eventually("it is called", || stage.daemon.template_show(&stage.name)["clones"] == 1);
    caller.signal(nix::sys::signal::Signal::SIGKILL);
    caller.finish();
    stage.is_clean();
}
