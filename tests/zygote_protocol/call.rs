//! Clones that call a function.

use std::fs;

use serde_json::{Value, json};

use crate::peer::{End, Job, REPOSITORY, Zygote, python};

/// A module of functions, as somebody drops it in.
const MODULE: &str = r"
import sys
class Box:
    async def wait(self, event): return ['waited', event]
    value = 3
box = Box()
def echo(event): print('called'); return event
def say(event): sys.stdout.write('out'); sys.stderr.write('err'); return None
async def later(event):
    import asyncio
    await asyncio.sleep(0)
    return {'later': event}
def fail(event): return event['absent']
def leave(event): sys.exit(5)
def strange(event): return {1, 2}
def endless(event): return float('nan')
def circle(event):
    event.append(event)
    return event
def look(event):
    import os
    return [sys.path[:2], os.getcwd(), os.environ['FOO'], sys.argv, os.get_inheritable(4)]
def late(event):
    import atexit, os
    atexit.register(lambda: print('at exit', os.path.exists('/proc/self/fd/4')))
def leaves_open(event):
    import threading, time
    global kept
    kept = open('kept', 'w')
    kept.write(event)
    threading.Thread(target=lambda: (time.sleep(0.01), kept.write(' and a thread'))).start()
class Unsayable(Exception):
    def __str__(self): return 1 / 0
def unsayable(event): raise Unsayable
number = 5
";

fn functions() -> Zygote {
    let mut zygote = Zygote::start_in(python(&["--import", "json"]), |work| {
        fs::write(work.join("main.py"), MODULE).unwrap();
        fs::write(work.join("broken.py"), "import absent_part").unwrap();
        fs::write(work.join("wrong.py"), "def f(:").unwrap();
        fs::create_dir(work.join("package")).unwrap();
        fs::write(work.join("package/__init__.py"), "").unwrap();
        fs::write(work.join("package/inner.py"), "def f(event): return event + 1").unwrap();
    });
    assert_eq!(zygote.receive(), zygote.python_ready(), "{}", zygote.err());
    zygote
}

