//! Containers that are to be clones: what comes of it whatever their template's keeper says or does.
//!
//! The keeper is the test, which can do what a real one does only when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use harness::visitor::{self, children};
use harness::{Directory, World, eventually};
use regen::error::{Error, Kind};
use regen::sys::channel::{Channel, Listener};
use regen::sys::fs::open_path;
use regen::template::message::{Answer, Enter, Fits, Mapped, Request, SOCKET, Stage, decode, encode};
use serde_json::{Value, json};

/// What the keeper does when it is asked for a clone.
#[derive(Clone, Copy)]
enum Does {
    /// It makes one, of this program.
    Clones(&'static [&'static str]),
    /// It says that it could not, before anything ran.
    Fails,
    /// It says that it does not fit.
    Refuses,
    /// It fails when the clone may have run.
    FailsLate,
    /// It ends.
    Dies,
    /// It ends, and leaves somebody in the container.
    DiesLate,
}

/// Somebody asked for a clone, with these files.
struct Asked {
    enter: Enter,
    files: Vec<OwnedFd>,
}

/// A keeper of template `OWNER/py`.
fn keep(world: &World, owner: &str, mapped: Vec<Mapped>, does: Does) -> Receiver<Asked> {
    let directory = world.store().join("templates").join(owner).join("py");
    fs::create_dir_all(&directory).unwrap();
    let listener = Listener::bind(open_path(&directory).unwrap(), SOCKET).unwrap();
    let (told, asked) = channel();
    std::thread::spawn(move || {
        let caller = listener.accept().unwrap();
        let arch = std::env::consts::ARCH.to_owned();
        let Request::Fit = hear(&caller).0 else { panic!("another request") };
        say(&caller, &Answer::Fits(Box::new(Fits { arch, mapped })));
        let Some(received) = caller.receive().unwrap() else { return };
        let Request::Enter(enter) = decode(&received.bytes).unwrap() else { panic!("another request") };
        let error = || Error::new(Kind::System, "fork", "the test has it so");
        let files = received.descriptors;
        let come = |program: &[&str]| {
            visitor::enter(enter.init.pid, [files[1].as_fd(), files[2].as_fd(), files[3].as_fd()], program)
        };
        match does {
            Does::Clones(program) => {
                let inner_pid = come(program);
                say(&caller, &Answer::Entered { pid: children(enter.init.pid)[0], inner_pid });
            }
            Does::Fails => say(&caller, &Answer::Failed { error: error(), stage: Stage::Before }),
            Does::Refuses => say(&caller, &Answer::Unfit { reason: "the test has it so".into() }),
            Does::FailsLate => say(&caller, &Answer::Failed { error: error(), stage: Stage::After }),
            Does::Dies => {}
            Does::DiesLate => {
                come(&["sleep", "1000"]);
            }
        }
        drop(caller);
        let _ = told.send(Asked { enter: *enter, files });
    });
    asked
}

fn hear(caller: &Channel) -> (Request, Vec<OwnedFd>) {
    let received = caller.receive().unwrap().unwrap();
    (decode(&received.bytes).unwrap(), received.descriptors)
}

fn say(caller: &Channel, answer: &Answer) {
    caller.send(&encode(answer).unwrap(), &[]).unwrap();
}

/// A file as a template would have it mapped.
fn mapped(root: &Path, path: &str) -> Mapped {
    let found = fs::symlink_metadata(root.join(&path[1..])).unwrap();
    let modified = (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap());
    Mapped { path: path.into(), size: found.len(), modified }
}

/// A bundle whose own program says that it is cold.
fn bundle(world: &World, change: impl FnOnce(&mut Value)) -> Directory {
    world.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "echo cold; exit 3"]);
        spec["annotations"] = json!({"run.regen.template": "py"});
        change(spec);
    })
}

fn required(spec: &mut Value) {
    spec["annotations"]["run.regen.template.required"] = json!("true");
}

const WARM: &[&str] = &["sh", "-c", "echo warm; exit 4"];

