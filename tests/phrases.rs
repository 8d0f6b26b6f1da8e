//! The same bad requests to runc and to regen: both refuse, or neither, and regen does it as engines expect it. They
//! read the log, of which exactly one entry may be an error, and look for certain words in it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Output, World, eventually};
use serde_json::{Value, json};

const RUNC: &str = "runc";

/// One of the two runtimes, with a root of its own.
struct Runtime<'a> {
    world: &'a World,
    /// Nothing for regen.
    program: Option<&'static str>,
    id: String,
    log: PathBuf,
}

impl<'a> Runtime<'a> {
    fn both(world: &'a World) -> Vec<Self> {
        let has_runc = Command::new(RUNC).arg("--version").output().is_ok();
        let programs = [None, has_runc.then_some(RUNC)];
        let named = programs.into_iter().enumerate().filter(|(index, program)| *index == 0 || program.is_some());
        named
            .map(|(index, program)| Self {
                world,
                program,
                id: world.id(program.unwrap_or("regen")),
                log: world.base().join(format!("log{index}")),
            })
            .collect()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let _ = fs::remove_file(&self.log);
        let mut command = match self.program {
            None => self.world.command(&[]),
            Some(program) => {
                let mut command = Command::new(program);
                command.arg("--root").arg(self.world.base().join("peer")).current_dir(self.world.base());
                command
            }
        };
        command.arg("--log").arg(&self.log).args(["--log-format", "json"]);
        command.args(arguments.iter().map(|argument| argument.replace("@", &self.id)));
        self.world.finish(command)
    }

    /// The message of the only entry that is an error.
    fn message(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [entry] = &entries[..] else { panic!("not one entry: {text:?}") };
        assert_eq!(entry["level"], "error", "{text}");
        assert!(chrono::DateTime::parse_from_rfc3339(entry["time"].as_str().unwrap()).is_ok(), "{text}");
        entry["msg"].as_str().unwrap().to_owned()
    }

    fn stop(&self) {
        self.run(&["delete", "--force", "@"]);
    }
}

/// A request, and the words that have to be in what regen says about it; none if it is no mistake.
type Row<'a> = (&'a str, &'a [&'a str]);

/// Makes every request to both, in order.
fn compare(world: &World, rows: &[Row<'_>]) {
    let runtimes = Runtime::both(world);
    for (line, words) in rows {
        let arguments: Vec<_> = line.split(' ').collect();
        for runtime in &runtimes {
            let name = runtime.program.unwrap_or("regen");
            let output = runtime.run(&arguments);
            let succeeds = words.is_empty();
            assert_eq!(output.code == 0, succeeds, "{name} {line}: {} {}", output.code, output.stderr());
            if succeeds || runtime.program.is_some() {
                continue;
            }
            assert_eq!(output.stdout(), "", "{line}");
            let message = runtime.message();
            assert!(words.iter().all(|word| message.contains(word)), "{line}: {words:?} are not in: {message}");
            output.fails_with(output.code, words[0]);
        }
    }
    runtimes.iter().for_each(Runtime::stop);
}

/// A bundle that runc takes on this machine too.
fn bundle(world: &World, change: impl FnOnce(&mut Value)) -> String {
    let bundle = world.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        change(spec);
    });
    bundle.text().to_owned()
}

#[test]
fn what_is_not_there_does_not_exist() {
    let world = World::new("phrases-none");
    let missing = &["does not exist"][..];
    compare(
        &world,
        &[
            ("state @", missing),
            ("start @", missing),
            ("kill @", missing),
            ("delete @", missing),
            ("delete --force @", &[]),
            ("exec @ true", missing),
            ("pause @", missing),
            ("resume @", missing),
            ("ps @", missing),
            ("update --memory 100000000 @", missing),
            ("events --stats @", missing),
        ],
    );
}

#[test]
fn a_program_or_bundle_that_cannot_work_is_refused() {
    let world = World::new("phrases-bundle");
    fs::write(world.rootfs().join("plain"), "").unwrap();
    let refused = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let bundle = bundle(&world, |spec| change(spec));
        compare(&world, &[(&format!("create --bundle {bundle} @"), words)]);
    };
    let args = |program: &'static str| move |spec: &mut Value| spec["process"]["args"] = json!([program]);
    refused(&args("nobody-has-this"), &["exec: \"nobody-has-this\": executable file not found in $PATH"]);
    refused(&args("/nobody/has"), &["no such file or directory", "/nobody/has"]);
    refused(&args("/plain"), &["permission denied", "/plain"]);
    refused(&args("/bin"), &["permission denied", "/bin"]);
    refused(&|spec| spec["process"]["args"] = json!([]), &["args", "empty"]);
    refused(&|spec| spec["process"]["cwd"] = json!("relative"), &["cwd", "not an absolute path"]);
    refused(&|spec| spec["process"]["cwd"] = json!("/plain"), &["cwd", "/plain", "not a directory"]);
    let source = json!({"destination": "/mnt", "source": "/nobody/has", "type": "bind", "options": ["bind"]});
    refused(
        &|spec| spec["mounts"].as_array_mut().unwrap().push(source.clone()),
        &["/nobody/has", "/mnt", "no such file or directory"],
    );
    refused(&|spec| spec["root"]["path"] = json!("/nobody/has"), &["root", "no such file or directory"]);
    refused(&|spec| spec["process"]["user"]["uid"] = json!(u32::MAX), &["user"]);
    let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1_u64 << 40}]);
    refused(&|spec| spec["process"]["rlimits"] = limit.clone(), &["rlimit", "operation not permitted"]);
    refused(&|spec| spec["process"]["selinuxLabel"] = json!("a:b:c:s0"), &["selinux", "disabled or not supported"]);
    refused(&|spec| spec["process"]["apparmorProfile"] = json!("nobody-has"), &["apparmor"]);
    refused(
        &|spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}, {"type": "ipc"},
            {"type": "pid"}, {"type": "network", "path": "/nobody"}])
        },
        &["/nobody", "no such file or directory"],
    );
}

