//! docs/rings.md, as its reader types it: every command of the page is run, and prints what the page says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;
mod normal;

use std::cell::RefCell;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::image_registry::{Registry, Setup};
use harness::{REGEN, World, eventually};
use normal::normal;

/// A registry that is not there.
const NOBODY: &str = "127.0.0.1:1";

/// A command and the lines that the page has below it.
#[derive(Debug)]
struct Typed {
    command: String,
    printed: Vec<String>,
}

/// The blocks of commands of a page, in its order. What needs criu is in blocks of another kind: `tests/vm` does that.
fn blocks(page: &str) -> Vec<Vec<Typed>> {
    let texts = page.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = |text: &str| {
        let mut commands: Vec<Typed> = Vec::new();
        for line in text.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => commands.push(Typed { command: command.to_owned(), printed: Vec::new() }),
                None => commands.last_mut().unwrap().printed.push(line.to_owned()),
            }
        }
        commands
    };
    texts.map(block).collect()
}

/// Who reads the page, at one machine after another: stores of their own, but one root file system and one registry.
struct Reader {
    world: World,
    registry: Registry,
    /// The images' name under which the last thing imported brought its base along.
    base_image: RefCell<String>,
}

impl Reader {
    fn new() -> Self {
        let (world, registry) = (World::new("rings"), Registry::start(Setup::Tls));
        for name in ["desk", "programs", "mnt"] {
            fs::create_dir(world.base().join(name)).unwrap();
        }
        symlink(world.rootfs(), world.base().join("desk/busybox")).unwrap();
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\nnetns = \"none\"\n\
            [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n";
        fs::write(world.base().join("containers.conf"), settings).unwrap();
        let reader = Self { world, registry, base_image: RefCell::default() };
        let at = |name: &str| reader.path(name).display().to_string();
        let (root, run, temporary) = (at("podman"), at("r"), at("t"));
        let flags = format!("--root {root} --runroot {run} --tmpdir {temporary} --runtime runc");
        reader.program("podman", &format!("CONTAINERS_CONF={} exec /usr/bin/podman {flags}", at("containers.conf")));
        reader
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.base().join(name)
    }

