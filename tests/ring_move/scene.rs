//! Three hosts with an etcd; daemons on the first two, a registry of images on the third.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::site::Site;
use crate::harness::{Output, eventually};

pub const PLAIN: &str = "--tls-verify=false";
/// Which host has the registry of images.
const IMAGES: usize = 2;

/// See the module.
#[derive(Debug)]
pub struct Scene {
    images: Child,
    pub site: Site,
}

/// Where a host has a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Runs start from it.
    Home,
    /// None do.
    Not,
}

impl Scene {
    /// All of it runs, and the daemons know each other.
    pub fn new(name: &str) -> Self {
        let site = Site::new(name, 3);
        site.begin_etcd();
        let names: Vec<_> = (0..site.len()).map(|index| site.host(index).name.clone()).collect();
        let mut certs = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/certs"));
        certs.arg(site.world().base().join("certs")).args(&names);
        site.world().finish(certs).success();
        let scene = Self { images: images(&site), site };
        (0..2).for_each(|index| scene.start(index));
        scene.await_nodes();
        scene
    }

    /// Starts the daemon of a host.
    pub fn start(&self, index: usize) {
        let host = self.site.host(index);
        let certs = self.site.world().base().join("certs").join(&host.name);
        let (url, address) = (self.site.url(), format!("{}:7700", host.address));
        let certs = certs.to_str().unwrap();
        self.site.start(index, &["--cluster", &url, "--node", &host.name, "--address", &address, "--certs", certs]);
    }

    /// Kills it, and starts it again.
    pub fn crash(&self, index: usize) {
        self.site.end(index, Signal::SIGKILL);
        self.start(index);
    }

    /// Waits until both daemons know both.
    pub fn await_nodes(&self) {
        for index in 0..2 {
            eventually("the nodes know each other", || {
                self.site.json(index, &["node", "ls", "--json"]).as_array().unwrap().len() == 2
            });
        }
    }

    /// A repository in the registry.
    pub fn reference(&self, name: &str) -> String {
        format!("docker://{}:5000/{name}", self.site.host(IMAGES).address)
    }

    /// Where the registry keeps what was pushed to a repository as its tag.
    pub fn tag(&self, name: &str) -> PathBuf {
        let repositories = self.site.world().base().join("images/docker/registry/v2/repositories");
        repositories.join(name).join("_manifests/tags/regen-ring/current/link")
    }

    /// Appends a line to the file that tells the state, in a run of a ring.
    pub fn grow(&self, index: usize, ring: &str, line: &str) {
        self.run(index, ring, &format!("echo {line} >> /tmp/f")).success();
    }

    /// A script in a container on a ring.
    pub fn run(&self, index: usize, ring: &str, script: &str) -> Output {
        let (rootfs, id) = (self.site.world().rootfs_text(), self.site.world().fresh_id());
        self.site.regen(index, &["run", "--rootfs", &rootfs, "--ring", ring, &id, "--", "sh", "-c", script])
    }

    /// A container on a ring that has appended a line, and goes on.
    pub fn writer(&self, index: usize, ring: &str, line: &str) -> String {
        let (rootfs, id) = (self.site.world().rootfs_text(), self.site.world().fresh_id());
        let script = format!("echo {line} >> /tmp/f; touch /dev/done; exec sleep 1000");
        let arguments = ["run", "-d", "--rootfs", &rootfs, "--ring", ring, &id, "--", "sh", "-c", &script];
        self.site.regen(index, &arguments).success();
        eventually("it writes", || self.site.regen(index, &["exec", &id, "test", "-e", "/dev/done"]).code == 0);
        id
    }

