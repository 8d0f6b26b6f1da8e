//! Who a process is, for one that never executes a program: a copy of another that gets its rights from outside.
//!
//! An ordinary process takes its rights and then executes its program, by which the kernel makes its capabilities anew
//! (capabilities(7), "Transformation of capabilities during execve()"). A copy is the program already, so what it is
//! given is what would be left after that.

use oci_spec::runtime::{Linux, PosixRlimit, Process};
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;

use super::{Gain, Kernel, UserNamespace, capability, label, limit, seccomp, user};
use crate::error::{Error, Kind, Result};
use crate::sys::seccomp::Instruction;

/// Credentials, limits and filter of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persona {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its additional groups.
    pub groups: Vec<u32>,
    /// The mask for the files that it makes.
    pub umask: u32,
    /// Its capabilities.
    pub rights: Rights,
    /// Whether it may gain privileges by executing a program.
    pub gain: Gain,
    /// Its resource limits, as far as the specification names them.
    pub limits: Vec<(Resource, Rlimit)>,
    /// How willing the kernel is to kill it when memory runs out; if none, as its maker.
    pub oom_score_adj: Option<i32>,
    /// The filter of its system calls.
    pub filter: Option<Confinement>,
}

/// The five sets of capabilities as a program has them once it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// What this kernel has and the process will never have.
    pub dropped: CapabilitySet,
    /// See capabilities(7).
    pub bounding: CapabilitySet,
    /// See capabilities(7).
    pub permitted: CapabilitySet,
    /// See capabilities(7).
    pub effective: CapabilitySet,
    /// See capabilities(7).
    pub inheritable: CapabilitySet,
    /// See capabilities(7).
    pub ambient: CapabilitySet,
}

