//! From the user's specification to the one that the engine gets.
//!
//! The engine reads some fields in another way than runc does; each step here makes them mean the same, and says
//! why. The user's own file is never touched.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, Hook, Hooks, LinuxCapabilities, Process, Spec};

use crate::ids::ContainerId;

/// What the engine gets, and what we keep for ourselves.
#[derive(Debug, Clone)]
pub struct Derived {
    /// The specification for the engine.
    pub spec: Spec,
    /// Hooks that are not the engine's to run.
    pub hooks: OwnHooks,
}

/// The hooks that are run by us, because the engine would run them with its own bundle in the state, or would let
/// their failure stop a deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnHooks {
    /// In the container, before its program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// On the host, after the program was started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// On the host, after the container was deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// Everything beside the specification that the derivation depends on.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The container's id, the default name of its cgroup.
    pub id: &'a ContainerId,
    /// The user's bundle, absolute.
    pub bundle: &'a Path,
    /// The program that stands before each hook of the engine.
    pub relay: &'a Path,
    /// Whether cgroups are made by systemd, whose paths have another form (`slice:prefix:name`).
    pub systemd_cgroup: bool,
}

/// Derives the engine's specification.
#[must_use]
pub fn derive(mut spec: Spec, around: Surroundings<'_>) -> Derived {
    if let Some(root) = spec.root_mut() {
        let path = around.bundle.join(root.path());
        root.set_path(path);
    }
    if let Some(process) = spec.process_mut() {
        normalize_process(process);
    }
    normalize_mounts(&mut spec);
    if let Some(linux) = spec.linux_mut() {
        // Without an absolute path the engine asks systemd for a cgroup as soon as there is a user namespace.
        let path = cgroup_path(linux.cgroups_path().as_deref(), around);
        linux.set_cgroups_path(Some(path));
        // The kernel's word with the recursive prefix, which is how the flag is applied in either case.
        let word = linux.rootfs_propagation().as_deref().map(|word| word.strip_prefix('r').unwrap_or(word).to_owned());
        linux.set_rootfs_propagation(word.filter(|word| !word.is_empty()));
    }
    let (engine, hooks) = split_hooks(spec.hooks().clone().unwrap_or_default(), around);
    spec.set_hooks(engine);
    Derived { spec, hooks }
}

/// Makes a process mean for the engine what it means for runc.
pub(super) fn normalize_process(process: &mut Process) {
    // The engine takes an explicit `false` for "seccomp may wait until the capabilities are gone", and fails then.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    // No list of capabilities means none; the engine would leave the caller's, all of them.
    let mut sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
    let or_empty = |set: &Option<Capabilities>| Some(set.clone().unwrap_or_default());
    let (bounding, effective, permitted) =
        (or_empty(sets.bounding()), or_empty(sets.effective()), or_empty(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
}

pub(super) fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None).set_effective(None).set_inheritable(None).set_permitted(None).set_ambient(None);
    sets
}

/// A mount without a source is legal where the file system needs none, but the engine wants one. runc's own option
/// `tmpcopyup` would reach the kernel, which refuses it: the tmpfs then begins empty.
fn normalize_mounts(spec: &mut Spec) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if let Some(options) = mount.options() {
            let kept = options.iter().filter(|option| *option != "tmpcopyup").cloned().collect();
            mount.set_options(Some(kept));
        }
        if mount.source().is_none() {
            let source = mount.typ().clone().unwrap_or_else(|| "none".to_owned());
            mount.set_source(Some(PathBuf::from(source)));
        }
    }
}

fn cgroup_path(given: Option<&Path>, around: Surroundings<'_>) -> PathBuf {
    match given {
        None if around.systemd_cgroup => PathBuf::from(format!(":regen:{}", around.id)),
        None => Path::new("/").join(around.id.as_str()),
        Some(path) if path.as_os_str().is_empty() => cgroup_path(None, around),
        Some(path) if around.systemd_cgroup => path.to_owned(),
        Some(path) => Path::new("/").join(path),
    }
}

fn split_hooks(hooks: Hooks, around: Surroundings<'_>) -> (Option<Hooks>, OwnHooks) {
    let own = OwnHooks {
        start_container: hooks.start_container().clone().unwrap_or_default(),
        poststart: hooks.poststart().clone().unwrap_or_default(),
        poststop: hooks.poststop().clone().unwrap_or_default(),
    };
    #[allow(deprecated, reason = "prestart is deprecated, and still what older engines send")]
    let prestart = hooks.prestart().clone();
    let relayed = |list: &Option<Vec<Hook>>| -> Option<Vec<Hook>> {
        list.as_ref().filter(|list| !list.is_empty()).map(|list| list.iter().map(|hook| relay(hook, around)).collect())
    };
    let (prestart, runtime, container) =
        (relayed(&prestart), relayed(hooks.create_runtime()), relayed(hooks.create_container()));
    if prestart.is_none() && runtime.is_none() && container.is_none() {
        return (None, own);
    }
    let mut engine = Hooks::default();
    engine.set_create_runtime(runtime).set_create_container(container);
    #[allow(deprecated, reason = "see above")]
    engine.set_prestart(prestart);
    (Some(engine), own)
}