    fn program(&self, name: &str, line: &str) {
        let path = self.path("programs").join(name);
        fs::write(&path, format!("#!/bin/sh\n{line} \"$@\"\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Goes to a machine, which has nothing yet if it is new. Its worker has ended.
    fn machine(&self, name: &str) {
        self.configured(name, "");
    }

    fn configured(&self, name: &str, options: &str) {
        let (root, store) = (self.world.root(), self.path("machines").join(name));
        let line = format!("exec {REGEN} --root {} --store {} {options}", root.display(), store.display());
        self.program("regen", &line);
    }

    /// A machine on which `alice` has three entries.
    fn with_alice(&self, name: &str) {
        self.machine(name);
        self.alice();
    }

    fn alice(&self) {
        self.run("echo one > /etc/motd", 0);
        self.run("echo two > /etc/motd; mkdir /srv; echo a > /srv/a", 0);
        self.run("echo b > /srv/b; exit 3", 3);
    }

    fn run(&self, script: &str, code: i32) {
        let command = format!("regen run --rootfs busybox --ring alice box1 -- sh -c '{script}'; test $? = {code}");
        self.quietly(&command);
    }

    fn quietly(&self, command: &str) {
        let (status, output) = self.shell(&self.here(command));
        assert!(status, "{command}: {output}");
    }

    /// What packs in the background has ended: the page shows what is seen then.
    fn settle(&self) {
        self.quietly("regen ring pack");
    }

    /// Words of the page that are others here.
    fn names(&self) -> Vec<(String, String)> {
        let at = |name: &str| self.path(name).display().to_string();
        let base = self.base_image.borrow().clone();
        let mut names = vec![
            ("docker://registry.example/team".into(), format!("docker://{}/team", self.registry.host())),
            // Where nobody answers.
            ("docker://registry.example/rings".into(), format!("docker://{NOBODY}/rings")),
            ("'registry.example'".into(), format!("'{NOBODY}'")),
            ("/tmp/old".into(), at("old")),
            (" /mnt".into(), format!(" {}", at("mnt"))),
            ("oci:/var/lib/regen/".into(), format!("oci:{}/", at("machines/whole"))),
            ("base-4b1d0c44bd57f8ad".into(), base),
        ];
        names.extend(["box1", "box2", "web-1", "web-2"].map(|id| (id.to_owned(), self.world.id(id))));
        names
    }

    fn here(&self, text: &str) -> String {
        self.names().iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    }

    fn there(&self, text: &str) -> String {
        let known = self.names().into_iter().filter(|(_, ours)| !ours.is_empty());
        known.fold(text.to_owned(), |text, (theirs, ours)| text.replace(&ours, &theirs))
    }

    /// Whether a command succeeded, and all that it printed.
    fn shell(&self, command: &str) -> (bool, String) {
        let mut bash = Command::new("timeout");
        bash.args(["60", "bash", "-c", &format!("{command} 2>&1")]).current_dir(self.path("desk"));
        bash.env("PATH", format!("{}:/usr/bin:/bin", self.path("programs").display()));
        bash.env("SSL_CERT_FILE", self.registry.certificate()).env("LC_ALL", "C.UTF-8").env("HOME", self.path(""));
        let output = self.world.finish(bash);
        (output.code == 0, output.stdout().to_owned())
    }

    /// Types what the page has, and compares.
    fn type_in(&self, block: &[Typed]) -> Result<(), String> {
        for Typed { command, printed } in block {
            if ["log", "ls", "show"].iter().any(|look| command.starts_with(&format!("regen ring {look}"))) {
                self.settle();
            }
            let (succeeded, output) = self.shell(&self.here(command));
            if let Some((_, rest)) = output.split_once(":base-") {
                *self.base_image.borrow_mut() = format!("base-{}", &rest[..16]);
            }
            let (expected, found) = (normal(&printed.join("\n")), normal(&self.there(&output)));
            let refused = printed.iter().any(|line| line.starts_with("regen: "));
            if succeeded == refused || expected != found {
                return Err(format!("$ {command}\n{}\n--- on the page:\n{}", self.there(&output), printed.join("\n")));
            }
        }
        Ok(())
    }

    /// Brings about what the page says before a block, which is known by its first command.
    fn prepare(&self, first: &str, seen: usize) {
        match (first, seen) {
            ("regen run --rootfs busybox --ring alice box1 -- sh -c 'echo one > /etc/motd'", _) => {
                self.machine("first")
            }
            ("regen run --rootfs busybox --ring alice box1 -- true", _) => self.busy("sleep 1000"),
            ("regen ring snapshot alice", _) => self.quietly("regen exec box2 sh -c 'echo two > /etc/motd'"),
            ("regen ring log web", _) => self.web(),
            ("regen ring ls", 0) => {
                self.machine("first");
                self.quietly("regen delete --force box2");
                self.with_alice("looking");
            }
            ("regen ring log alice --graph", _) => self.branched(),
            ("regen ring cat alice@2 /etc/motd", _) => {
                self.with_alice("files");
                self.quietly("regen run --detach --rootfs busybox --ring alice box1 -- sleep 1000");
                self.quietly("regen exec box1 rm /srv/a");
            }
            ("regen ring rollback alice --to @-1", _) => {
                self.quietly("regen delete --force box1");
                self.with_alice("back");
            }
            ("regen ring pin alice@1", _) => {
                self.with_alice("limits");
                self.run("echo 4 > /srv/4", 0);
            }
            ("regen ring push alice docker://registry.example/team/alice", _) => self.with_alice("here"),
            ("regen ring pull docker://registry.example/team/alice alice", 0) => self.machine("there"),
            ("regen ring pull docker://registry.example/team/alice alice", _) => self.diverge(),
            ("regen ring ls", _) => self.behind(),
            ("regen ring export alice oci-archive:alice.tar", _) => self.with_alice("exports"),
            ("regen ring import oci-archive:alice.tar alice", _) => self.machine("imports"),
            ("regen ring import docker://registry.example/team/alice:full alice", _) => {
                self.machine("exports");
                self.quietly("regen ring export alice --full docker://registry.example/team/alice:full");
                self.machine("whole");
            }
            _ => {}
        }
        self.settle();
    }

    /// The ring is in use by another container.
    fn busy(&self, command: &str) {
        self.quietly(&format!("regen run --detach --rootfs busybox --ring alice box2 -- {command}"));
    }

    /// A container that has been restarted twice, of which the second instance went on writing, and the third one.
    fn web(&self) {
        let start = |id: &str| {
            let script = "mkdir -p /var/log; echo x >> /var/log/access; touch /dev/done; exec sleep 1000";
            self.quietly(&format!("regen run --detach --rootfs busybox --ring web {id} -- sh -c '{script}'"));
            self.quietly(&format!("until regen exec {id} test -e /dev/done; do sleep 0.01; done"));
        };
        self.machine("services");
        self.quietly("regen run --rootfs busybox --ring web web-1 -- sh -c 'mkdir /var/log; echo x > /var/log/access'");
        start("web-1");
        self.quietly("regen handover prepare web-1");
        start("web-2");
        self.quietly("regen delete --force web-1; regen handover prepare web-2");
        start("web-1");
        self.quietly("regen exec web-2 sh -c 'echo late >> /var/log/access'; regen delete --force web-2");
    }

    /// A ring whose next run began with what came before the newest entry.
    fn branched(&self) {
        self.machine("branched");
        self.run("echo one > /etc/motd", 0);
        self.run("echo two > /etc/motd", 0);
        self.quietly("regen ring pin alice@2; regen ring rollback alice --to @1");
        self.run("echo three > /etc/motd", 0);
    }

    /// Another entry 4 in the registry than on the machine that pulled from it.
    fn diverge(&self) {
        self.run("echo there > /etc/motd", 0);
        self.machine("here");
        self.run("echo here > /etc/motd", 0);
        self.quietly("regen ring push alice docker://registry.example/team/alice");
        self.machine("there");
    }

    /// A ring that is copied to where nobody answers.
    fn behind(&self) {
        let config = self.path("copies.toml");
        fs::write(&config, format!("[ring]\nauto-push = \"docker://{NOBODY}/rings\"\n")).unwrap();
        self.configured("copies", &format!("--config {}", config.display()));
        self.alice();
        eventually("it is known to be behind", || self.shell("regen ring ls").1.contains("refused"));
    }

    /// Tells the sender of what is behind, which waits for its next try, that nothing is to be sent any more.
    fn stop_sending(&self) {
        fs::write(self.path("copies.toml"), "").unwrap();
        let store = self.path("machines/copies");
        eventually("the sender ends", || {
            drop(fs::OpenOptions::new().write(true).open(store.join("sender.bell")).unwrap());
            !is_sending(&store)
        });
    }
}

/// Whether a process sends the rings of a store.
fn is_sending(store: &Path) -> bool {
    fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
        words.last() == Some(&&b"sender"[..]) && words.contains(&store.as_os_str().as_bytes())
    })
}

#[test]
fn the_commands_of_the_page_print_what_it_says() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rings.md")).unwrap();
    let blocks = blocks(&page);
    assert!(blocks.len() >= 18, "{}", blocks.len());
    let reader = Reader::new();
    let mut firsts: Vec<&str> = Vec::new();
    let mut faults = Vec::new();
    for block in &blocks {
        let first = block[0].command.as_str();
        let seen = firsts.iter().filter(|other| **other == first).count();
        firsts.push(first);
        reader.prepare(first, seen);
        faults.extend(reader.type_in(block).err());
    }
    reader.stop_sending();
    reader.machine("services");
    reader.quietly("regen delete --force web-1; for try in 1 2 3; do umount -q ../podman/overlay || break; done");
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
