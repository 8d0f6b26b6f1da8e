//! From a specification to what is to be done; nothing is looked at and nothing is touched.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::mount::MountPropagationFlags;

use super::device::{self, Devices};
use super::option::{self, Options};
use super::root::Links;
use super::sysctl::{self, Sysctl};
use super::{Around, Hierarchy, Pivot};
use crate::error::{Error, Kind, Result, quote};
use crate::sys::mount::Depth;
use crate::sys::user_namespace::Range;

/// Files below /proc that may be mounted over, because programs such as lxcfs emulate them for containers. Everything
/// else below /proc is what the kernel says, or what the runtime itself relies on.
const EMULATED: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
];

/// Everything that is to be done between a new mount namespace and a process whose root is the container's.
#[derive(Debug)]
pub struct Plan {
    pub(super) rootfs: PathBuf,
    /// The root, if the creator has taken it already.
    pub(super) root_tree: Option<OwnedFd>,
    pub(super) pivot: Pivot,
    /// The word of the root; the host's mounts become slaves if there is none.
    pub(super) propagation: Option<MountPropagationFlags>,
    pub(super) read_only: bool,
    pub(super) mounts: Vec<Mount>,
    /// None if the container brings its own /dev.
    pub(super) devices: Option<Devices>,
    pub(super) masked: Vec<PathBuf>,
    pub(super) read_only_paths: Vec<PathBuf>,
    pub(super) sysctls: Vec<Sysctl>,
    pub(super) working_directory: Option<PathBuf>,
    pub(super) cgroups: Vec<Hierarchy>,
    pub(super) cgroup_namespace: bool,
    pub(super) user_namespace: bool,
    /// A network namespace that is joined; it must not be the host's if it is to be configured.
    pub(super) network: Option<PathBuf>,
    pub(super) label: Option<String>,
}

/// One mount.
#[derive(Debug)]
pub(super) struct Mount {
    /// Absolute in the container, without `.` and `..`.
    pub(super) destination: PathBuf,
    pub(super) form: Form,
    pub(super) options: Options,
    pub(super) id_map: Option<IdMap>,
    /// The source, if the creator has taken it already.
    pub(super) tree: Option<OwnedFd>,
}

/// What sort of mount it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// A file or directory of the host. Absolute.
    Bind { source: PathBuf, depth: Depth },
    /// A file system of this type.
    FileSystem { kind: String, source: String },
    /// The container's view of its cgroups, whatever the host has.
    Cgroup,
    /// What is mounted there already is changed.
    Change,
}

/// By which maps the owners of a mount's files are seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum IdMap {
    /// By these.
    Ranges { uids: Vec<Range>, gids: Vec<Range> },
    /// By those of this user namespace.
    Namespace(PathBuf),
}

impl Plan {
    /// The propagation of what comes from the host. What is unbindable could not be bound any more: that is said last.
    pub(super) fn inherited(&self) -> MountPropagationFlags {
        let (slave, all) = (MountPropagationFlags::DOWNSTREAM, MountPropagationFlags::REC);
        match self.propagation {
            None => slave | all,
            Some(word) if word.contains(MountPropagationFlags::UNBINDABLE) => {
                word.difference(MountPropagationFlags::UNBINDABLE) | MountPropagationFlags::PRIVATE
            }
            Some(word) => word,
        }
    }
}

impl Mount {
    /// Its way may lead through no symlink if it is a file system of the kernel, or goes into the directories that
    /// programs take for the kernel's.
    pub(super) fn links(&self) -> Links {
        let kernel = match &self.form {
            Form::FileSystem { kind, .. } => {
                matches!(kind.as_str(), "proc" | "sysfs" | "devpts" | "mqueue" | "devtmpfs" | "cgroup2")
            }
            Form::Cgroup => true,
            Form::Bind { .. } | Form::Change => false,
        };
        if kernel || is_fixed(&self.destination) { Links::Refuse } else { Links::Follow }
    }
}

/// Whether the path lies in a directory that an image has no say in.
fn is_fixed(path: &Path) -> bool {
    ["/dev", "/proc", "/sys"].iter().any(|fixed| path.starts_with(fixed))
}

/// Whether a mount of the container may end at this place in or below /proc.
pub(super) fn is_emulated(path: &Path) -> bool {
    EMULATED.iter().any(|file| path == Path::new(file))
}

