//! What this runtime can do, in the words of the runtime specification's features document.

use std::fs;

use serde_json::{Value, json};

use crate::program::filter_features;
use crate::rootfs;

/// The document. What a module of the kernel has to do is "enabled" if this build can ask for it, whether or not this
/// kernel has it; capabilities and supported flags are those that the running kernel knows.
#[must_use]
pub fn features() -> Value {
    let capabilities: Vec<String> = known_capabilities();
    let seccomp = filter_features();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": rootfs::mount_options().collect::<Vec<_>>(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": seccomp.actions,
                "operators": seccomp.operators,
                "archs": seccomp.archs,
                "knownFlags": seccomp.known_flags,
                "supportedFlags": seccomp.supported_flags,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": false},
        },
        "annotations": {
            "run.regen.version": env!("CARGO_PKG_VERSION"),
            "run.regen.checkpoint.enabled": "true",
            "io.github.seccomp.libseccomp.version": seccomp.library.unwrap_or_default(),
        },
        "potentiallyUnsafeConfigAnnotations": ["run.regen."],
    })
}

fn known_capabilities() -> Vec<String> {
    let text = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    let last = text.trim().parse::<u8>().unwrap_or(u8::MAX);
    let mut known: Vec<caps::Capability> =
        caps::all().into_iter().filter(|capability| capability.index() <= last).collect();
    known.sort_by_key(caps::Capability::index);
    known.into_iter().map(|capability| capability.to_string()).collect()
}