fn call(zygote: &mut Zygote, handler: &str, event: &str) -> (End, Value) {
    let end = zygote.clone(&Job::call(handler, event).variable("FOO=bar"));
    let answer = zygote.answer();
    (end, serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{handler}: {answer:?}: {error}")))
}

#[test]
fn the_result_of_a_function_is_answered() {
    let mut zygote = functions();
    let event = json!({"a": [1, 2.5, "\u{e9}\u{1f600}", null, true], "b": {}});
    let (end, answer) = call(&mut zygote, "main:echo", &event.to_string());
    assert_eq!(end, End { code: 0, out: "called\n".to_owned(), err: String::new() });
    assert_eq!(answer, json!({"result": event}));
    for (handler, event, result) in [
        ("main:later", "[1]", json!({"later": [1]})),
        ("main:box.wait", "2", json!(["waited", 2])),
        ("package.inner:f", "41", json!(42)),
        ("json:dumps", "[]", json!("[]")),
        ("main:late", "0", Value::Null),
    ] {
        let (end, answer) = call(&mut zygote, handler, event);
        assert_eq!((end.code, &answer), (0, &json!({"result": result})), "{handler}: {}", end.err);
        assert_eq!(end.out == "at exit False\n", handler == "main:late");
    }
}

#[test]
fn what_a_function_prints_is_no_part_of_the_answer() {
    let mut zygote = functions();
    let (end, answer) = call(&mut zygote, "main:say", "{}");
    assert_eq!(end, End { code: 0, out: "out".to_owned(), err: "err".to_owned() });
    assert_eq!(answer, json!({"result": null}));
}

#[test]
fn a_call_waits_for_its_threads_and_keeps_what_was_written() {
    let mut zygote = functions();
    let (end, answer) = call(&mut zygote, "main:leaves_open", "\"data\"");
    assert_eq!((end.code, answer), (0, json!({"result": null})), "{}", end.err);
    assert_eq!(fs::read_to_string(zygote.work().join("kept")).unwrap(), "data and a thread");
}

#[test]
fn a_function_sees_its_own_directory_environment_and_path() {
    let mut zygote = functions();
    let work = zygote.work().to_str().unwrap().to_owned();
    let (_, answer) = call(&mut zygote, "main:look", "{}");
    assert_eq!(answer, json!({"result": [["/function", work], work, "bar", [""], false]}));
}

#[test]
fn errors_are_answered_with_their_type_and_where_they_came_from() {
    let mut zygote = functions();
    for (handler, event, kind, message) in [
        ("main:fail", "{}", "KeyError", "'absent'"),
        ("main:leave", "{}", "SystemExit", "5"),
        ("main:unsayable", "{}", "Unsayable", "its message cannot be read"),
        ("broken:f", "{}", "ModuleNotFoundError", "No module named 'absent_part'"),
        ("wrong:f", "{}", "SyntaxError", "invalid syntax (wrong.py, line 1)"),
        (
            "main:echo",
            "{",
            "JSONDecodeError",
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
    ] {
        let (end, answer) = call(&mut zygote, handler, event);
        assert_eq!((end.code, &*end.err), (1, ""), "{handler}");
        assert_eq!((&answer["error"]["type"], &answer["error"]["message"]), (&json!(kind), &json!(message)));
        let trace = answer["error"]["traceback"].as_str().unwrap();
        assert!(trace.contains(kind) && !trace.contains("regen_zygote"), "{trace}");
    }
    let (_, answer) = call(&mut zygote, "main:fail", "{}");
    let trace = answer["error"]["traceback"].as_str().unwrap();
    assert!(trace.contains("main.py\", line 13, in fail\n    def fail(event): return event['absent']"), "{trace}");
}

#[test]
fn a_call_that_cannot_be_made_has_an_error_of_its_own() {
    let mut zygote = functions();
    for (handler, kind, words) in [
        ("absent:f", "HandlerNotFound", "there is no module 'absent' in /function or the working directory"),
        ("absent.inner:f", "HandlerNotFound", "there is no module 'absent.inner'"),
        ("package.absent:f", "HandlerNotFound", "there is no module 'package.absent'"),
        ("main:absent", "HandlerNotFound", "module 'main' has no 'absent'"),
        ("main:box.absent", "HandlerNotFound", "module 'main' has no 'box.absent'"),
        ("main", "HandlerNotFound", "'main' is not of the form MODULE:NAME"),
        (":f", "HandlerNotFound", "':f' is not of the form MODULE:NAME"),
        ("main:", "HandlerNotFound", "'main:' is not of the form MODULE:NAME"),
        ("main:number", "HandlerNotCallable", "'main:number' is a int"),
        ("main:strange", "ResultNotJson", "what 'main:strange' returned is no JSON: "),
        ("main:endless", "ResultNotJson", "what 'main:endless' returned is no JSON: "),
        ("main:circle", "ResultNotJson", "what 'main:circle' returned is no JSON: "),
    ] {
        let (end, answer) = call(&mut zygote, handler, "[]");
        let error = &answer["error"];
        assert_eq!((end.code, &error["type"], &error["traceback"]), (1, &json!(kind), &json!("")), "{answer}");
        assert!(error["message"].as_str().unwrap().starts_with(words), "{answer}");
    }
}

#[test]
fn a_huge_event_comes_back_whole() {
    let mut zygote = functions();
    let event = json!("x".repeat(24 << 20));
    let (end, answer) = call(&mut zygote, "main:echo", &event.to_string());
    assert_eq!(end.code, 0, "{}", end.err);
    assert!(answer == json!({"result": event}), "it is another one");
}

#[test]
fn an_interpreter_with_few_modules_runs_programs_and_says_what_calls_need() {
    // What Debian's python3-minimal lacks, as far as somebody could come to need it.
    let lacking = "import sys\nclass Lacking:\n  def find_spec(name, path=None, target=None):\n    \
        if name in ('json', 'ctypes', '_ctypes', 'asyncio', 'uuid', 'decimal', 'multiprocessing', 'numbers', 'queue', 'shutil'):\n      \
        raise ModuleNotFoundError('no ' + name, name=name)\nsys.meta_path.insert(0, Lacking)";
    let mut command = python(&["--import=random"]);
    command.env("PYTHONPATH", format!("{REPOSITORY}/zygote/python:."));
    let mut zygote = Zygote::start_in(command, |work| fs::write(work.join("sitecustomize.py"), lacking).unwrap());
    assert_eq!(zygote.receive(), zygote.python_ready(), "{}", zygote.err());
    assert_eq!(zygote.clone(&Job::program(&["python3", "-c", "print(1)"])).out, "1\n");
    let (end, answer) = call(&mut zygote, "random:random", "{}");
    assert_eq!((end.code, &answer["error"]["type"]), (1, &json!("ModuleNotFoundError")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("no module json, which calls need"), "{answer}");
}