/// Decides everything that the specification decides.
///
/// # Errors
/// [`Kind::Invalid`] with the field and what is wrong with it.
pub fn plan(spec: &Spec, around: &Around<'_>) -> Result<Plan> {
    let linux = spec.linux().clone().unwrap_or_default();
    let namespaces = linux.namespaces().clone().unwrap_or_default();
    let namespace = |kind| namespaces.iter().find(|namespace| namespace.typ() == kind);
    let user = namespace(LinuxNamespaceType::User);
    let own_map = user.map(|user| match user.path() {
        Some(path) => IdMap::Namespace(path.clone()),
        None => ranges(linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref()),
    });
    let propagation = match linux.rootfs_propagation().as_deref().filter(|word| !word.is_empty()) {
        Some(word) => Some(option::parse_propagation(word).ok_or_else(|| {
            let cause = format!("'{}' is no propagation", word.escape_debug());
            Error::new(Kind::Invalid, "check linux.rootfsPropagation", cause)
                .next("use shared, slave, private or unbindable, or one of them with an 'r' in front")
        })?),
        None => None,
    };
    let mounts = spec.mounts().iter().flatten();
    let mounts: Vec<Mount> = mounts.map(|mount| plan_mount(mount, around, own_map.as_ref())).collect::<Result<_>>()?;
    let paths = |list: &Option<Vec<String>>| list.iter().flatten().map(|path| normalize(Path::new(path))).collect();
    Ok(Plan {
        rootfs: around.rootfs.to_owned(),
        root_tree: None,
        pivot: around.pivot,
        propagation,
        read_only: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
        devices: device::plan(linux.devices().as_deref().unwrap_or_default(), &mounts)?,
        masked: paths(linux.masked_paths()),
        read_only_paths: paths(linux.readonly_paths()),
        sysctls: sysctl::plan(linux.sysctl().as_ref(), &namespaces)?,
        working_directory: spec.process().as_ref().map(|process| normalize(process.cwd())),
        cgroups: around.cgroups.to_vec(),
        cgroup_namespace: namespace(LinuxNamespaceType::Cgroup).is_some(),
        user_namespace: user.is_some(),
        network: namespace(LinuxNamespaceType::Network).and_then(|network| network.path().clone()),
        label: linux.mount_label().clone().filter(|label| !label.is_empty()),
        mounts,
    })
}

fn plan_mount(mount: &oci_spec::runtime::Mount, around: &Around<'_>, own: Option<&IdMap>) -> Result<Mount> {
    let destination = normalize(mount.destination());
    let operation = || format!("check the mount at {}", quote(&destination));
    let refuse = |cause: &str| Error::new(Kind::Invalid, operation(), cause);
    if mount.destination().as_os_str().is_empty() {
        return Err(refuse("it has no destination"));
    }
    let options = option::parse(mount.options().as_deref().unwrap_or_default());
    let form = plan_form(mount, &options, around).map_err(|error| error.during(operation()))?;
    check_proc(&destination, &form).map_err(|cause| refuse(&cause))?;
    let given = mount.uid_mappings().as_ref().is_some_and(|list| !list.is_empty());
    if given != mount.gid_mappings().as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(refuse("uidMappings and gidMappings have to be given together"));
    }
    let id_map = match (given, options.id_map) {
        (true, _) => Some(ranges(mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref())),
        (false, Some(_)) => {
            let none =
                || refuse("'idmap' without uidMappings and gidMappings, in a container without a user namespace");
            Some(own.cloned().ok_or_else(none)?)
        }
        (false, None) => None,
    };
    if id_map.is_some() && !matches!(form, Form::Bind { .. }) {
        return Err(refuse("owners can be mapped on bind mounts only"));
    }
    if options.copy_up && !matches!(&form, Form::FileSystem { kind, .. } if kind == "tmpfs") {
        return Err(refuse("'tmpcopyup' is for a tmpfs only"));
    }
    Ok(Mount { destination, form, options, id_map, tree: None })
}

