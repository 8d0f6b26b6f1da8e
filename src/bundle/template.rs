//! Specifications from nothing: the starter file of `spec`, and the one of a run without a bundle.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

/// The version of the runtime specification that our own specifications state.
pub const OCI_VERSION: &str = "1.2.0";

/// The search path of programs where nobody gives one.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What Docker and podman grant a container that asks for nothing: enough for package managers and servers that
/// drop their own privileges.
const RUN_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What runc's starter file grants.
const STARTER_CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// Whose containers a starter file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Root's.
    Root,
    /// Those of the ordinary user with these ids, who becomes root in a user namespace.
    Rootless {
        /// The user.
        uid: u32,
        /// Their group.
        gid: u32,
    },
}

/// The starter file that `runc spec` writes: a shell on a terminal in `rootfs`, which is read-only.
#[must_use]
pub fn starter(privilege: Privilege) -> Spec {
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [DEFAULT_PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": capabilities(&STARTER_CAPABILITIES, true),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "regen",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces(&["pid", "network", "ipc", "uts", "mount"]),
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
    });
    if let Privilege::Rootless { uid, gid } = privilege {
        make_rootless(&mut spec, uid, gid);
    }
    from_fixed(spec)
}

/// What a run without a bundle can say about its container.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`; a PATH is added where there is none.
    pub env: Vec<String>,
    /// The working directory; `/` if empty.
    pub cwd: PathBuf,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub additional_gids: Vec<u32>,
    /// Whether the program gets a terminal.
    pub terminal: bool,
    /// The host name inside.
    pub hostname: String,
    /// Whose network it has.
    pub network: Network,
    /// There is no group that owns terminals: it is not mapped in this user namespace.
    pub no_tty_group: bool,
}

/// Whose network the process of a run without a bundle has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// One of its own, with a loopback device only.
    #[default]
    Own,
    /// The caller's: for services, which are reached under the host's addresses.
    Host,
    /// The same, for a caller whose user namespace does not own it: no file system of devices can be mounted for it then,
    /// so the caller's is bound in.
    Foreign,
}

/// The group of terminals, as distributions number it.
pub const TTY_GROUP: u32 = 5;

/// The specification of a run without a bundle: a writable root, the usual mounts, namespaces of its own.
#[must_use]
pub fn run(rootfs: &Path, options: &RunOptions) -> Spec {
    let mut env = options.env.clone();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    if options.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    let cwd = if options.cwd.as_os_str().is_empty() { Path::new("/") } else { &options.cwd };
    let mut spaces = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    if options.network == Network::Own {
        spaces.push("network");
    }
    let mounts = match options.network {
        Network::Own | Network::Host => mounts(),
        Network::Foreign => with_sys_of_host(mounts()),
    };
    let spec = from_fixed(json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": options.terminal,
            "user": {"uid": options.uid, "gid": options.gid, "additionalGids": options.additional_gids},
            "args": options.args,
            "env": env,
            "cwd": "/",
            "capabilities": capabilities(&RUN_CAPABILITIES, false),
            "noNewPrivileges": false,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": options.hostname,
        "mounts": if options.no_tty_group { without_tty_group(mounts) } else { mounts },
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces(&spaces),
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
    }));
    place(spec, rootfs, cwd)
}

/// Paths need not be UTF-8, so they do not go through JSON.
fn place(mut spec: Spec, rootfs: &Path, cwd: &Path) -> Spec {
    if let Some(root) = spec.root_mut() {
        root.set_path(rootfs.to_owned());
    }
    if let Some(process) = spec.process_mut() {
        process.set_cwd(cwd.to_owned());
    }
    spec
}

/// The value is one of ours: that it fits is what the tests below show.
fn from_fixed(value: Value) -> Spec {
    serde_json::from_value(value).unwrap_or_else(|error| {
        debug_assert!(false, "our own specification does not parse: {error}");
        let mut empty = Spec::default();
        empty.set_process(None::<Process>);
        empty
    })
}

fn capabilities(names: &[&str], ambient: bool) -> Value {
    let mut sets = json!({"bounding": names, "effective": names, "permitted": names});
    if ambient {
        // Ambient capabilities must be inheritable too, or the kernel refuses them; runc leaves that to itself.
        sets["inheritable"] = json!(names);
        sets["ambient"] = json!(names);
    }
    sets
}

fn namespaces(types: &[&str]) -> Value {
    types.iter().map(|name| json!({"type": name})).collect()
}

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ])
}

/// An ordinary user can mount no sysfs and owns neither a network nor the tty group, so the host's are bound in.
fn make_rootless(spec: &mut Value, uid: u32, gid: u32) {
    spec["linux"]["namespaces"] = namespaces(&["pid", "ipc", "uts", "mount", "user"]);
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
    }
    spec["mounts"] = without_tty_group(with_sys_of_host(spec["mounts"].take()));
}

/// With it come its cgroups.
fn with_sys_of_host(mut mounts: Value) -> Value {
    if let Some(mounts) = mounts.as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        for mount in mounts {
            if mount["destination"] == "/sys" {
                *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                    "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
            }
        }
    }
    mounts
}

fn without_tty_group(mut mounts: Value) -> Value {
    for mount in mounts.as_array_mut().into_iter().flatten() {
        if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| option != "gid=5");
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starter_is_a_valid_specification_that_asks_for_a_terminal() {
        let spec = starter(Privilege::Root);
        crate::bundle::validate::check(&spec).unwrap();
        assert_eq!(spec.process().as_ref().unwrap().terminal(), Some(true));
        let rootless = starter(Privilege::Rootless { uid: 1000, gid: 1001 });
        crate::bundle::validate::check(&rootless).unwrap();
        assert_eq!(rootless.linux().as_ref().unwrap().uid_mappings().as_ref().unwrap()[0].host_id(), 1000);
    }

    #[test]
    fn a_run_has_a_path_a_writable_root_and_no_terminal() {
        let options = RunOptions { args: vec!["true".to_owned()], ..RunOptions::default() };
        let spec = run(Path::new("/images/a"), &options);
        crate::bundle::validate::check(&spec).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap()[0], DEFAULT_PATH);
        assert_eq!(process.terminal(), Some(false));
        assert_eq!(process.cwd(), Path::new("/"));
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/images/a"));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
    }

    #[test]
    fn the_network_of_the_caller_leaves_out_what_cannot_be_mounted_for_it() {
        let with = |network| {
            run(Path::new("/r"), &RunOptions { args: vec!["a".to_owned()], network, ..RunOptions::default() })
        };
        let sys = |spec: &Spec| {
            let mounts = spec.mounts().clone().unwrap();
            mounts.into_iter().find(|mount| mount.destination() == Path::new("/sys")).unwrap().typ().clone().unwrap()
        };
        let spaces = |spec: &Spec| spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len();
        let [own, host, foreign] = [Network::Own, Network::Host, Network::Foreign].map(with);
        assert_eq!([sys(&own), sys(&host), sys(&foreign)], ["sysfs", "sysfs", "none"]);
        assert_eq!([spaces(&own), spaces(&host), spaces(&foreign)], [6, 5, 5]);
    }

    #[test]
    fn a_path_of_the_callers_is_kept() {
        let options = RunOptions { env: vec!["PATH=/x".to_owned()], terminal: true, ..RunOptions::default() };
        let spec = run(Path::new("/r"), &options);
        assert_eq!(spec.process().as_ref().unwrap().env().clone().unwrap(), ["PATH=/x", "TERM=xterm"]);
    }
}
