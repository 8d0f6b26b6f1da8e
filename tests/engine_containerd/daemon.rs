//! A containerd of a test's own: its root, its state, its sockets and its runtime, all in the test's world.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cri::Cri;
use crate::harness::image::{Form, Layout, Tar};
use crate::harness::{Output, REGEN, Running, World, eventually};

/// What containers are made from.
pub const BOX: &str = "test.local/box:1";
/// A later image of the same, with a file `/etc/release`.
pub const LATER: &str = "test.local/box:2";
/// What holds the namespaces of a pod.
const PAUSE: &str = "test.local/pause:1";
/// Where the CRI plugin keeps what it makes.
const PODS: &str = "k8s.io";

/// The daemon. It is stopped, and all that it made is taken away, when this value goes.
pub struct Containerd<'a> {
    /// The world that it is in.
    pub world: &'a World,
    daemon: Option<Running>,
    /// containerd's namespace of what `ctr` makes, which is also the name of its cgroup.
    namespace: String,
    /// The cgroup above the pods.
    parent: String,
    /// Of shims that a test may kill.
    sockets: RefCell<Vec<PathBuf>>,
}

impl<'a> Containerd<'a> {
    /// Starts it, with both images.
    pub fn new(world: &'a World) -> Self {
        let (namespace, parent) = (world.id("ctr"), world.id("pods"));
        let mut containerd = Self { world, daemon: None, namespace, parent, sockets: RefCell::default() };
        containerd.write_runtime();
        containerd.write_network();
        containerd.write_settings();
        containerd.start();
        containerd.import();
        containerd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.base().join(name)
    }

    /// containerd gives its runtime flags for root and log, but none for the store. Each call is written down.
    fn write_runtime(&self) {
        // So that a test can be shown to ask nothing of regen that runc does not do.
        let other = std::env::var("REGEN_OCI_TEST_RUNTIME").ok();
        let runtime = other.unwrap_or_else(|| format!("{REGEN} --store {}", self.world.store().display()));
        let calls = self.path("calls");
        let (calls, trap) = (calls.display(), self.trap());
        let trap = format!("case \"$*\" in *' delete '*) rm {} 2>/dev/null && kill -KILL 0 ;; esac", trap.display());
        write_script(&self.runtime(), &format!("echo \"$*\" >>{calls}\n{trap}\nexec {runtime} \"$@\""));
    }