fn plan_form(mount: &oci_spec::runtime::Mount, options: &Options, around: &Around<'_>) -> Result<Form> {
    let kind = mount.typ().as_deref().unwrap_or("none");
    let refuse = |cause: &str, next: &str| Err(Error::new(Kind::Invalid, "read its type", cause).next(next));
    if options.remount {
        return Ok(Form::Change);
    }
    let depth = match (options.bind, kind) {
        (Some(depth), _) => Some(depth),
        (None, "bind") => Some(Depth::One),
        (None, "rbind") => Some(Depth::All),
        (None, _) => None,
    };
    if let Some(depth) = depth {
        return match mount.source() {
            // Relative to the bundle, says the specification.
            Some(source) if !source.as_os_str().is_empty() => {
                Ok(Form::Bind { source: around.bundle.join(source), depth })
            }
            Some(_) | None => refuse("a bind mount without a source", "name one"),
        };
    }
    match kind {
        "cgroup" | "cgroup2" => Ok(Form::Cgroup),
        "none" | "" if !options.propagation.is_empty() => Ok(Form::Change),
        "none" | "" => refuse("it has none and is no bind mount", "name one, or add 'bind' to its options"),
        kind => {
            let source = mount.source().as_ref().map(|source| source.to_string_lossy().into_owned());
            Ok(Form::FileSystem { kind: kind.to_owned(), source: source.unwrap_or_else(|| kind.to_owned()) })
        }
    }
}

/// What is below /proc is the kernel's, and the runtime itself writes there: a mount must not put something else in
/// its place. Where a symlink leads is looked at again when it is mounted.
fn check_proc(destination: &Path, form: &Form) -> Result<(), String> {
    let Ok(below) = destination.strip_prefix("/proc") else { return Ok(()) };
    if below.as_os_str().is_empty() {
        return match form {
            Form::FileSystem { kind, .. } if kind == "proc" => Ok(()),
            Form::Bind { .. } | Form::Change => Ok(()),
            Form::FileSystem { .. } | Form::Cgroup => {
                Err("it cannot be mounted there because it is not of type proc".to_owned())
            }
        };
    }
    match form {
        Form::Change => Ok(()),
        Form::Bind { .. } | Form::FileSystem { .. } | Form::Cgroup if is_emulated(destination) => Ok(()),
        Form::Bind { .. } | Form::FileSystem { .. } | Form::Cgroup => {
            Err(format!("it cannot be mounted because it is inside /proc; allowed are {}", EMULATED.join(", ")))
        }
    }
}

fn ranges(uids: Option<&[LinuxIdMapping]>, gids: Option<&[LinuxIdMapping]>) -> IdMap {
    let convert = |list: Option<&[LinuxIdMapping]>| {
        let range =
            |map: &LinuxIdMapping| Range { inside: map.container_id(), outside: map.host_id(), size: map.size() };
        list.unwrap_or_default().iter().map(range).collect()
    };
    IdMap::Ranges { uids: convert(uids), gids: convert(gids) }
}