/// A filter that is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// The compiled program.
    pub program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_…`
    pub flags: u32,
}

/// Decides who a process is.
///
/// # Errors
/// [`Kind::Unsupported`] for what can only be given to a process that executes a program: a label, a scheduler, a
/// personality, a filter with a listener; else those of [`super::plan`].
pub fn persona(process: &Process, linux: Option<&Linux>) -> Result<Persona> {
    let kernel = Kernel::observe(process, UserNamespace::Own)?;
    decide(process, linux, &kernel)
}

fn decide(process: &Process, linux: Option<&Linux>, kernel: &Kernel) -> Result<Persona> {
    check(process, linux, kernel.modules)?;
    let (sets, left_out) = capability::plan(process.capabilities().as_ref(), kernel.known, kernel.own);
    for left in left_out {
        tracing::warn!(capability = %left.capability, set = left.set, "capability is left out: {}", left.reason);
    }
    let gain = if process.no_new_privileges() == Some(true) { Gain::Forbidden } else { Gain::Allowed };
    let credentials = user::plan(process.user())?;
    let limits = limit::plan(rlimits(process), process.oom_score_adj(), kernel.namespace)?;
    let filter = linux.and_then(|linux| linux.seccomp().as_ref()).map(seccomp::compile).transpose()?;
    if filter.as_ref().is_some_and(seccomp::Filter::notifies) {
        return Err(misfit("linux.seccomp", "it has a listener (SCMP_ACT_NOTIFY)"));
    }
    Ok(Persona {
        uid: credentials.uid(),
        gid: credentials.gid(),
        groups: credentials.groups(),
        umask: credentials.umask(),
        rights: after_exec(sets, kernel.known, credentials.uid(), gain),
        gain,
        limits: limits.planned(),
        oom_score_adj: process.oom_score_adj(),
        filter: filter.map(|filter| Confinement { program: filter.program, flags: filter.flags }),
    })
}

fn rlimits(process: &Process) -> Option<&[PosixRlimit]> {
    process.rlimits().as_deref()
}

/// What takes effect at execve(2) only, or belongs to a single process from its birth on.
fn check(process: &Process, linux: Option<&Linux>, modules: label::Modules) -> Result<()> {
    if !label::plan(process, modules)?.is_empty() {
        return Err(misfit("process", "its security label takes effect when a program is executed"));
    }
    if process.scheduler().is_some() || process.io_priority().is_some() || process.exec_cpu_affinity().is_some() {
        return Err(misfit("process", "it has a scheduler, an I/O priority or CPUs of its own"));
    }
    match linux.and_then(|linux| linux.personality().as_ref()) {
        Some(_) => Err(misfit("linux.personality", "it takes effect when a program is executed")),
        None => Ok(()),
    }
}

/// The refusal of what only a process that executes a program can have.
fn misfit(what: &str, cause: &str) -> Error {
    Error::new(Kind::Unsupported, format!("make a copy of a template with this {what}"), cause)
        .next("start this container without a template")
}

/// What execve(2) leaves of the sets, for a program without capabilities of its own: root gets what is inheritable or
/// bounding (without new privileges no more than it had), others keep what is ambient.
fn after_exec(sets: capability::Sets, known: CapabilitySet, uid: u32, gain: Gain) -> Rights {
    let of_root = sets.inheritable | sets.bounding;
    let permitted = match (uid, gain) {
        (0, Gain::Allowed) => of_root,
        (0, Gain::Forbidden) => of_root & sets.permitted,
        (_, Gain::Allowed | Gain::Forbidden) => sets.ambient,
    };
    Rights {
        dropped: known & !sets.bounding,
        bounding: sets.bounding,
        permitted,
        effective: permitted,
        inheritable: sets.inheritable,
        ambient: sets.ambient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(change: impl FnOnce(&mut serde_json::Value)) -> Process {
        let mut value = serde_json::json!({"user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "args": ["x"],
            "cwd": "/", "noNewPrivileges": true, "capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]}});
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn capabilities_are_those_that_an_execution_would_leave() {
        let of = |uid: u32, gain: bool| {
            let asked = process(|value| {
                value["user"]["uid"] = uid.into();
                value["noNewPrivileges"] = (!gain).into();
            });
            persona(&asked, None).unwrap().rights
        };
        let (kill, chown) = (CapabilitySet::KILL, CapabilitySet::CHOWN);
        assert_eq!(of(7, true).permitted, CapabilitySet::empty(), "another user has what is ambient");
        assert_eq!(of(0, false).permitted, kill, "root without new privileges");
        assert_eq!(of(0, true).permitted, kill | chown, "root");
        assert_eq!(of(0, true).effective, kill | chown);
        assert!(of(0, true).dropped.contains(CapabilitySet::SYS_ADMIN) && !of(0, true).dropped.contains(kill));
    }

    #[test]
    fn ambient_capabilities_stay_with_another_user() {
        let asked = process(|value| {
            for set in ["inheritable", "ambient"] {
                value["capabilities"][set] = serde_json::json!(["CAP_KILL"]);
            }
        });
        let rights = persona(&asked, None).unwrap().rights;
        assert_eq!((rights.permitted, rights.effective, rights.ambient), [CapabilitySet::KILL; 3].into());
    }

    #[test]
    fn what_takes_effect_at_an_execution_only_is_refused() {
        let refused = |asked: Process, linux: serde_json::Value| {
            let linux: Linux = serde_json::from_value(linux).unwrap();
            persona(&asked, Some(&linux)).unwrap_err().kind() == Kind::Unsupported
        };
        let nothing = serde_json::json!({});
        assert!(refused(process(|value| value["scheduler"] = serde_json::json!({"policy": "SCHED_BATCH"})), nothing));
        assert!(refused(process(|_| {}), serde_json::json!({"personality": {"domain": "LINUX32"}})));
        let notify = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
        assert!(refused(process(|_| {}), serde_json::json!({"seccomp": notify})));
    }

    #[test]
    fn ids_and_limits_are_those_of_the_specification() {
        let asked = process(|value| {
            value["rlimits"] = serde_json::json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]);
        });
        let persona = persona(&asked, None).unwrap();
        assert_eq!((persona.uid, persona.gid, persona.groups, persona.umask), (7, 8, vec![9], 0o022));
        assert_eq!(persona.limits, [(Resource::Core, Rlimit { current: Some(1), maximum: Some(2) })]);
        assert_eq!((persona.gain, persona.filter), (Gain::Forbidden, None));
    }
}
