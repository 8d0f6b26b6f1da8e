//! What the parent sets on the child: resource limits, the oom killer's adjustment, the CPUs of an exec.

use std::fs;

use oci_spec::runtime::{ExecCPUAffinity, PosixRlimit, PosixRlimitType};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::UserNamespace;
use crate::error::{Context, Error, Kind, Result};

/// Limits of one process.
#[derive(Debug)]
pub(super) struct Limits {
    resources: Vec<(PosixRlimitType, Rlimit)>,
    oom_score_adj: Option<i32>,
    namespace: UserNamespace,
}

/// Decides the limits.
pub(super) fn plan(
    rlimits: Option<&[PosixRlimit]>,
    oom_score_adj: Option<i32>,
    namespace: UserNamespace,
) -> Result<Limits> {
    let mut resources: Vec<(PosixRlimitType, Rlimit)> = Vec::new();
    for limit in rlimits.into_iter().flatten() {
        let refuse = |cause: &str| Err(Error::new(Kind::Invalid, format!("read rlimit {}", limit.typ()), cause));
        if resources.iter().any(|(known, _)| *known == limit.typ()) {
            return refuse("it is given twice");
        }
        if limit.soft() > limit.hard() {
            return refuse("the soft limit is above the hard one");
        }
        // The largest number is the kernel's RLIM_INFINITY.
        let bound = |number: u64| (number != u64::MAX).then_some(number);
        resources.push((limit.typ(), Rlimit { current: bound(limit.soft()), maximum: bound(limit.hard()) }));
    }
    if let Some(number) = oom_score_adj.filter(|number| !(-1000..=1000).contains(number)) {
        let cause = format!("{number} is not between -1000 and 1000");
        return Err(Error::new(Kind::Invalid, "read process.oomScoreAdj", cause));
    }
    Ok(Limits { resources, oom_score_adj, namespace })
}

impl Limits {
    /// Sets on a child of ours, which therefore keeps its pid, what it cannot set itself.
    pub(super) fn apply(&self, pid: i32) -> Result<()> {
        match self.namespace {
            UserNamespace::Other => self.bound(Some(child(pid)?))?,
            UserNamespace::Own => {}
        }
        let Some(score) = self.oom_score_adj else { return Ok(()) };
        match fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
            // Without CAP_SYS_RESOURCE it can only be raised, and in a user namespace nobody has that.
            Err(error)
                if error.kind() == std::io::ErrorKind::PermissionDenied && self.namespace == UserNamespace::Other =>
            {
                tracing::warn!("the oom score adjustment {score} is left out: only root may lower it");
                Ok(())
            }
            result => result.context(|| format!("set oom score adjustment {score}")),
        }
    }

    /// Sets on the calling process what needs its rights, before it loses them: nobody else may, without
    /// CAP_SYS_RESOURCE, once it is another user.
    pub(super) fn apply_own(&self) -> Result<()> {
        match self.namespace {
            UserNamespace::Own => self.bound(None),
            UserNamespace::Other => Ok(()),
        }
    }

    /// What is to be set by prlimit(2).
    pub(super) fn planned(&self) -> Vec<(Resource, Rlimit)> {
        self.resources.iter().map(|(kind, limit)| (resource(*kind), *limit)).collect()
    }

    fn bound(&self, process: Option<Pid>) -> Result<()> {
        for (kind, limit) in &self.resources {
            prlimit(process, resource(*kind), *limit).context(|| {
                let shown =
                    |bound: Option<u64>| bound.map_or_else(|| "unlimited".to_owned(), |number| number.to_string());
                format!("set rlimit {kind} to {} (soft) and {} (hard)", shown(limit.current), shown(limit.maximum))
            })?;
        }
        Ok(())
    }
}

fn child(pid: i32) -> Result<Pid> {
    Pid::from_raw(pid)
        .filter(|pid| pid.as_raw_nonzero().get() > 0)
        .ok_or_else(|| Error::new(Kind::Invalid, format!("set limits of process {pid}"), "not a process id"))
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// The CPUs of an exec, before and after it has joined the container's cgroup.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    pub initial: Option<CpuSet>,
    pub last: Option<CpuSet>,
}

/// Reads `process.execCPUAffinity`.
pub(super) fn plan_affinity(given: Option<&ExecCPUAffinity>) -> Result<Affinity> {
    let parse = |text: &Option<String>, field: &str| match text.as_deref().unwrap_or_default() {
        "" => Ok(None),
        text => parse_cpus(text).map(Some).ok_or_else(|| {
            let operation = format!("read process.execCPUAffinity.{field} '{}'", text.escape_debug());
            Error::new(Kind::Invalid, operation, "it is no list of CPUs such as 0-3,7")
        }),
    };
    let Some(given) = given else { return Ok(Affinity::default()) };
    Ok(Affinity { initial: parse(given.initial(), "initial")?, last: parse(given.cpu_affinity_final(), "final")? })
}

/// `0-3,7`.
fn parse_cpus(text: &str) -> Option<CpuSet> {
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number < CpuSet::MAX_CPU);
    let mut set = CpuSet::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return None;
        }
        (first..=last).for_each(|cpu| set.set(cpu));
    }
    Some(set)
}

/// Confines a child to CPUs.
pub(super) fn pin(pid: i32, cpus: Option<&CpuSet>) -> Result<()> {
    let Some(cpus) = cpus else { return Ok(()) };
    sched_setaffinity(Some(child(pid)?), cpus).context(|| "set the CPU affinity of the process")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rlimits(value: serde_json::Value) -> Result<Limits> {
        let rlimits: Vec<PosixRlimit> = serde_json::from_value(value).unwrap();
        plan(Some(&rlimits), None, UserNamespace::Own)
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let file = serde_json::json!({"type": "RLIMIT_NOFILE", "soft": 5, "hard": 9});
        assert!(rlimits(serde_json::json!([file, file])).unwrap_err().to_string().contains("RLIMIT_NOFILE"));
        assert!(rlimits(serde_json::json!([{"type": "RLIMIT_CPU", "soft": 9, "hard": 5}])).is_err());
        let endless = rlimits(serde_json::json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX}])).unwrap();
        assert_eq!(endless.resources[0].1, Rlimit { current: Some(0), maximum: None });
        assert!(plan(None, Some(1001), UserNamespace::Own).is_err());
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        let set = parse_cpus("0-2,7").unwrap();
        let cpus: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
        assert_eq!(cpus, [0, 1, 2, 7]);
        for text in ["", "a", "3-1", "1-", "-1", "1,,2", "99999"] {
            assert!(parse_cpus(text).is_none(), "{text}");
        }
    }
}