#[test]
fn the_programs_place_is_the_clones() {
    let world = World::new("warm");
    let asked = keep(&world, "root", vec![mapped(&world.rootfs(), "/bin/busybox")], Does::Clones(WARM));
    let bundle = bundle(&world, |spec| {
        spec["process"]["env"] = json!(["A=1"]);
        spec["process"]["cwd"] = json!("/tmp");
    });
    let output = world.regen(&["run", "--bundle", bundle.text(), &world.id("a")]);
    assert_eq!(output.code(4).stdout(), "warm\n");
    let Asked { enter, files } = asked.recv().unwrap();
    assert_eq!(enter.container.as_str(), world.id("a"));
    assert_eq!((enter.process.args().as_ref(), enter.process.cwd().to_str()), (None, Some("/tmp")));
    assert_eq!(rustix::fs::fstat(&files[4]).unwrap().st_ino, fs::metadata(world.rootfs().join("tmp")).unwrap().ino());
    let job = fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&files[0]))).unwrap();
    let job = String::from_utf8(job).unwrap();
    assert_eq!(job, "regen-job\x001\x003\0sh\0-c\0echo cold; exit 3\x002\0A=1\0HOME=/root\x000\0");
}

#[test]
fn an_engines_container_is_a_clone_when_it_is_started_and_every_verb_works() {
    let world = World::new("engine");
    let _asked = keep(&world, "root", Vec::new(), Does::Clones(&["sleep", "1000"]));
    let (bundle, id) = (bundle(&world, |_| ()), world.id("a"));
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    world.regen(&["start", &id]).success();
    assert_eq!(world.status(&id), "running");
    assert_eq!(children(world.pid(&id)).len(), 1);
    world.regen(&["exec", &id, "true"]).success();
    world.regen(&["kill", &id, "TERM"]).success();
    eventually("it ends", || world.status(&id) == "stopped");
    world.regen(&["delete", &id]).success();
}

/// What a container does whose template is no help: it runs cold, or if it may not, it is refused.
fn without(name: &str, cause: &str, prepare: impl Fn(&World), change: fn(&mut Value)) {
    let world = World::new(name);
    prepare(&world);
    let plain = bundle(&world, change);
    let output = world.regen(&["run", "--bundle", plain.text(), &world.id("a")]);
    assert_eq!(output.code(3).stdout(), "cold\n");
    let lines: Vec<&str> = output.stderr().lines().collect();
    assert!(lines.len() == 1 && lines[0].contains("without template 'py'") && lines[0].contains(cause), "{lines:?}");

    let _ = fs::remove_dir_all(world.store().join("templates"));
    prepare(&world);
    let strict = bundle(&world, |spec| {
        change(spec);
        required(spec);
    });
    world.regen(&["run", "--bundle", strict.text(), &world.id("b")]).fails_with(1, cause);
}

#[test]
fn without_its_template_it_starts_as_ever_or_is_refused() {
    let nothing = |_: &World| ();
    without("absent", "there is no such template", nothing, |_| ());
    let not_ready = |world: &World| fs::create_dir_all(world.store().join("templates/root/py")).unwrap();
    without("unready", "it is not ready", not_ready, |_| ());
    let keeper = |does| move |world: &World| drop(keep(world, "root", Vec::new(), does));
    without("fails", "the test has it so", keeper(Does::Fails), |_| ());
    without("refuses", "the test has it so", keeper(Does::Refuses), |_| ());
    without("dies", "its keeper has ended", keeper(Does::Dies), |_| ());
}

#[test]
fn where_it_does_not_fit_it_starts_as_ever_or_is_refused() {
    let keeper = |world: &World| drop(keep(world, "root", Vec::new(), Does::Clones(WARM)));
    without("personality", "personality", keeper, |spec| spec["linux"]["personality"] = json!({"domain": "LINUX"}));
    without("nopid", "no new pid namespace", keeper, |spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    });
    let other = |world: &World| {
        let other = Mapped { size: 1, ..mapped(&world.rootfs(), "/bin/busybox") };
        drop(keep(world, "root", vec![other], Does::Clones(WARM)));
    };
    without("base", "its '/bin/busybox' is not the one", other, |_| ());
}

#[test]
fn one_that_has_to_be_a_clone_still_waits_after_it_was_refused() {
    let world = World::new("waits");
    let (bundle, id) = (bundle(&world, required), world.id("a"));
    world.regen(&["create", "--bundle", bundle.text(), &id]).success();
    world.regen(&["start", &id]).fails_with(1, "there is no such template");
    assert_eq!(world.status(&id), "created");
    let _asked = keep(&world, "root", Vec::new(), Does::Clones(&["sleep", "1000"]));
    world.regen(&["start", &id]).success();
    assert_eq!(world.status(&id), "running");
    world.delete(&id);
}

