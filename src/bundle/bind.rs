//! Directories and sockets of the host's that are shown in a container.

use std::path::Path;

use oci_spec::runtime::{Mount, Spec};

/// Shows `source` at `destination`, over what was there: read-only, without devices and set-user-ID programs. `more` are
/// further options.
pub fn show(spec: &mut Spec, source: &Path, destination: &str, more: &[&str]) {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source.to_owned()));
    let options = ["bind", "ro", "nosuid", "nodev"].iter().chain(more);
    mount.set_options(Some(options.map(|&option| option.to_owned()).collect()));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
}
