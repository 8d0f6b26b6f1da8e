//! Templates whose programs cannot fork: saved once by criu, and restored for every clone. The programs have threads.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Running, World, cgroup_of, eventually};

/// Answers each line with what is its own: pid, host name, file, random numbers; `exit N` ends it.
const PYTHON: &str = r#"
import os, random, secrets, socket, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
for line in sys.stdin:
    line = line.strip()
    with open("/root/own", "a") as own:
        own.write(line + ",")
    print("got", line, os.getpid(), socket.gethostname(), open("/root/own").read(), threading.active_count(), flush=True)
    print("drew", random.random(), secrets.token_hex(), file=sys.stderr, flush=True)
    if line.startswith("exit"):
        sys.exit(int(line[5:]))
"#;

/// The same without random numbers.
const NODE: &str = r#"
const fs = require('fs'), os = require('os'), { Worker } = require('worker_threads');
const worker = new Worker('setInterval(() => {}, 1000)', { eval: true });
worker.on('online', () => console.log('READY=1'));
require('readline').createInterface({ input: process.stdin }).on('line', line => {
  fs.appendFileSync('/root/own', line + ',');
  console.log(`got ${line} ${process.pid} ${os.hostname()} ${fs.readFileSync('/root/own')} 2`);
  if (line.startsWith('exit')) process.exit(Number(line.slice(5)));
});
"#;

/// The same for BeanShell, which is a program of a Java machine.
const JAVA: &str = r#"
import java.io.*;
waiting = new Thread(new Runnable() { run() { while (true) Thread.sleep(1000); } });
waiting.setDaemon(true);
waiting.start();
System.out.println("READY=1");
in = new BufferedReader(new InputStreamReader(System.in));
while ((line = in.readLine()) != null) {
    own = new FileWriter("/root/own", true);
    own.write(line + ",");
    own.close();
    own = new BufferedReader(new FileReader("/root/own")).readLine();
    name = new BufferedReader(new FileReader("/proc/sys/kernel/hostname")).readLine();
    System.out.println("got " + line + " " + ProcessHandle.current().pid() + " " + name + " " + own + " " + Thread.activeCount());
    if (line.startsWith("exit")) System.exit(Integer.parseInt(line.substring(5)));
}
"#;

/// Answers one call.
const CALLED: &str = r#"
import json, os, sys
print("READY=1", flush=True)
order = json.loads(sys.stdin.readline())
print("hello from", order["handler"], flush=True)
event = order["event"]
if event == "die":
    sys.exit(7)
if event == "fail":
    answer = {"error": {"type": "ValueError", "message": "no", "traceback": "here"}}
else:
    answer = {"result": [event, sys.stdin.read(), sorted(os.listdir("/function"))]}
print(json.dumps(answer), flush=True)
"#;

/// Says that it is ready on a connection that it keeps.
const CONNECTED: &str = r#"
import os, socket, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"READY=1")
sys.stdin.readline()
"#;

/// A template, made of a text.
struct Case<'a> {
    world: &'a World,
    template: String,
}

impl<'a> Case<'a> {
    /// A template over this machine's own files.
    fn create(world: &'a World, script: &str, command: &[&str]) -> Self {
        let case = Self { world, template: world.id("t") };
        case.try_create(script, command).success();
        // It lives in files only.
        assert_eq!(world.regen(&["list", "-q"]).success().stdout(), "");
        case
    }

    fn try_create(&self, script: &str, command: &[&str]) -> crate::harness::Output {
        let path = self.world.base().join("program");
        fs::write(&path, script).unwrap();
        let create = ["template", "create", &self.template, "--mode", "snapshot", "--rootfs", "/"];
        let rest = ["--ready-timeout", "300s", "--"];
        self.world.regen(&[&create[..], &rest, command, &[path.to_str().unwrap()]].concat())
    }

    fn clone(&self, id: &str) -> (Running, ChildStdin) {
        let mut command = self.world.command(&["clone", &self.template, id]);
        command.stdin(Stdio::piped());
        let mut running = self.world.spawn(command);
        let input = running.child.stdin.take().unwrap();
        (running, input)
    }

    /// Three clones that live at the same time and have nothing in common, and one after them.
    fn clone_side_by_side(&self) -> Vec<String> {
        let ids: Vec<String> = (0..3).map(|index| self.world.id(&format!("c{index}"))).collect();
        let mut clones: Vec<_> = ids.iter().map(|id| self.clone(id)).collect();
        for (index, (running, input)) in clones.iter_mut().enumerate() {
            writeln!(input, "order-{index}").unwrap();
            let own = format!("got order-{index} 1 {} order-{index}, 2\n", ids[index]);
            running.wait_for(&own);
        }
        let pids: Vec<i32> = ids.iter().map(|id| self.world.pid(id)).collect();
        for namespace in ["pid", "mnt", "net", "ipc", "uts"] {
            let mut found: Vec<_> =
                pids.iter().map(|pid| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap()).collect();
            found.push(fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap());
            found.sort();
            found.dedup();
            assert_eq!(found.len(), 4, "{namespace}: {found:?}");
        }
        for (pid, id) in pids.iter().zip(&ids) {
            assert!(cgroup_of(*pid).ends_with(id), "{}", cgroup_of(*pid).display());
        }
        let mut complaints = Vec::new();
        for (index, (running, mut input)) in clones.into_iter().enumerate() {
            writeln!(input, "exit {}", index + 3).unwrap();
            let said = running.complaints();
            running.finish().code(i32::try_from(index).unwrap() + 3);
            complaints.push(said);
        }
        // From a file, which it gets by way of a pipe.
        let output = self.world.regen_with_input(&["clone", &self.template, &ids[0]], b"exit 9\n");
        assert_eq!(output.code(9).stdout(), format!("got exit 9 1 {} exit 9, 2\n", ids[0]));
        assert_eq!(self.world.regen(&["list", "-q"]).success().stdout(), "");
        assert!(!Path::new("/root/own").exists());
        complaints
    }