    /// A network of nothing but what the CRI plugin wants to hear: an address for the pod.
    fn write_network(&self) {
        let directory = self.path("cni");
        fs::create_dir(&directory).unwrap();
        let plugin = json!({"cniVersion": "0.4.0", "name": "nothing", "plugins": [{"type": "nothing"}]});
        fs::write(directory.join("10-nothing.conflist"), plugin.to_string()).unwrap();
        let result = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth0", "sandbox": "/"}],
            "ips": [{"version": "4", "interface": 0, "address": "192.0.2.2/24"}],
        });
        for name in ["nothing", "loopback"] {
            write_script(&directory.join(name), &format!("[ \"$CNI_COMMAND\" != ADD ] || echo '{result}'"));
        }
    }

    /// What a node has in its configuration, and behind it what `install` says of regen.
    fn write_settings(&self) {
        let base = self.world.base().display();
        let skipped = ["aufs", "btrfs", "devmapper", "zfs"].map(|name| format!("io.containerd.snapshotter.v1.{name}"));
        let node = format!(
            r#"
version = 2
root = "{base}/c"
state = "{base}/cs"
disabled_plugins = {skipped:?}
[grpc]
  address = "{base}/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{base}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{base}/cni"
    conf_dir = "{base}/cni"
"#
        );
        fs::create_dir_all(self.settings().parent().unwrap()).unwrap();
        fs::write(self.settings(), &node).unwrap();
        let mut install = Command::new(REGEN);
        install.args(["install", "--engine", "containerd", "--print", "--root-dir"]).arg(self.world.base());
        install.arg("--binary").arg(self.runtime());
        let printed = self.world.finish(install);
        // The last table is that of the options: containers have their state in this world too.
        let text = format!("{node}{}Root = \"{base}/cr\"\n", printed.success().stdout());
        fs::write(self.settings(), text).unwrap();
    }

    fn settings(&self) -> PathBuf {
        self.path("etc/containerd/config.toml")
    }

    fn import(&self) {
        let layout = Layout::new(self.path("layout"));
        let environment = json!({"Env": ["PATH=/bin"]});
        // As Kubernetes' own: it has no PATH, and is nobody.
        let pause = json!({"User": "65535:65535", "Entrypoint": ["/bin/sleep", "infinity"]});
        let later = Tar::new().file("etc/release", b"2\n");
        layout.image(BOX, vec![(tree(), Form::Plain)], &environment);
        layout.image(LATER, vec![(tree(), Form::Plain), (later, Form::Plain)], &environment);
        layout.image(PAUSE, vec![(tree(), Form::Plain)], &pause);
        let archive = self.path("images.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(layout.directory()).arg("-cf").arg(&archive).arg(".");
        self.world.finish(tar).success();
        for namespace in [PODS, &self.namespace] {
            self.call(namespace, &["images", "import", archive.to_str().unwrap()]).success();
        }
    }

    /// Starts the daemon, again if it was killed, and waits until it serves.
    pub fn start(&mut self) {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.settings());
        self.daemon = Some(self.world.spawn(command));
        eventually("containerd serves", || self.call(PODS, &["plugins", "ls"]).code == 0);
        let cri = self.cri();
        eventually("the CRI plugin serves", || cri.serves());
    }

    /// Kills the daemon as a power cut would.
    pub fn kill(&mut self) {
        let Some(daemon) = self.daemon.take() else { return };
        daemon.signal(Signal::SIGKILL);
        daemon.finish();
    }

    /// The runtime, as containerd calls it.
    pub fn runtime(&self) -> PathBuf {
        self.path("regen")
    }

    /// While there is a file of this name, the next `delete` kills itself and the shim that called it, once.
    pub fn trap(&self) -> PathBuf {
        self.path("trap")
    }

    /// The calls of the runtime so far, one a line.
    pub fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// The state of a container, as the runtime tells it.
    pub fn state(&self, id: &str) -> Value {
        let root = self.path("cr").join(PODS);
        let output = self.world.finish(self.runtime_command(&["--root", root.to_str().unwrap(), "state", id]));
        serde_json::from_str(output.success().stdout()).unwrap()
    }

    fn runtime_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.runtime());
        command.args(arguments);
        command
    }

    /// Calls `ctr`.
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        self.call(&self.namespace, arguments)
    }

    /// `ctr run` with these options: the id, and this command in it.
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Output {
        self.world.finish(self.run_command(options, id, command))
    }

    /// The same, not yet run.
    pub fn run_command(&self, options: &[&str], id: &str, command: &[&str]) -> Command {
        let (runtime, root) = (self.runtime(), self.path("cr"));
        let fixed = ["run", "--runc-binary", runtime.to_str().unwrap(), "--runc-root", root.to_str().unwrap()];
        self.ctr_command(&[&fixed, options, &[BOX, id], command].concat())
    }

    /// `ctr`, not yet run.
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        self.command(&self.namespace, arguments)
    }

    fn call(&self, namespace: &str, arguments: &[&str]) -> Output {
        self.world.finish(self.command(namespace, arguments))
    }

    fn command(&self, namespace: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.path("c.sock")).args(["--namespace", namespace]).args(arguments);
        command
    }

    /// A client of the CRI plugin.
    pub fn cri(&self) -> Cri {
        Cri::new(&self.path("c.sock"), &self.parent, &self.path("logs"))
    }

    /// The shim that has this pod, to be killed: nobody but this value then takes its socket away.
    pub fn shim(&self, id: &str) -> Pid {
        let address = self.path("cs/io.containerd.runtime.v2.task").join(PODS).join(id).join("address");
        let address = fs::read_to_string(address).unwrap();
        self.sockets.borrow_mut().push(address.trim_start_matches("unix://").into());
        let of_this = |line: &str| line.contains("containerd-shim") && line.split('\0').any(|word| word == id);
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut found = processes.filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            of_this(&String::from_utf8_lossy(&line)).then(|| entry.file_name().to_str()?.parse().ok())?
        });
        Pid::from_raw(found.next().unwrap_or_else(|| panic!("no shim has {id}")))
    }

    fn delete_all(&self, namespace: &str) {
        let lines = |arguments: &[&str]| -> Vec<String> {
            self.call(namespace, arguments).stdout().lines().map(str::to_owned).collect()
        };
        for id in lines(&["tasks", "ls", "--quiet"]) {
            let _ = self.call(namespace, &["tasks", "rm", "--force", &id]);
        }
        for id in lines(&["containers", "ls", "--quiet"]) {
            let _ = self.call(namespace, &["containers", "rm", &id]);
        }
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // A second panic would end all tests at once; what is left is then taken away, and told of, by the world.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_down()))
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

impl Containerd<'_> {
    fn take_down(&mut self) {
        if self.daemon.is_none() {
            self.start();
        }
        self.cri().remove_all();
        for namespace in [PODS, &self.namespace] {
            self.delete_all(namespace);
        }
        if let Some(daemon) = self.daemon.take() {
            let _ = kill(Pid::from_raw(daemon.pid()), Signal::SIGTERM);
            daemon.finish();
        }
        for socket in self.sockets.take() {
            let _ = fs::remove_file(socket);
        }
        // The cgroups above the containers are containerd's, or kubelet's.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies {
            let _ = fs::remove_dir(hierarchy.join(&self.namespace));
            let _ = fs::remove_dir(hierarchy.join(&self.parent));
        }
        // What the runtime keeps of containers is as little to be left as what it keeps below the world's own root.
        let states = fs::read_dir(self.path("cr")).into_iter().flatten().flatten();
        for state in states.flat_map(|namespace| fs::read_dir(namespace.path()).into_iter().flatten().flatten()) {
            let kept = state.path().ends_with("@rootfs") || state.file_type().is_ok_and(|kind| !kind.is_dir());
            assert!(kept, "state left behind: {}", state.path().display());
        }
    }
}

fn write_script(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Busybox with the programs that these tests use.
fn tree() -> Tar {
    let programs =
        ["dd", "grep", "hostname", "kill", "mkdir", "mknod", "mount", "ps", "rm", "sleep", "test", "touch", "tty"];
    let tar = Tar::new().busybox().directory("run").file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    programs.into_iter().fold(tar, |tar, name| tar.symlink(&format!("bin/{name}"), "busybox"))
}