    /// What the next run on a ring finds.
    #[track_caller]
    pub fn found(&self, index: usize, ring: &str) -> String {
        let output = self.run(index, ring, "cat /tmp/f");
        output.success().stdout().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// `ring …`
    pub fn ring(&self, index: usize, arguments: &[&str]) -> Output {
        self.site.regen(index, &[&["ring"], arguments].concat())
    }

    /// `ring move` by a repository of the ring's name.
    pub fn travel(&self, index: usize, ring: &str, more: &[&str]) -> Output {
        let via = self.reference(ring);
        self.ring(index, &[&["move", ring, "--via", &via, PLAIN], more].concat())
    }

    /// The same, which is not waited for: the operation's id, if there was an answer.
    pub fn send(&self, index: usize, ring: &str, to: usize) -> Option<String> {
        let output = self.travel(index, ring, &["--to", &self.site.host(to).name, "--no-wait"]);
        (output.code == 0).then(|| output.stdout().trim_end().to_owned())
    }

    /// The move that was asked for last.
    pub fn newest(&self, index: usize) -> Option<String> {
        let listed = self.site.json(index, &["op", "ls", "--kind", "ring-move", "--limit", "1", "--json"]);
        listed[0]["id"].as_str().map(str::to_owned)
    }

    /// How an operation is.
    pub fn operation(&self, index: usize, id: &str) -> Value {
        self.site.json(index, &["op", "show", id, "--json"])
    }

    /// What of the entries of a ring has to be the same everywhere.
    pub fn facts(&self, index: usize, ring: &str) -> Vec<Value> {
        let fields =
            ["seq", "id", "parent", "created", "reason", "exit_code", "base", "pinned", "next", "side", "digest"];
        let facts = |entry: &Value| fields.iter().map(|field| ((*field).to_owned(), entry[*field].clone())).collect();
        let log = self.site.json(index, &["ring", "log", ring, "--json"]);
        log.as_array().unwrap().iter().map(|entry| Value::Object(facts(entry))).collect()
    }

    /// What a host has written down of a ring.
    pub fn ring_file(&self, index: usize, ring: &str) -> Option<Value> {
        let path = self.site.host(index).store().join("rings/root").join(ring).join("ring.json");
        fs::read(path).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    /// Whether runs start from it on a host.
    pub fn stay(&self, index: usize, ring: &str) -> Stay {
        match self.ring_file(index, ring) {
            Some(state) if state["elsewhere"].is_null() => Stay::Home,
            Some(_) | None => Stay::Not,
        }
    }

    /// The hosts where runs start from it. One that is home before and after a look at the other was so meanwhile.
    #[track_caller]
    pub fn homes(&self, ring: &str) -> Vec<usize> {
        loop {
            let first = self.stay(0, ring);
            let second = self.stay(1, ring);
            if first == self.stay(0, ring) {
                let stays = [(0, first), (1, second)];
                let homes: Vec<_> =
                    stays.iter().filter(|(_, stay)| *stay == Stay::Home).map(|(index, _)| *index).collect();
                assert!(homes.len() < 2, "ring '{ring}' is at home twice");
                return homes;
            }
        }
    }

    /// Who has a ring, as etcd says.
    pub fn owner(&self, ring: &str) -> Option<Value> {
        let output = self.site.ctl(IMAGES, &["get", &format!("regen/ring/root/{ring}"), "--print-value-only"]);
        serde_json::from_str(output.success().stdout()).ok()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Who packs meanwhile would be found as a leak.
            (0..2).for_each(|index| drop(self.ring(index, &["pack"])));
        }
        // Both fail only if it has ended.
        let _ = self.images.kill();
        let _ = self.images.wait();
    }
}

fn images(site: &Site) -> Child {
    let base = site.world().base();
    let (data, config) = (base.join("images"), base.join("images.yml"));
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
         http: {{addr: \"0.0.0.0:5000\"}}\n",
        data.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config);
    let mut command = site.host(IMAGES).enter(&command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the registry answers", || {
        site.regen(0, &["ring", "pull", &format!("docker://{}:5000/x", site.host(IMAGES).address), "x", PLAIN])
            .stderr()
            .contains("there is no ring")
    });
    child
}
