//! Whether a container can be a clone's: it has the same files that the loaded program maps, and wants nothing that only an
//! execution gives.

use std::fs::File;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::fs::open_path;
use crate::template::message::{Fits, Mapped};
use crate::template::proxy;

/// Decides by the specification alone.
///
/// # Errors
/// [`Kind::Unsupported`] with the reason.
pub(super) fn check_spec(spec: &Spec) -> Result<()> {
    let refuse = |cause: &str| Err(Error::new(Kind::Unsupported, "fit a container to a template", cause));
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let find = |kind| namespaces.iter().find(|space| space.typ() == kind);
    if find(LinuxNamespaceType::User).is_some() {
        return refuse("it has a user namespace, and templates have none");
    }
    if find(LinuxNamespaceType::Time).is_some() {
        return refuse("it has a time namespace, and a process enters that at its birth only");
    }
    if find(LinuxNamespaceType::Pid).is_none_or(|space| space.path().is_some()) {
        return refuse("it has no new pid namespace of its own");
    }
    if find(LinuxNamespaceType::Mount).is_none_or(|space| space.path().is_some()) {
        return refuse("it has no new mount namespace of its own");
    }
    proxy::plan(spec).map(drop)
}

/// Compares the files of a container, by its first process, with those that a loaded program maps.
///
/// # Errors
/// [`Kind::Unsupported`] naming the first file that is another one or not there.
pub(super) fn check_files(init: i32, fits: &Fits) -> Result<()> {
    let operation = || "compare a container with a template";
    let refuse = |cause: String| Err(Error::new(Kind::Unsupported, operation(), cause));
    if fits.arch != std::env::consts::ARCH {
        return refuse(format!("the template is for {}", fits.arch));
    }
    let root = open_path(Path::new(&format!("/proc/{init}/root"))).context(operation)?;
    match fits.mapped.iter().find(|mapped| !is_same(&root, mapped)) {
        Some(mapped) => {
            let path = mapped.path.display();
            refuse(format!("it has another base: its '{path}' is not the one that the template has loaded"))
        }
        None => Ok(()),
    }
}

fn is_same(root: &File, mapped: &Mapped) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(root, &mapped.path, flags, Mode::empty(), resolve).and_then(fstat);
    found.is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && u64::try_from(found.st_size) == Ok(mapped.size)
            && (found.st_mtime, u32::try_from(found.st_mtime_nsec).unwrap_or_default()) == mapped.modified
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
        let namespaces = serde_json::json!([{"type": "pid"}, {"type": "mount"}]);
        let mut value = serde_json::json!({"ociVersion": "1.2.0", "linux": {"namespaces": namespaces},
            "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["x"]}});
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_only_an_execution_gives_does_not_fit() {
        check_spec(&spec(|_| ())).unwrap();
        let cause = |change: fn(&mut serde_json::Value)| check_spec(&spec(change)).unwrap_err().to_string();
        for kind in ["user", "time"] {
            let more = spec(|value| {
                let list = value["linux"]["namespaces"].as_array_mut().unwrap();
                list.push(serde_json::json!({"type": kind}));
            });
            assert!(check_spec(&more).unwrap_err().to_string().contains(&format!("{kind} namespace")));
        }
        assert!(cause(|value| value["linux"]["namespaces"] = serde_json::json!([])).contains("pid namespace"));
        assert!(cause(|value| value["linux"]["namespaces"][0]["path"] = "/x".into()).contains("pid namespace"));
        assert!(
            cause(|value| value["linux"]["personality"] = serde_json::json!({"domain": "LINUX32"}))
                .contains("personality")
        );
    }

    #[test]
    fn the_base_is_the_same_if_every_file_is() {
        let own = i32::try_from(std::process::id()).unwrap();
        let program = std::fs::canonicalize("/proc/self/exe").unwrap();
        let found = std::fs::metadata(&program).unwrap();
        let modified = (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap());
        let mapped = Mapped { path: program, size: found.len(), modified };
        let with =
            |mapped: Mapped| check_files(own, &Fits { arch: std::env::consts::ARCH.to_owned(), mapped: vec![mapped] });
        with(mapped.clone()).unwrap();
        for other in [
            Mapped { size: mapped.size + 1, ..mapped.clone() },
            Mapped { modified: (modified.0, modified.1 ^ 1), ..mapped.clone() },
            Mapped { path: "/nowhere".into(), ..mapped },
        ] {
            assert!(with(other).unwrap_err().to_string().contains("another base"));
        }
        assert!(check_files(own, &Fits { arch: "vax".into(), mapped: Vec::new() }).is_err());
    }
}