#[test]
fn a_keeper_that_fails_when_the_clone_may_have_run_ends_the_container() {
    for does in [Does::FailsLate, Does::DiesLate] {
        let world = World::new("late");
        let _asked = keep(&world, "root", Vec::new(), does);
        let (bundle, id) = (bundle(&world, |_| ()), world.id("a"));
        world.regen(&["create", "--bundle", bundle.text(), &id]).success();
        let output = world.regen(&["start", &id]);
        assert!(output.code(1).stderr().contains("from template 'py'"), "{}", output.stderr());
        eventually("it ends", || world.status(&id) == "stopped");
        world.regen(&["delete", &id]).success();
    }
}

fn configuration(world: &World, text: &str) -> PathBuf {
    let path = world.base().join("config.toml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_template_of_roots_is_a_pods_only_if_the_administrator_shares_it() {
    let world = World::new("share");
    let pod = |spec: &mut Value| {
        for (key, value) in [("container-type", "container"), ("container-name", "web"), ("sandbox-namespace", "team")]
        {
            spec["annotations"][format!("io.kubernetes.cri.{key}")] = json!(value);
        }
    };
    let bundle = bundle(&world, pod);
    let _roots = keep(&world, "root", Vec::new(), Does::Clones(WARM));
    let run = |config: &Path, id: &str| {
        let arguments = ["--config", config.to_str().unwrap(), "run", "--bundle", bundle.text(), id];
        world.regen(&arguments).stdout().to_owned()
    };
    assert_eq!(run(&configuration(&world, ""), &world.id("a")), "cold\n");
    assert_eq!(run(&configuration(&world, "[template]\nshared = ['py']"), &world.id("b")), "warm\n");
    let _own = keep(&world, "k8s.team", Vec::new(), Does::Clones(WARM));
    assert_eq!(run(&configuration(&world, ""), &world.id("c")), "warm\n");
}

#[test]
fn a_function_is_shown_read_only_if_the_administrator_allows_its_directory() {
    let world = World::new("function");
    let functions = world.base().join("functions");
    fs::create_dir_all(functions.join("one")).unwrap();
    fs::write(functions.join("one/app.py"), "code").unwrap();
    let tar = functions.join("one.tar");
    let mut pack = std::process::Command::new("tar");
    assert!(pack.arg("-C").arg(functions.join("one")).arg("-cf").arg(&tar).arg(".").status().unwrap().success());
    let show = |function: &Path| {
        bundle(&world, |spec| {
            spec["process"]["args"] = json!(["sh", "-c", "cat /function/app.py && touch /function/x"]);
            spec["annotations"]["run.regen.function"] = json!(function.to_str().unwrap());
        })
    };
    let allowed = configuration(&world, &format!("[template]\nfunction-directories = ['{}']", functions.display()));
    for function in [functions.join("one"), tar] {
        let bundle = show(&function);
        let config = allowed.to_str().unwrap();
        let output = world.regen(&["--config", config, "run", "--bundle", bundle.text(), &world.id("a")]);
        assert_eq!(output.code(1).stdout(), "code", "{}", output.stderr());
        assert!(output.stderr().contains("Read-only file system"), "{}", output.stderr());
        let arguments = ["--config", config, "run", "--ring", "r", "--bundle", bundle.text(), &world.id("r")];
        assert_eq!(world.regen(&arguments).code(1).stdout(), "code", "over a ring");
        world.regen(&["run", "--bundle", bundle.text(), &world.id("b")]).fails_with(1, "function-directories");
    }
    std::os::unix::fs::symlink(world.rootfs(), functions.join("way")).unwrap();
    let led = show(&functions.join("way"));
    let arguments = ["--config", allowed.to_str().unwrap(), "run", "--bundle", led.text(), &world.id("d")];
    world.regen(&arguments).fails_with(1, "administrator allows");
    let outside = show(&world.base().join("functions/../rootfs"));
    let arguments = ["--config", allowed.to_str().unwrap(), "run", "--bundle", outside.text(), &world.id("c")];
    world.regen(&arguments).fails_with(1, "administrator allows");
}
