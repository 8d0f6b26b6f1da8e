//! Whether programs can be forked from outside, as templates are.

use std::fs;

use super::Finding;

/// CAP_SYS_PTRACE (linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

/// What the kernel and the administrator say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    /// Whether the caller is root.
    root: bool,
    /// Whether its capabilities let it trace whomever it wants.
    traces: bool,
    /// `kernel.yama.ptrace_scope` is 3: nobody traces anybody.
    forbidden: bool,
    /// Whether filters can hand a call to a tracer.
    filters: bool,
}

pub(super) fn examine() -> Finding {
    judge(look())
}

fn look() -> Found {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Found {
        root: nix::unistd::geteuid().is_root(),
        traces: has_capability(&text("/proc/self/status"), CAP_SYS_PTRACE),
        forbidden: text("/proc/sys/kernel/yama/ptrace_scope").trim() == "3",
        filters: text("/proc/sys/kernel/seccomp/actions_avail").split_whitespace().any(|action| action == "trace"),
    }
}

fn has_capability(status: &str, number: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    set.is_some_and(|set| set & (1 << number) != 0)
}

/// pidfd_getfd(2) is needed, too; that has a line of its own.
fn judge(found: Found) -> Finding {
    let subject = "templates";
    let warn = |text: &str, mend: &str| Finding::warn(subject, format!("{text}: no template can be kept"), mend);
    match found {
        Found { root: false, .. } => Finding::ok(subject, "are root's alone"),
        Found { forbidden: true, .. } => warn(
            "ptrace(2) is forbidden until the next boot (kernel.yama.ptrace_scope is 3)",
            "sysctl -w kernel.yama.ptrace_scope=1",
        ),
        Found { traces: false, .. } => {
            warn("CAP_SYS_PTRACE is missing", "run regen outside of the sandbox or container that takes it")
        }
        Found { filters: false, .. } => {
            warn("the kernel's filters hand no call to a tracer", "boot a kernel with CONFIG_SECCOMP_FILTER")
        }
        Found { root: true, traces: true, forbidden: false, filters: true } => {
            Finding::ok(subject, "programs can be forked from outside (ptrace, filters)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::doctor::Status;

    #[test]
    fn each_thing_that_is_missing_is_named() {
        let fit = Found { root: true, traces: true, forbidden: false, filters: true };
        assert_eq!(judge(fit).status, Status::Ok);
        let text = |found: Found| judge(found).text;
        assert!(text(Found { forbidden: true, ..fit }).contains("ptrace_scope is 3"));
        assert!(text(Found { traces: false, ..fit }).contains("CAP_SYS_PTRACE"));
        assert!(text(Found { filters: false, ..fit }).contains("filters"));
        assert_eq!(judge(Found { root: false, traces: false, ..fit }).status, Status::Ok);
    }

    #[test]
    fn capabilities_are_read_as_the_kernel_writes_them() {
        let status = "Name:\tregen\nCapPrm:\t0000000000000000\nCapEff:\t0000000000080000\n";
        assert!(has_capability(status, CAP_SYS_PTRACE) && !has_capability(status, 18));
        assert!(!has_capability("", CAP_SYS_PTRACE));
    }
}
