//! The library for C, with the C libraries of GNU and musl, and the examples that use it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::peer::{End, Job, REPOSITORY, Zygote};

/// What was made. Each is made once, for others may run it by then.
static MADE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn make_once(program: &Path, command: &mut Command) {
    let mut made = MADE.lock().unwrap_or_else(|poison| poison.into_inner());
    if !made.contains(program) {
        run(command);
        made.insert(program.to_owned());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.is_empty(), "{command:?}: {text}");
}

/// Where things are built with a compiler.
fn build(compiler: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("zygote-{compiler}"))
}

/// The program of an example; the compiler is for C.
fn example(language: &str, compiler: &str) -> PathBuf {
    let directory = build(if language == "rust" { "rust" } else { compiler });
    let program = directory.join(if language == "rust" { "steps" } else { "primes" });
    let mut make = Command::new(format!("{REPOSITORY}/zygote/examples/{language}/make"));
    make_once(&program, make.arg(&directory).env("CC", compiler));
    program
}

/// The template of `look.c`, ready.
fn look(compiler: &str) -> Zygote {
    example("c", compiler);
    let directory = build(compiler);
    let program = directory.join("look");
    let mut compile = Command::new(compiler);
    compile.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-static", "-I"]).arg(format!("{REPOSITORY}/zygote/c"));
    compile.arg("-o").arg(&program).arg(format!("{REPOSITORY}/tests/zygote_protocol/look.c"));
    make_once(&program, compile.arg("-L").arg(&directory).arg("-lregen_zygote"));
    ready(&program, "ready 1 look 1.0")
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("REGEN_OCI_ZYGOTE", "1");
    command
}

fn ready(program: &Path, message: &str) -> Zygote {
    let mut zygote = Zygote::start(command(program));
    assert_eq!(zygote.receive(), message, "{}", zygote.err());
    zygote
}

