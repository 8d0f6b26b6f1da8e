//! How a program in a container says that it is ready, as sd_notify(3) has it: a socket of the host's, bound in.

use std::path::Path;

use oci_spec::runtime::Spec;

use crate::bundle::bind::show;

/// Where the socket is inside. In a /dev of the container's own nothing is made in its root file system for it.
const IN_DEV: &str = "/dev/regen-notify";
/// Where it is if /dev is not the container's own.
const IN_RUN: &str = "/run/regen-notify";
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Binds the socket at this path into a container, and tells its program where it is.
pub(super) fn bind(spec: &mut Spec, socket: &Path) {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let own_dev = mounts.iter().any(|mount| mount.destination() == "/dev" && mount.typ().as_deref() == Some("tmpfs"));
    let inside = if own_dev { IN_DEV } else { IN_RUN };
    // A socket is written to all the same: read-only is its inode.
    show(spec, socket, inside, &["noexec"]);
    let Some(process) = spec.process_mut() else { return };
    let mut variables = process.env().clone().unwrap_or_default();
    variables.retain(|entry| entry.strip_prefix(VARIABLE).is_none_or(|rest| !rest.starts_with('=')));
    variables.push(format!("{VARIABLE}={inside}"));
    process.set_env(Some(variables));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(mounts: &serde_json::Value) -> Spec {
        let mut spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.2.0", "mounts": mounts,
            "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["NOTIFY_SOCKET=/old", "A=1"]}}))
        .unwrap();
        bind(&mut spec, Path::new("/run/k/notify"));
        spec
    }

    #[test]
    fn the_socket_lies_where_nothing_of_it_stays() {
        let own = bound(&serde_json::json!([{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}]));
        let mount = own.mounts().as_ref().unwrap().last().unwrap().clone();
        assert_eq!(
            (mount.destination().to_str(), mount.source().as_deref()),
            (Some(IN_DEV), Some(Path::new("/run/k/notify")))
        );
        let process = own.process().as_ref().unwrap();
        assert_eq!(process.env().clone().unwrap(), ["A=1", "NOTIFY_SOCKET=/dev/regen-notify"]);
        let hosts = bound(&serde_json::json!([{"destination": "/dev", "type": "bind", "source": "/dev"}]));
        assert_eq!(hosts.mounts().as_ref().unwrap().last().unwrap().destination(), Path::new(IN_RUN));
    }
}
