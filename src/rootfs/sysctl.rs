//! `linux.sysctl`: only what belongs to a namespace of the container, written where nothing can be put in its way.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::file_system;
use crate::error::{Context, Error, Kind, Result};

/// The settings of an IPC namespace, besides `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sysctl {
    /// As it was written.
    pub(super) name: String,
    /// Below a procfs: `sys/net/ipv4/ip_forward`.
    pub(super) path: PathBuf,
    pub(super) value: String,
    /// Whether it belongs to the network namespace.
    pub(super) network: bool,
}

/// Checks every name against the namespaces that the container has.
///
/// # Errors
/// [`Kind::Invalid`] for one that would change the host.
pub(super) fn plan(given: Option<&HashMap<String, String>>, namespaces: &[LinuxNamespace]) -> Result<Vec<Sysctl>> {
    let has = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    let mut settings = Vec::new();
    for (name, value) in given.into_iter().flatten() {
        let parts = split(name);
        let dotted = parts.join(".");
        let refuse =
            |cause: &str| Err(Error::new(Kind::Invalid, format!("check sysctl '{}'", name.escape_debug()), cause));
        if parts.iter().any(|part| part.is_empty() || *part == "." || *part == ".." || part.contains('\0')) {
            return refuse("it is no name of a setting");
        }
        let network = dotted.starts_with("net.");
        if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            if !has(LinuxNamespaceType::Ipc) {
                return refuse("it is not allowed in the host's ipc namespace");
            }
        } else if network {
            if !has(LinuxNamespaceType::Network) {
                return refuse("it is not allowed in the host's network namespace");
            }
        } else if dotted == "kernel.domainname" && has(LinuxNamespaceType::Uts) {
            // It has no other place in older specifications.
        } else if dotted == "kernel.hostname" && has(LinuxNamespaceType::Uts) {
            return refuse("it conflicts with the field 'hostname' of the specification");
        } else {
            return refuse("it is not in a separate kernel namespace");
        }
        let path = ["sys"].into_iter().chain(parts.iter().map(String::as_str)).collect();
        settings.push(Sysctl { name: name.clone(), path, value: value.clone(), network });
    }
    // The order of a map is chance; what is done should not be.
    settings.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(settings)
}

/// `net.ipv4.conf.eth0/1.forwarding` and `net/ipv4/conf/eth0.1/forwarding` are the same: the first separator says
/// which of the two characters separates, the other one is part of a name and stands for itself.
fn split(name: &str) -> Vec<String> {
    match name.find(['.', '/']).and_then(|first| name.get(first..=first)) {
        Some("/") => name.split('/').map(str::to_owned).collect(),
        Some(_) => name.split('.').map(|part| part.replace('/', ".")).collect(),
        None => vec![name.to_owned()],
    }
}

/// Writes them through a procfs of our own, which is attached nowhere: nothing that a container mounts can stand
/// between us and the kernel.
///
/// # Errors
/// What the kernel has against a name or a value.
pub(super) fn apply(settings: &[Sysctl]) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    let proc = file_system::detached_proc().context(|| "open a procfs for linux.sysctl")?;
    for setting in settings {
        let operation =
            || format!("set sysctl '{}' to '{}'", setting.name.escape_debug(), setting.value.escape_debug());
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let file = openat2(&proc, &setting.path, flags, Mode::empty(), resolve).context(operation)?;
        rustix::io::write(&file, setting.value.as_bytes()).context(operation)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_one(name: &str, namespaces: &[LinuxNamespaceType]) -> Result<PathBuf> {
        let namespace = |kind: &LinuxNamespaceType| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(*kind);
            namespace
        };
        let namespaces: Vec<_> = namespaces.iter().map(namespace).collect();
        let given = HashMap::from([(name.to_owned(), "1".to_owned())]);
        plan(Some(&given), &namespaces).map(|mut settings| settings.remove(0).path)
    }

    #[test]
    fn what_belongs_to_a_namespace_of_the_container_is_taken() {
        use LinuxNamespaceType::{Ipc, Network, Uts};
        let cases = [
            ("kernel.shmmax", Ipc, "sys/kernel/shmmax"),
            ("kernel/msgmax", Ipc, "sys/kernel/msgmax"),
            ("fs.mqueue.msg_max", Ipc, "sys/fs/mqueue/msg_max"),
            ("net.ipv4.ip_forward", Network, "sys/net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", Network, "sys/net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", Network, "sys/net/ipv4/conf/eth0.1/forwarding"),
            ("kernel.domainname", Uts, "sys/kernel/domainname"),
        ];
        for (name, namespace, path) in cases {
            assert_eq!(plan_one(name, &[namespace]).unwrap(), PathBuf::from(path), "{name}");
            assert_eq!(plan_one(name, &[LinuxNamespaceType::Mount]).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
    }

    #[test]
    fn what_belongs_to_the_host_is_refused() {
        use LinuxNamespaceType::{Ipc, Network, Uts};
        let names = [
            "kernel.hostname",
            "kernel.core_pattern",
            "vm.swappiness",
            "fs.mqueue",
            "net",
            "net.",
            "kernel",
            "net.ipv4/../../kernel.core_pattern",
            "net/../kernel/core_pattern",
            "net//ipv4",
            "kernel.shmmax.x",
        ];
        for name in names {
            assert!(plan_one(name, &[Ipc, Network, Uts]).is_err(), "{name}");
        }
    }
}
