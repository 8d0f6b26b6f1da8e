//! The worked examples of docs/examples/services, as an operator would run them: started, restarted and replaced by a
//! second version while clients connect anew for every request and check every answer. None may fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use harness::World;
use harness::load::{Load, Plan, Target};
use harness::port::free_port;
use sha2::{Digest, Sha256};

const OLD: &str = "hello from 1.0.0";
const NEW: &str = "hello from 2.0.0";

/// Examples that are run in two ways are made once.
static MAKING: Mutex<()> = Mutex::new(());

/// How often each example is restarted.
const RESTARTS: usize = 8;

/// An example, and what docs/services.md says about how to run it.
struct Example {
    directory: &'static str,
    handover: &'static str,
    ready: &'static str,
    stop_signal: &'static str,
    command: &'static [&'static str],
}

#[test]
fn nginx_knows_nothing_of_it() {
    let command = &["nginx"];
    check(&Example { directory: "nginx", handover: "intercept", ready: "http:/", stop_signal: "QUIT", command });
}

#[test]
fn gunicorn_takes_its_socket() {
    let command = &["gunicorn", "--chdir", "/app", "--workers", "2", "--threads", "4", "app:app"];
    check(&Example { directory: "gunicorn", handover: "listen-fds", ready: "http:/", stop_signal: "TERM", command });
}

#[test]
fn a_static_go_server_takes_its_socket() {
    let command = &["/server"];
    check(&Example { directory: "go", handover: "listen-fds", ready: "notify", stop_signal: "TERM", command });
}

#[test]
fn a_static_go_server_binds_by_itself() {
    let command = &["/server", "ADDRESS"];
    check(&Example { directory: "go", handover: "intercept", ready: "notify", stop_signal: "TERM", command });
}

#[test]
fn a_static_rust_server_takes_its_socket() {
    let command = &["/server"];
    check(&Example { directory: "rust", handover: "listen-fds", ready: "tcp", stop_signal: "TERM", command });
}

#[test]
fn a_static_rust_server_binds_by_itself() {
    let command = &["/server", "ADDRESS"];
    check(&Example { directory: "rust", handover: "intercept", ready: "tcp", stop_signal: "TERM", command });
}

fn check(example: &Example) {
    let world = World::new(&format!("example-{}-{}", example.directory, example.handover));
    let address = format!("127.0.0.1:{}", free_port("127.0.0.1"));
    let (old, new) = (make(&world, example, OLD, &address), make(&world, example, NEW, &address));
    let daemon = world.daemon();
    let service = daemon.name("web");
    let listen = format!("tcp://{address}");
    let mut add = vec!["add", &service, "--version", "1.0.0", "--listen", &listen];
    add.extend(["--rootfs", old.to_str().unwrap(), "--handover", example.handover, "--ready", example.ready]);
    add.extend(["--stop-signal", example.stop_signal, "--"]);
    add.extend(example.command.iter().map(|word| if *word == "ADDRESS" { &address } else { *word }));
    daemon.service(&add).success();

    let target: Target = address.parse().unwrap();
    let pages = [format!("{OLD}\n"), format!("{NEW}\n")];
    let plan = Plan::http(target.clone(), "/", pages[0].as_bytes()).or(pages[1].as_bytes());
    let load = Load::start(Plan { threads: 8, rate: Some(300.0), pause: Duration::from_millis(100), ..plan });
    load.wait_for(50);
    for _ in 0..RESTARTS {
        daemon.service(&["restart", &service]).success();
        load.wait_for(20);
    }
    daemon.service(&["upgrade", &service, "--to", "2.0.0", "--rootfs", new.to_str().unwrap()]).success();
    load.wait_for(50);
    let outcome = load.stop();
    assert_eq!(outcome.failed(), 0, "{outcome}");
    assert!(outcome.answers.len() == 2 && outcome.answers[1] > 0, "{:?}", outcome.answers);

    // Who asks after the upgrade is answered by the new version alone.
    let after = Load::start(Plan { threads: 2, ..Plan::http(target, "/", pages[1].as_bytes()) });
    after.wait_for(20);
    let after = after.stop();
    assert_eq!(after.failed(), 0, "{after}");
    daemon.service(&["rm", &service]).success();
}

/// Runs the example's own `make`, or takes what it made before: those that come from packages take their time.
fn make(world: &World, example: &Example, page: &str, address: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/services").join(example.directory);
    let mut digest = Sha256::new();
    for entry in fs::read_dir(&directory).unwrap() {
        digest.update(fs::read(entry.unwrap().path()).unwrap());
    }
    let key: String = digest.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("example-{}-{key}", example.directory));
    let making = MAKING.lock();
    if !made.exists() {
        let scratch = made.with_extension(std::process::id().to_string());
        run(Command::new(directory.join("make")).arg(&scratch).arg("nothing"));
        // Another process may have been faster.
        if fs::rename(&scratch, &made).is_err() {
            fs::remove_dir_all(&scratch).unwrap();
        }
    }
    drop(making);
    let root = world.base().join(page.replace(' ', "-"));
    run(Command::new("cp").arg("--archive").arg(&made).arg(&root));
    fs::write(root.join("www/index.html"), format!("{page}\n")).unwrap();
    let config = root.join("etc/nginx/nginx.conf");
    if let Ok(text) = fs::read_to_string(&config) {
        fs::write(config, text.replace("127.0.0.1:8080", address)).unwrap();
    }
    root
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