/// `.`, `..` and doubled slashes resolved by name, as a path inside the container.
pub(super) fn normalize(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan_json(spec: &Value) -> Result<Plan> {
        let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
        let around = Around {
            bundle: Path::new("/bundle"),
            rootfs: Path::new("/bundle/rootfs"),
            cgroups: &[],
            pivot: Pivot::Pivot,
        };
        plan(&spec, &around)
    }

    fn plan_mounts(mounts: &Value) -> Result<Vec<Mount>> {
        plan_json(&json!({"ociVersion": "1.0.0", "root": {"path": "r"}, "mounts": mounts, "linux": {}}))
            .map(|plan| plan.mounts)
    }

    #[test]
    fn a_form_is_read_from_type_source_and_options() {
        let bind = |depth| Form::Bind { source: "/bundle/x".into(), depth };
        let system = |kind: &str, source: &str| Form::FileSystem { kind: kind.into(), source: source.into() };
        let cases = [
            (json!({"type": "none", "source": "x", "options": ["bind"]}), bind(Depth::One)),
            (json!({"source": "x", "options": ["rbind", "ro"]}), bind(Depth::All)),
            (json!({"type": "bind", "source": "x"}), bind(Depth::One)),
            (json!({"type": "tmpfs"}), system("tmpfs", "tmpfs")),
            (json!({"type": "ext4", "source": "/dev/vdb"}), system("ext4", "/dev/vdb")),
            (json!({"type": "cgroup2"}), Form::Cgroup),
            (json!({"options": ["remount", "bind", "ro"]}), Form::Change),
            (json!({"type": "none", "options": ["rshared"]}), Form::Change),
        ];
        for (mut mount, form) in cases {
            mount["destination"] = "a/./b/../c//".into();
            let planned = plan_mounts(&json!([mount])).unwrap().remove(0);
            assert_eq!((planned.form, planned.destination.as_path()), (form, Path::new("/a/c")), "{mount}");
        }
    }

    #[test]
    fn a_mount_that_makes_no_sense_is_refused_with_its_place() {
        let maps = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        let cases = [
            (json!({"type": "none"}), "no bind mount"),
            (json!({"type": "bind"}), "without a source"),
            (json!({"options": ["rbind"], "source": ""}), "without a source"),
            (json!({"type": "bind", "source": "x", "options": ["tmpcopyup"]}), "tmpfs only"),
            (json!({"type": "tmpfs", "uidMappings": maps, "gidMappings": maps}), "bind mounts only"),
            (json!({"type": "bind", "source": "x", "uidMappings": maps}), "given together"),
            (json!({"type": "bind", "source": "x", "options": ["idmap"]}), "without a user namespace"),
        ];
        for (mut mount, words) in cases {
            mount["destination"] = "/place".into();
            let error = plan_mounts(&json!([mount])).unwrap_err().to_string();
            assert!(error.starts_with("check the mount at '/place'") && error.contains(words), "{error}");
        }
        let error = plan_mounts(&json!([{"destination": "", "type": "tmpfs"}])).unwrap_err().to_string();
        assert!(error.contains("no destination"), "{error}");
    }

    #[test]
    fn a_mount_without_maps_of_its_own_takes_the_containers() {
        let mount = json!({"destination": "/v", "type": "bind", "source": "x", "options": ["idmap"]});
        let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 5}]);
        let mut spec = json!({"ociVersion": "1.0.0", "root": {"path": "r"}, "mounts": [mount], "linux": {
            "namespaces": [{"type": "user"}], "uidMappings": maps, "gidMappings": maps}});
        let ranges = vec![Range { inside: 0, outside: 100_000, size: 5 }];
        let expected = IdMap::Ranges { uids: ranges.clone(), gids: ranges };
        assert_eq!(plan_json(&spec).unwrap().mounts[0].id_map.as_ref(), Some(&expected));
        spec["linux"]["namespaces"] = json!([{"type": "user", "path": "/proc/1/ns/user"}]);
        let joined = IdMap::Namespace("/proc/1/ns/user".into());
        assert_eq!(plan_json(&spec).unwrap().mounts[0].id_map.as_ref(), Some(&joined));
    }

    #[test]
    fn a_propagation_that_is_none_is_named() {
        let spec = |word: &str| json!({"ociVersion": "1.0.0", "linux": {"rootfsPropagation": word}});
        for word in ["", "shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"] {
            plan_json(&spec(word)).expect(word);
        }
        let error = plan_json(&spec("ro")).unwrap_err().to_string();
        assert!(error.contains("'ro' is no propagation"), "{error}");
    }

    #[test]
    fn devices_that_cannot_exist_are_refused() {
        let plan = |device: Value| {
            plan_json(&json!({"ociVersion": "1.0.0", "linux": {"devices": [device]}})).map(|plan| plan.devices)
        };
        for device in [
            json!({"path": "/dev/x", "type": "a", "major": 1, "minor": 1}),
            json!({"path": "/dev/x", "type": "c", "major": -1, "minor": 1}),
            json!({"path": "/dev/x", "type": "b", "major": 1, "minor": 1_048_576}),
            json!({"path": "/", "type": "c", "major": 1, "minor": 1}),
        ] {
            assert_eq!(plan(device.clone()).unwrap_err().kind(), Kind::Invalid, "{device}");
        }
        let devices =
            plan(json!({"path": "/dev/../dev/tty", "type": "u", "major": 5, "minor": 0, "fileMode": 0o20_600}));
        let nodes = devices.unwrap().unwrap().nodes;
        assert_eq!((nodes.len(), nodes[5].mode), (6, 0o600), "the given one replaces the default");
    }
}
