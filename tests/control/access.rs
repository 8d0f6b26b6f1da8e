//! Who may do what.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use nix::unistd::Group;
use regen::control::Limits;
use regen::sys::credential::with_those_of;
use serde_json::json;

use crate::caller::{Caller, status};
use crate::daemon::Daemon;
use crate::harness::user::{Person, Subordinates};
use crate::harness::{World, eventually};
use crate::local::Local;

/// The groups of the machine are changed by one at a time.
static GROUPS: Mutex<()> = Mutex::new(());

/// The group of those who may look, for as long as a test needs it.
#[derive(Debug)]
struct Members {
    group: Group,
    ours: bool,
    _guard: std::sync::MutexGuard<'static, ()>,
}

impl Members {
    fn new() -> Self {
        let guard = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = Group::from_name("regen").unwrap().is_none();
        if ours {
            assert!(Command::new("groupadd").args(["--system", "regen"]).status().unwrap().success());
        }
        Self { group: Group::from_name("regen").unwrap().unwrap(), ours, _guard: guard }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        if self.ours {
            let _ = Command::new("groupdel").arg("regen").status();
        }
    }
}

/// A connection of a user, the first of whose groups is their own.
fn connect_as(root: &Path, uid: u32, groups: &[u32]) -> Caller {
    with_those_of(uid, groups, || Caller::connect(root)).unwrap()
}

#[test]
fn a_stranger_is_told_who_may_call_and_closed() {
    let world = World::new("stranger");
    let daemon = Daemon::start(&world);
    let person = Person::new(&world, Subordinates::None);
    let root = world.root();
    for method in ["run.regen.Control.GetStatus", "org.varlink.service.GetInfo", "no.such.Method"] {
        let call = person.command("regen", &["--root", root.to_str().unwrap(), "call", method]);
        let output = world.finish(call);
        output.fails_with(1, "org.varlink.service.PermissionDenied");
        let words =
            format!("user {} may not call this daemon: only root, the daemon's user, and members of", person.user.uid);
        assert!(output.stderr().contains(&words), "{}", output.stderr());
    }
    // Whatever they send, they hear it first, and nothing after it.
    let mut caller = connect_as(&root, person.user.uid.as_raw(), &[person.user.gid.as_raw()]);
    caller.send(&status());
    let parameters = caller.is_closed_with("org.varlink.service.PermissionDenied");
    assert!(parameters["message"].as_str().unwrap().contains("'regen'"));
    assert_eq!(daemon.status()["connections"], 1);
    assert_eq!(daemon.log().lines().count(), 1, "strangers are logged: {}", daemon.log());
}

#[test]
fn members_of_the_group_look_and_change_nothing() {
    let members = Members::new();
    let gid = members.group.gid.as_raw();
    let server = Local::start(Limits::default());
    for groups in [vec![gid], vec![54_321, 7, gid], vec![54_321, gid, 0]] {
        let mut caller = connect_as(server.root(), 54_321, &groups);
        assert_eq!(caller.call(&json!({"method": "test.regen.Machine.Look"}))["uid"], 54_321);
        caller.call(&json!({"method": "org.varlink.service.GetInfo"}));
        caller.send(&json!({"method": "test.regen.Machine.Change"}));
        let (name, parameters) = caller.error();
        assert_eq!(name, "org.varlink.service.PermissionDenied");
        let words = parameters["message"].as_str().unwrap();
        assert!(words.contains("may only look and resolve, not call test.regen.Machine.Change"), "{words}");
        // That is no reason to close.
        caller.call(&json!({"method": "test.regen.Machine.Look"}));
    }
    // The groups of the process count, not what the database says of the user.
    let mut stranger = connect_as(server.root(), 54_321, &[54_321, 0]);
    stranger.is_closed_with("org.varlink.service.PermissionDenied");
    let mut root = server.connect();
    root.call(&json!({"method": "test.regen.Machine.Change"}));
}

#[test]
fn members_may_call_what_only_looks_of_all_that_there_is() {
    let members = Members::new();
    let world = World::new("matrix");
    let daemon = Daemon::start(&world);
    let mut member = connect_as(&world.root(), 54_321, &[members.group.gid.as_raw()]);
    let info = member.call(&json!({"method": "org.varlink.service.GetInfo"}));
    let mut allowed = Vec::new();
    for interface in info["interfaces"].as_array().unwrap() {
        let interface = interface.as_str().unwrap();
        let describe =
            json!({"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": interface}});
        let description = member.call(&describe)["description"].as_str().unwrap().to_owned();
        let names =
            description.lines().filter_map(|line| line.strip_prefix("method ")?.split_once('(').map(|(name, _)| name));
        for name in names {
            // It is decided before anything of the parameters is looked at.
            member.send(&json!({"method": format!("{interface}.{name}"), "parameters": {}}));
            let answer = member.receive().unwrap();
            if answer["error"] != "org.varlink.service.PermissionDenied" {
                allowed.push(format!("{interface}.{name}"));
            }
        }
    }
    allowed.sort_unstable();
    let expected = [
        "org.varlink.service.GetInfo",
        "org.varlink.service.GetInterfaceDescription",
        "run.regen.Control.GetStatus",
        "run.regen.Node.List",
        "run.regen.Operation.List",
        "run.regen.Operation.Show",
        "run.regen.Operation.Wait",
        "run.regen.Operation.Watch",
        "run.regen.Service.Connect",
        "run.regen.Service.List",
        "run.regen.Service.Resolve",
        "run.regen.Service.Watch",
        "run.regen.Template.List",
    ];
    assert_eq!(allowed, expected);
    assert_eq!(daemon.status()["connections"], 2);
}

#[test]
fn a_real_member_looks_at_the_real_daemon() {
    let members = Members::new();
    let world = World::new("member");
    let daemon = Daemon::start(&world);
    let person = Person::new(&world, Subordinates::None);
    let mut join = Command::new("usermod");
    join.args(["--append", "--groups", members.group.name.as_str(), person.user.name.as_str()]);
    world.finish(join).success();
    let root = world.root();
    let call = person.command("regen", &["--root", root.to_str().unwrap(), "call", "run.regen.Control.GetStatus"]);
    let output = world.finish(call);
    assert!(output.success().stdout().contains(&format!("\"pid\": {}", daemon.pid())), "{}", output.stdout());
}

#[test]
fn one_user_gets_so_many_connections_and_the_next_one_still_gets_theirs() {
    let members = Members::new();
    let gid = members.group.gid.as_raw();
    let world = World::new("crowd");
    let daemon = Daemon::start(&world);
    let mut held: Vec<_> = (0..64).map(|_| connect_as(&world.root(), 54_321, &[gid])).collect();
    held.iter_mut().for_each(|caller| drop(caller.call(&status())));
    let mut refused = connect_as(&world.root(), 54_321, &[gid]);
    let parameters = refused.is_closed_with("run.regen.Control.TooManyConnections");
    assert!(parameters["message"].as_str().unwrap().contains("user 54321 has 64"), "{parameters}");
    connect_as(&world.root(), 54_322, &[gid]).call(&status());
    // Many users leave root what is root's.
    for user in 1..8 {
        held.extend((0..64).map(|_| connect_as(&world.root(), 60_000 + user, &[gid])));
    }
    let last = held.last_mut().unwrap();
    last.is_closed_with("run.regen.Control.TooManyConnections");
    assert_eq!(daemon.status()["connections"], 449);
    held.clear();
    eventually("they are forgotten", || daemon.status()["connections"] == 1);
    connect_as(&world.root(), 54_321, &[gid]).call(&status());
}
