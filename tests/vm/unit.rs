//! The daemon under systemd: started by its socket, reloaded, restarted, killed and stopped while clients use a service.

use std::fs;
use std::path::Path;
use std::process::Command;

use regen::control::client::Client;
use serde_json::{Value, json};

use crate::harness::load::{Load, Plan, Target};
use crate::harness::port::free_port;
use crate::harness::{Output, REGEN, World, eventually};

const UNITS: &str = "/run/systemd/system";

/// The units, for a world's own root and store.
#[derive(Debug)]
struct Units<'a>(&'a World);

impl<'a> Units<'a> {
    fn install(world: &'a World) -> Self {
        let root = world.root();
        let serve = format!("{REGEN} --root {} --store {} serve", root.display(), world.store().display());
        for (name, unit) in [
            ("regen.socket", include_str!("../../hack/systemd/regen.socket")),
            ("regen.service", include_str!("../../hack/systemd/regen.service")),
        ] {
            let unit = unit.replace("/usr/local/bin/regen serve", &serve);
            let unit = unit.replace("/run/regen/", &format!("{}/", root.display()));
            fs::write(Path::new(UNITS).join(name), unit).unwrap();
        }
        let users = world.base().join("regen.conf");
        fs::write(&users, include_str!("../../hack/systemd/regen.sysusers")).unwrap();
        let mut make = Command::new("systemd-sysusers");
        make.arg(users);
        world.finish(make).success();
        let units = Self(world);
        units.systemctl(&["daemon-reload"]);
        units.systemctl(&["start", "regen.socket"]);
        units
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("systemctl");
        command.args(arguments);
        self.0.finish(command)
    }

    fn systemctl(&self, arguments: &[&str]) -> String {
        self.run(arguments).success().stdout().trim().to_owned()
    }

    fn pid(&self) -> i32 {
        self.systemctl(&["show", "--value", "--property", "MainPID", "regen.service"]).parse().unwrap()
    }
}

impl Drop for Units<'_> {
    fn drop(&mut self) {
        let _ = self.run(&["stop", "regen.service", "regen.socket"]);
        for name in ["regen.service", "regen.socket"] {
            let _ = fs::remove_file(Path::new(UNITS).join(name));
        }
        let _ = self.run(&["daemon-reload"]);
    }
}

fn status(client: &mut Client) -> Value {
    client.call::<Value>("run.regen.Control.GetStatus", &json!({})).unwrap().0
}

#[test]
fn a_daemon_under_systemd_comes_and_goes_and_no_request_is_lost() {
    let world = World::new("systemd");
    let units = Units::install(&world);
    let service = |arguments: &[&str]| world.regen(&[&["service"], arguments].concat());
    assert_eq!(units.pid(), 0, "nobody has called yet");
    service(&["ls"]).success();
    let (name, port) = (world.id("web"), free_port("127.0.0.1"));
    let (address, rootfs) = (format!("127.0.0.1:{port}"), world.rootfs_text());
    let listen = format!("tcp://{address}");
    let add = ["add", &name, "--version", "1.0.0", "--listen", &listen, "--handover", "intercept"];
    let script = format!("mkdir /www; echo hello > /www/index.html; exec httpd -f -p {address} -h /www");
    service(&[&add[..], &["--rootfs", &rootfs, "--", "sh", "-c", &script]].concat()).success();
    let instance = || {
        let show: Value = serde_json::from_str(service(&["show", &name, "--json"]).success().stdout()).unwrap();
        assert_eq!(show["state"], "serving");
        show["pid"].as_i64().unwrap()
    };
    let mut before = instance();
    let plan = Plan::http(Target::Tcp(address.parse().unwrap()), "/index.html", b"hello\n");
    let load = Load::start(Plan { rate: Some(20.0), threads: 2, ..plan });
    let mut client = Client::connect(&world.root()).unwrap();
    let (mut pid, mut started) = (units.pid(), status(&mut client)["started"].clone());
    for round in 0..2 {
        load.wait_for(10);
        units.systemctl(&["reload", "regen"]);
        eventually("another program answers", || status(&mut client)["started"] != started);
        assert_eq!(units.pid(), pid, "it is the same process");
        load.wait_for(10);
        units.systemctl(&["restart", "regen"]);
        // On the connection of before, which systemd has kept.
        let now = status(&mut client);
        assert_eq!(now["pid"], units.pid());
        assert_ne!(units.pid(), pid);
        assert_eq!(instance(), before, "round {round}");
        load.wait_for(10);
        pid = units.pid();
        units.systemctl(&["kill", "--kill-who=main", "--signal=KILL", "regen"]);
        // Callers wait in the socket until there is a daemon again.
        assert_eq!(instance(), before, "round {round}");
        assert_ne!(units.pid(), pid);
        client = Client::connect(&world.root()).unwrap();
        (pid, started) = (units.pid(), status(&mut client)["started"].clone());
        service(&["restart", &name]).success();
        assert_ne!(instance(), before, "it was restarted itself");
        before = instance();
    }
    units.systemctl(&["stop", "regen.service"]);
    load.wait_for(10);
    assert_eq!(instance(), before, "the first call starts it again");
    load.wait_for(10);
    let outcome = load.stop();
    service(&["rm", "--force", &name]).success();
    assert_eq!(outcome.failed(), 0, "{outcome}");
}