#[test]
fn a_bundle_that_is_none_is_refused() {
    let world = World::new("phrases-no-bundle");
    let base = world.base().display().to_string();
    fs::create_dir_all(Path::new(&base).join("empty")).unwrap();
    fs::create_dir_all(Path::new(&base).join("damaged")).unwrap();
    fs::write(Path::new(&base).join("damaged/config.json"), "{x").unwrap();
    compare(
        &world,
        &[
            (&format!("create --bundle {base}/nowhere @"), &["no such file or directory"]),
            (&format!("create --bundle {base}/empty @"), &["config.json", "no such file or directory"]),
            (&format!("create --bundle {base}/damaged @"), &["config.json", "JSON"]),
        ],
    );
}

#[test]
fn a_command_line_that_is_wrong_is_in_the_log_too() {
    let world = World::new("phrases-usage");
    let bundle = bundle(&world, |_| ());
    compare(
        &world,
        &[
            ("frobnicate", &["unrecognized subcommand 'frobnicate'"]),
            ("create --nope @", &["--nope"]),
            ("state", &["ID"]),
            (&format!("create --bundle {bundle} a/b"), &["a/b", "not allowed"]),
        ],
    );
}

#[test]
fn each_verb_refuses_the_states_that_runcs_refuses() {
    let world = World::new("phrases-state");
    let bundle = bundle(&world, |_| ());
    let create = format!("create --bundle {bundle} @");
    compare(
        &world,
        &[
            (&create, &[]),
            (&create, &["already exists"]),
            ("exec @ true", &[]),
            ("resume @", &["not paused"]),
            ("start @", &[]),
            ("start @", &["already running"]),
            ("delete @", &["not stopped", "running"]),
            ("kill @ NOPE", &["unknown signal"]),
            ("resume @", &["not paused"]),
            ("pause @", &[]),
            ("pause @", &["container not running"]),
            ("start @", &["cannot start"]),
            ("exec @ true", &["cannot exec in a paused container (use --ignore-paused to override)"]),
            ("delete @", &["not stopped", "paused"]),
            ("resume @", &[]),
        ],
    );
}

#[test]
fn an_exec_that_cannot_work_is_refused() {
    let world = World::new("phrases-exec");
    fs::write(world.rootfs().join("plain"), "").unwrap();
    let bundle = bundle(&world, |_| ());
    compare(
        &world,
        &[
            (&format!("create --bundle {bundle} @"), &[]),
            ("start @", &[]),
            ("exec @ nobody-has-this", &["exec: \"nobody-has-this\": executable file not found in $PATH"]),
            ("exec @ /nobody/has", &["/nobody/has", "no such file or directory"]),
            ("exec @ /plain", &["/plain", "permission denied"]),
            ("exec @ /bin", &["/bin", "permission denied"]),
            (
                "exec --cwd /nobody @ true",
                &["chdir to cwd (\"/nobody\") set in config.json failed: no such file or directory"],
            ),
            ("exec --cwd /plain @ true", &["chdir to cwd (\"/plain\") set in config.json failed: not a directory"]),
            ("exec --cwd relative @ true", &["cwd", "absolute path"]),
            ("exec --user root @ true", &["root", "number"]),
            ("exec @", &["COMMAND"]),
            ("exec --process /nobody @", &["/nobody", "no such file or directory"]),
            ("exec --cgroup nobody @ true", &["cgroup", "no such file or directory"]),
            ("exec --apparmor nobody-has @ true", &["apparmor"]),
            ("exec --process-label a:b:c:s0 @ true", &["selinux", "disabled or not supported"]),
            ("exec --tty --detach @ true", &["cannot allocate tty if", "will detach without setting console socket"]),
            ("exec --console-socket /nobody @ true", &["cannot use console socket if"]),
            ("exec --pid-file /nobody/has @ true", &["/nobody", "no such file or directory"]),
        ],
    );
}

#[test]
fn a_stopped_container_takes_no_more_orders() {
    let world = World::new("phrases-stopped");
    let bundle = bundle(&world, |_| ());
    let runtimes = Runtime::both(&world);
    for runtime in &runtimes {
        runtime.run(&["create", "--bundle", &bundle, "@"]).success();
        runtime.run(&["start", "@"]).success();
        runtime.run(&["kill", "@", "KILL"]).success();
        eventually("it stops", || runtime.run(&["state", "@"]).stdout().contains("\"stopped\""));
    }
    compare(
        &world,
        &[
            ("kill @ TERM", &["container not running"]),
            ("kill --all @ TERM", &[]),
            ("exec @ true", &["cannot exec in a stopped container"]),
            ("start @", &["cannot start a container that has stopped"]),
            ("pause @", &["container not running"]),
            ("resume @", &["not paused"]),
            ("update --memory 100000000 @", &["container not running"]),
            ("events --stats @", &["is not running"]),
            ("state @", &[]),
            ("delete @", &[]),
            ("delete @", &["does not exist"]),
        ],
    );
}