/// The word after which the relay's arguments come: bundle, program, argument vector.
pub const RELAY_VERB: &str = "hook-relay";

/// Puts our own program before a hook: it replaces the engine's bundle in the state by the user's and executes the
/// hook in its own place, so that pid, time limit and exit status stay the hook's.
fn relay(hook: &Hook, around: Surroundings<'_>) -> Hook {
    let program = hook.path().display().to_string();
    let mut args =
        vec!["regen".to_owned(), RELAY_VERB.to_owned(), around.bundle.display().to_string(), program.clone()];
    match hook.args().as_deref() {
        None | Some([]) => args.push(program),
        Some(given) => args.extend(given.iter().cloned()),
    }
    let mut relayed = hook.clone();
    relayed.set_path(around.relay.to_owned());
    relayed.set_args(Some(args));
    relayed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::template::{Privilege, starter};

    fn derive_with(change: impl FnOnce(&mut serde_json::Value)) -> Derived {
        let mut value = serde_json::to_value(starter(Privilege::Root)).unwrap();
        change(&mut value);
        let id = "box1".parse().unwrap();
        let around = Surroundings {
            id: &id,
            bundle: Path::new("/b"),
            relay: Path::new("/proc/self/exe"),
            systemd_cgroup: false,
        };
        derive(serde_json::from_value(value).unwrap(), around)
    }

    #[test]
    fn an_explicit_false_for_new_privileges_disappears() {
        let derived = derive_with(|v| v["process"]["noNewPrivileges"] = false.into());
        assert_eq!(derived.spec.process().as_ref().unwrap().no_new_privileges(), None);
        let derived = derive_with(|v| v["process"]["noNewPrivileges"] = true.into());
        assert_eq!(derived.spec.process().as_ref().unwrap().no_new_privileges(), Some(true));
    }

    #[test]
    fn no_list_of_capabilities_means_none_at_all() {
        let derived = derive_with(|v| drop(v["process"].as_object_mut().unwrap().remove("capabilities")));
        let sets = derived.spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().map(|set| set.len()), Some(0));
        assert_eq!(sets.effective().as_ref().map(|set| set.len()), Some(0));
        assert_eq!(sets.permitted().as_ref().map(|set| set.len()), Some(0));
    }

    #[test]
    fn the_cgroup_path_is_absolute_whatever_was_given() {
        let path = |derived: &Derived| derived.spec.linux().as_ref().unwrap().cgroups_path().clone().unwrap();
        assert_eq!(path(&derive_with(|_| ())), Path::new("/box1"));
        assert_eq!(path(&derive_with(|v| v["linux"]["cgroupsPath"] = "a/b".into())), Path::new("/a/b"));
        assert_eq!(path(&derive_with(|v| v["linux"]["cgroupsPath"] = "/a".into())), Path::new("/a"));
    }

    #[test]
    fn every_word_for_propagation_reaches_the_engine_in_its_spelling() {
        for (word, expected) in
            [("rprivate", "private"), ("rslave", "slave"), ("shared", "shared"), ("runbindable", "unbindable")]
        {
            let derived = derive_with(|v| v["linux"]["rootfsPropagation"] = word.into());
            assert_eq!(derived.spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some(expected));
        }
    }

    #[test]
    fn hooks_of_the_engine_go_through_the_relay_and_ours_are_kept() {
        let derived = derive_with(|v| {
            v["hooks"] = serde_json::json!({
                "createRuntime": [{"path": "/bin/a", "args": ["a", "1"], "timeout": 3}],
                "createContainer": [{"path": "/bin/b"}],
                "poststop": [{"path": "/bin/c"}],
            });
        });
        let hooks = derived.spec.hooks().clone().unwrap();
        let first = &hooks.create_runtime().clone().unwrap()[0];
        assert_eq!(first.path(), Path::new("/proc/self/exe"));
        assert_eq!(first.args().clone().unwrap(), ["regen", RELAY_VERB, "/b", "/bin/a", "a", "1"]);
        assert_eq!(first.timeout(), Some(3));
        let second = &hooks.create_container().clone().unwrap()[0];
        assert_eq!(second.args().clone().unwrap(), ["regen", RELAY_VERB, "/b", "/bin/b", "/bin/b"]);
        assert!(hooks.poststop().is_none());
        assert_eq!(derived.hooks.poststop.len(), 1);
    }

    #[test]
    fn an_option_that_the_kernel_does_not_know_stays_here() {
        let derived = derive_with(|v| {
            let mount = serde_json::json!({"destination": "/t", "type": "tmpfs", "options": ["nosuid", "tmpcopyup"]});
            v["mounts"] = serde_json::json!([mount]);
        });
        assert_eq!(derived.spec.mounts().as_ref().unwrap()[0].options().clone().unwrap(), ["nosuid"]);
    }

    #[test]
    fn a_mount_without_source_gets_one() {
        let derived = derive_with(|v| v["mounts"] = serde_json::json!([{"destination": "/proc", "type": "proc"}]));
        assert_eq!(derived.spec.mounts().as_ref().unwrap()[0].source().as_deref(), Some(Path::new("proc")));
    }
}
