//! CVE-2019-5736: the runtime's own file, overwritten through `/proc/PID/exe` of a process that is still the runtime.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Output, REGEN, World, eventually, process_status};

/// A copy of the program: a file that somebody else executes refuses writing for that reason alone.
struct Own<'a> {
    world: &'a World,
    path: PathBuf,
    content: Vec<u8>,
}

impl<'a> Own<'a> {
    fn new(world: &'a World) -> Self {
        let path = world.base().join("own-regen");
        fs::copy(REGEN, &path).unwrap();
        Self { world, content: fs::read(&path).unwrap(), path }
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(self.world.root()).args(arguments);
        self.world.finish(command)
    }

    #[track_caller]
    fn assert_whole(&self) {
        assert!(fs::read(&self.path).unwrap() == self.content, "the runtime's file was overwritten");
        // Nobody executes it now: whoever could not write to it was kept away by regen, not by the kernel's "text busy".
        fs::OpenOptions::new().write(true).open(&self.path).expect("the administrator may still replace it");
    }
}

/// Takes hold of the file of a process, says what it got, and writes to it once nobody executes it any more.
fn script(pid: &str, mark: &str) -> String {
    format!(
        "if exec 3</proc/{pid}/exe; then echo held > /tmp/{mark}.held; else echo refused > /tmp/{mark}.held; exit; fi
         while [ ! -e /tmp/{mark}.go ]; do sleep 0.01; done
         echo owned > /proc/self/fd/3; echo owned >> /proc/self/fd/3; echo over > /tmp/{mark}.over"
    )
}

/// An attacker in a container that has taken hold of the file of a process, which it sees under this pid.
struct Attack<'a> {
    own: &'a Own<'a>,
    pid: String,
}

impl<'a> Attack<'a> {
    fn hold(own: &'a Own<'a>, container: &str, pid: &str) -> Self {
        let attack = Self { own, pid: pid.to_owned() };
        let script = script(pid, pid);
        // One that may look into every process of its own pid namespace.
        own.call(&["exec", "-d", "--cap", "CAP_SYS_PTRACE", container, "sh", "-c", &script]).success();
        let held = || fs::read_to_string(attack.file("held"));
        eventually("the attacker took hold", || held().is_ok_and(|text| text.ends_with('\n')));
        assert_eq!(held().unwrap(), "held\n", "it got nothing to attack");
        attack
    }

    /// Lets it write, once nobody executes the file any more.
    fn strike(self) {
        fs::write(self.file("go"), "").unwrap();
        eventually("the attack is over", || self.file("over").exists());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.own.world.rootfs().join(format!("tmp/{}.{name}", self.pid))
    }
}

/// Starts a container and waits until its process has become its program.
fn start(own: &Own<'_>, id: &str) {
    own.call(&["start", id]).success();
    let name = || fs::read_to_string(format!("/proc/{}/comm", own.world.pid(id)));
    eventually("it has become its program", || name().is_ok_and(|name| name == "sleep\n"));
}

#[test]
fn a_neighbour_in_the_pid_namespace_cannot_write_through_a_container_that_waits_for_start() {
    let world = World::new("5736-create");
    let own = Own::new(&world);
    let attacker = world.id("attacker");
    let sleeper = world.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    own.call(&["run", "-d", "--bundle", sleeper.text(), &attacker]).success();
    let namespace = format!("/proc/{}/ns/pid", world.pid(&attacker));
    let victim = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["namespaces"][0] = json!({"type": "pid", "path": namespace});
    });
    let id = world.id("victim");
    own.call(&["create", "--bundle", victim.text(), &id]).success();
    let inside = process_status(world.pid(&id), "NSpid").split_whitespace().last().unwrap().to_owned();
    let attack = Attack::hold(&own, &attacker, &inside);
    start(&own, &id);
    attack.strike();
    own.assert_whole();
    world.delete(&id);
    world.delete(&attacker);
}

#[test]
fn nor_in_the_hosts_pid_namespace_and_not_through_the_runtime_that_waits_in_the_foreground() {
    let world = World::new("5736-host");
    let own = Own::new(&world);
    let attacker = world.id("attacker");
    let host_pids = |spec: &mut serde_json::Value| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().remove(0);
        spec["process"]["args"] = json!(["sleep", "1000"]);
    };
    let bundle = world.bundle(host_pids);
    own.call(&["run", "-d", "--bundle", bundle.text(), &attacker]).success();
    let (id, third) = (world.id("victim"), world.id("third"));
    own.call(&["create", "--bundle", world.bundle(host_pids).text(), &id]).success();
    let mut command = Command::new(&own.path);
    let waiting = world.bundle(|spec| spec["process"]["args"] = json!(["sh", "-c", "echo ready; sleep 1000"]));
    command.arg("--root").arg(world.root()).args(["run", "--bundle", waiting.text(), &third]);
    let mut running = world.spawn(command);
    running.wait_for("ready");
    let attacks = [world.pid(&id), running.pid()].map(|pid| Attack::hold(&own, &attacker, &pid.to_string()));
    start(&own, &id);
    own.call(&["kill", &third, "KILL"]).success();
    running.finish().code(137);
    attacks.into_iter().for_each(Attack::strike);
    own.assert_whole();
    world.delete(&id);
    world.delete(&attacker);
}

/// Makes the image's program interpreter a hostile one, and the runtime itself a program of the image, in several ways;
/// gives the names of those programs.
fn plant(world: &World) -> Vec<&'static str> {
    let rootfs = world.rootfs();
    let bin = rootfs.join("bin");
    symlink("/proc/self/exe", bin.join("itself")).unwrap();
    fs::write(bin.join("shebang"), "#!/proc/self/exe\n").unwrap();
    fs::write(bin.join("attack"), script("self", "attack").replace("exec 3</proc/self/exe", "[ -e /proc/self/fd/3 ]"))
        .unwrap();
    fs::set_permissions(bin.join("shebang"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1"] {
        let interpreter = rootfs.join(name);
        fs::create_dir_all(interpreter.parent().unwrap()).unwrap();
        let mut compile = Command::new("gcc");
        compile.args(["-static", "-nostdlib", "-fno-stack-protector", "-O1", "-o"]).arg(&interpreter);
        compile.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cve/interpreter.c"));
        world.finish(compile).success();
    }
    vec!["itself", "shebang", "/proc/self/exe", "/proc/thread-self/exe"]
}

/// Linked dynamically, the runtime would load the image's interpreter, which could hold on to the runtime's file until
/// nothing runs from it any more. Static, it has none: what runs is the runtime, which has nothing to do there.
#[test]
fn a_program_that_is_the_runtime_itself_loads_nothing_of_the_image() {
    let world = World::new("5736-self");
    let own = Own::new(&world);
    let container = world.id("container");
    let sleeper = world.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    own.call(&["run", "-d", "--bundle", sleeper.text(), &container]).success();
    for (number, program) in plant(&world).into_iter().enumerate() {
        let id = world.id(&format!("n{number}"));
        let bundle = world.bundle(|spec| spec["process"]["args"] = json!([program]));
        let ways: [&[&str]; 2] = [&["exec", &container, program], &["run", "--bundle", bundle.text(), &id]];
        for way in ways {
            let output = own.call(way);
            assert!(output.code(2).stderr().contains("regen"), "{output:?}");
            assert!(!world.rootfs().join("tmp/attack.held").exists(), "the image's interpreter ran: {way:?}");
            own.assert_whole();
        }
    }
    world.delete(&container);
}