    fn remove(&self) {
        self.world.regen(&["template", "rm", &self.template]).success();
        assert!(!self.world.store().join("templates/root").join(&self.template).exists());
    }
}

#[test]
fn a_python_with_threads_is_cloned() {
    let world = World::new("snappy");
    let _daemon = world.daemon();
    let case = Case::create(&world, PYTHON, &["python3"]);
    let drawn: Vec<Vec<String>> =
        case.clone_side_by_side().iter().map(|said| said.split_whitespace().map(str::to_owned).collect()).collect();
    let numbers =
        |index: usize| drawn.iter().map(|words| &words[index]).collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(numbers(1), 1, "a generator in user space goes on alike in all: {drawn:?}");
    assert_eq!(numbers(2), 3, "the kernel's does not: {drawn:?}");
    case.remove();
}

#[test]
fn a_node_is_cloned() {
    let world = World::new("snapnode");
    let _daemon = world.daemon();
    let case = Case::create(&world, NODE, &["node"]);
    case.clone_side_by_side();
    case.remove();
}

#[test]
fn a_java_machine_is_cloned() {
    let world = World::new("snapjava");
    let _daemon = world.daemon();
    let small = ["java", "-XX:-UsePerfData", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx64m"];
    let case =
        Case::create(&world, JAVA, &[&small[..], &["-cp", "/usr/share/java/bsh.jar", "bsh.Interpreter"]].concat());
    case.clone_side_by_side();
    case.remove();
}

#[test]
fn a_call_is_a_line_and_so_is_its_answer() {
    let world = World::new("snapcall");
    let mut daemon = world.daemon();
    let case = Case::create(&world, CALLED, &["python3"]);
    let function = world.base().join("function");
    fs::create_dir(&function).unwrap();
    fs::write(function.join("app.py"), "").unwrap();
    let invoke = |event: &str| {
        let call = ["invoke", &case.template, "--function", function.to_str().unwrap(), "--handler", "app:handle"];
        world.regen(&[&call[..], &["--timeout", "200s", "--event", event]].concat())
    };
    let output = invoke("{\n\"big\": 12345678901234567890}");
    assert_eq!(output.success().stdout(), "[{\"big\": 12345678901234567890}, \"\", [\"app.py\"]]\n");
    assert_eq!(output.stderr(), "hello from app:handle\n");
    let output = invoke("\"fail\"");
    output.code(1);
    assert!(output.stderr().contains("here\n") && output.stderr().contains("ValueError: no"), "{output:?}");
    assert!(invoke("\"die\"").code(1).stderr().contains("its program ended with status 7 without one"));
    for late in [&["--env", "A=b"][..], &["--workdir", "/"], &["--", "ls"]] {
        let clone = ["clone", &case.template, &world.id("late")];
        world.regen(&[&clone[..], late].concat()).fails_with(2, "its program is already running, so ");
    }
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), "");
    // It serves without any process, and is made anew by the next keeper.
    let generation = || {
        let shown = world.regen(&["template", "show", &case.template, "--json"]);
        serde_json::from_str::<Value>(shown.success().stdout()).unwrap()["generation"].as_u64()
    };
    let first = generation();
    daemon.end(Signal::SIGTERM);
    kill(Pid::from_raw(pid_of_keeper(&case.template)), Signal::SIGKILL).unwrap();
    assert_eq!(invoke("1").success().stdout(), "[1, \"\", [\"app.py\"]]\n");
    daemon.start();
    eventually("another keeper has taken another one", || generation() > first);
    case.remove();
}

#[test]
fn what_cannot_be_saved_leaves_nothing_but_the_reason() {
    let world = World::new("snapfail");
    let _daemon = world.daemon();
    let case = Case { world: &world, template: world.id("t") };
    let output = case.try_create("import sys\nsys.exit('no such module')\n", &["python3"]);
    output.fails_with(1, "it ended with status 1 before; it said 'no such module'");
    case.try_create(CONNECTED, &["python3"]).fails_with(1, "run criu: Error (criu/sk-unix.c");
    assert_eq!(world.regen(&["list", "-q"]).success().stdout(), "");
    assert_eq!(world.regen(&["template", "ls", "--json"]).success().stdout().trim(), "[]");
}

/// The pid of a template's keeper, by its command line.
fn pid_of_keeper(template: &str) -> i32 {
    let wanted = format!("template-keeper\0root/{template}\0");
    let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&wanted).then_some(pid)
    });
    found.unwrap_or_else(|| panic!("template '{template}' has no keeper"))
}