fn call(zygote: &mut Zygote, handler: &str, event: &str) -> (End, Value) {
    let end = zygote.clone(&Job::call(handler, event));
    let answer = zygote.answer();
    (end, serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{handler}: {answer:?}: {error}")))
}

fn both(test: impl Fn(Zygote, &Path)) {
    for compiler in ["gcc", "musl-gcc"] {
        test(look(compiler), &build(compiler).join("look"));
    }
}

#[test]
fn a_clone_in_c_has_its_own_arguments_and_environment_and_ends_as_after_main() {
    both(|mut zygote, program| {
        for name in [program.to_str().unwrap(), "look"] {
            let path = format!("PATH={}:/usr/bin", program.parent().unwrap().display());
            let mut job = Job::only(&[name, "a b", ""]);
            for variable in [path.as_str(), "FOO=bar", "EMPTY="] {
                job = job.variable(variable);
            }
            let out = format!("a b\n\n(end)\n{path}\nFOO=bar\nEMPTY=\nchanged 1\nbye\n");
            assert_eq!(zygote.clone(&job), End { code: 7, out, err: String::new() });
        }
        // Once, not in every clone.
        assert_eq!(zygote.out().matches("loaded ").count(), 1);
        zygote.hang_up();
        assert_eq!(zygote.end().code(), Some(0));
    });
}

#[test]
fn a_clone_in_c_executes_what_is_another_program() {
    both(|mut zygote, _| {
        let end = zygote.clone(&Job::program(&["sh", "-c", "echo $0 $FOO; exit 3", "zero"]).variable("FOO=bar"));
        assert_eq!(end, End { code: 3, out: "zero bar\n".to_owned(), err: String::new() });
        // It does not ignore what the template ignores.
        assert_eq!(zygote.clone(&Job::program(&["sh", "-c", "kill -PIPE $$; echo survived"])).code, 128 + 13);
        for (name, code, cause) in [
            ("no-such-program", 127, "not found"),
            ("./no-such-program", 127, "not found"),
            ("/etc/passwd/below", 127, "not found"),
            ("/etc", 126, "Permission denied"),
            ("/etc/passwd", 126, "Permission denied"),
        ] {
            let end = zygote.clone(&Job::program(&[name]));
            let err = format!("regen_zygote: exec '{name}': {cause}\n");
            assert_eq!(end, End { code, out: String::new(), err });
        }
    });
}

#[test]
fn a_clone_in_c_answers_a_call_once() {
    both(|mut zygote, _| {
        let event = json!(["x".repeat(3 << 20), "\u{1f600}", 1]);
        let (end, answer) = call(&mut zygote, "look:echo", &event.to_string());
        assert_eq!(end, End { code: 0, out: "calledbye\n".to_owned(), err: String::new() });
        assert!(answer == json!({"result": event}), "it is another one");
        let (end, answer) = call(&mut zygote, "look:error", "1");
        let message = "\u{1} \\ \u{e9} \u{1f600} \u{fffd}( \u{fffd}\u{fffd}\u{fffd} \u{fffd} \u{fffd}\u{fffd}";
        let error = json!({"type": "Own \"type\"", "message": message, "traceback": ""});
        assert_eq!((end.code, answer), (9, json!({"error": error})));
        let (end, answer) = call(&mut zygote, "look:twice", "1");
        assert_eq!((end.code, answer), (0, json!({"result": 1})));
        for (handler, code) in [("look:nothing", 1), ("look:other", 3)] {
            let (end, answer) = call(&mut zygote, handler, "1");
            assert_eq!((end.code, &answer["error"]["type"]), (code, &json!("NoAnswer")));
        }
    });
}

#[test]
fn a_job_that_is_damaged_ends_a_clone_in_c_with_a_line() {
    both(|mut zygote, _| {
        let good = Job::program(&["true"]).bytes();
        let text = |fields: &[&str]| fields.iter().flat_map(|field| field.bytes().chain([0])).collect::<Vec<u8>>();
        let mut rows: Vec<_> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
        rows.extend([
            [&good[..], b"more\0"].concat(),
            text(&["regen-job", "2", "1", "true", "0", "0"]),
            text(&["other-job", "1", "1", "true", "0", "0"]),
            text(&["regen-job", "1", "-1", "true", "0", "0"]),
            text(&["regen-job", "1", "99999999999999999999", "true", "0", "0"]),
            text(&["regen-job", "1", "999999999", "true", "0", "0"]),
            text(&["regen-job", "1", "0", "0", "0"]),
            text(&["regen-job", "1", "1", "true", "0", "1", "json:loads"]),
            vec![0; 4096],
            vec![b'x'; 1 << 20],
        ]);
        for row in rows {
            let end = zygote.clone_bytes(&row);
            assert_eq!((end.code, &*end.err), (1, "regen_zygote: read the job: it is damaged\n"));
        }
        assert_eq!(zygote.clone_bytes(&good).code, 0);
    });
}

#[test]
fn a_template_in_c_refuses_what_it_does_not_know() {
    both(|mut zygote, program| {
        zygote.send(b"fork");
        assert_eq!(zygote.receive(), "");
        assert_eq!(zygote.end().code(), Some(1));
        assert_eq!(zygote.err(), "regen_zygote: regen sent what version 1 of the zygote protocol does not have\n");
        for message in [&b"fork "[..], b"fork x", b"fork 1 ", b"fork 1\0", b"\xff", &[b'1'; 6000]] {
            let mut zygote = ready(program, "ready 1 look 1.0");
            zygote.send(message);
            assert_eq!(zygote.end().code(), Some(1), "{message:?}");
        }
        let mut newer = command(program);
        newer.env("REGEN_OCI_ZYGOTE", "2");
        let mut newer = Zygote::start(newer);
        assert_eq!((newer.receive(), newer.end().code()), (String::new(), Some(1)));
        assert!(
            newer
                .err()
                .starts_with("regen_zygote: regen speaks version 2 of the zygote protocol, this program version 1: ")
        );
    });
}

#[test]
fn the_example_in_c_looks_primes_up() {
    for compiler in ["gcc", "musl-gcc"] {
        let program = example("c", compiler);
        let name = program.to_str().unwrap();
        let mut zygote = ready(&program, "ready 1 c");
        let end = zygote.clone(&Job::program(&[name, "1", "100", "5000"]));
        assert_eq!(end, End { code: 0, out: "2\n541\n48611\n".to_owned(), err: String::new() });
        assert_eq!(zygote.clone(&Job::program(&[name, "x"])).code, 2);
        assert_eq!(call(&mut zygote, "primes:count", "100").1, json!({"result": 25}));
        for (handler, event, kind) in [("primes:sum", "1", "HandlerNotFound"), ("primes:count", "{}", "EventNotNumber")]
        {
            let (end, answer) = call(&mut zygote, handler, event);
            assert_eq!((end.code, &answer["error"]["type"]), (1, &json!(kind)));
        }
    }
}

#[test]
fn the_example_in_rust_looks_steps_up() {
    let program = example("rust", "cc");
    let name = program.to_str().unwrap();
    let mut zygote = ready(&program, "ready 1 rust");
    let end = zygote.clone(&Job::program(&[name, "6", "27"]));
    assert_eq!(end, End { code: 0, out: "8\n111\n".to_owned(), err: String::new() });
    assert_eq!(zygote.clone(&Job::program(&[name, "0"])).code, 2);
    assert_eq!(call(&mut zygote, "steps:count", "27").1, json!({"result": 111}));
    for (handler, event, kind) in [("steps:sum", "1", "HandlerNotFound"), ("steps:count", "{}", "EventNotNumber")] {
        let (end, answer) = call(&mut zygote, handler, event);
        assert_eq!((end.code, &answer["error"]["type"]), (1, &json!(kind)));
    }
}
