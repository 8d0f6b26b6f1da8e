//! ENOSYS for system calls that are newer than a filter.
//!
//! A filter lists what its author knew. A C library that tries a newer call first falls back to an older one when it
//! is told ENOSYS, and gives up when it is told EPERM. So, as runc does, a call with a number beyond the highest that
//! the filter names is answered with ENOSYS, before the filter sees it. That is not done where the default action lets
//! calls through, or answers ENOSYS itself.
//!
//! ```text
//! load architecture
//! for each architecture of the filter:
//!     another one? skip this part
//!     load number
//!     above the highest? return ENOSYS : go on with the filter
//! ```

use std::collections::BTreeMap;

use libseccomp::ScmpSyscall;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction};

use super::bpf::{
    ARCHITECTURE, AUDIT_ARCH_X86_64, ENOSYS, JUMP, JUMP_IF_ABOVE, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, NUMBER, X32_BIT,
    answer, load,
};
use super::seccomp::scmp_arch;
use crate::sys::seccomp::Instruction;

/// The highest number that a filter names for the two kinds of numbers that one architecture can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Highest {
    plain: Option<u32>,
    x32: Option<u32>,
}

/// What to put in front of a compiled filter; nothing if there is nothing to do.
pub(super) fn prefix(seccomp: &LinuxSeccomp) -> Vec<Instruction> {
    const NUMBER_OF_ENOSYS: u32 = nix::errno::Errno::ENOSYS as u32;
    match seccomp.default_action() {
        // A tracer answers for itself.
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace => {
            Vec::new()
        }
        _ if seccomp.default_errno_ret() == Some(NUMBER_OF_ENOSYS) => Vec::new(),
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap
        | LinuxSeccompAction::ScmpActErrno
        | LinuxSeccompAction::ScmpActNotify => assemble(&highest(seccomp)),
    }
}

/// By the kernel's number of the architecture.
fn highest(seccomp: &LinuxSeccomp) -> BTreeMap<u32, Highest> {
    let mut found: BTreeMap<u32, Highest> = BTreeMap::new();
    for arch in seccomp.architectures().iter().flatten().copied().chain([native()]) {
        let arch = if arch == Arch::ScmpArchNative { native() } else { arch };
        let names = seccomp.syscalls().iter().flatten().flat_map(oci_spec::runtime::LinuxSyscall::names);
        // Negative numbers are the library's own, for calls that this architecture has not.
        let numbers = names
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, scmp_arch(arch)).ok())
            .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok());
        let Some(top) = numbers.max() else { continue };
        match arch {
            Arch::ScmpArchX32 => found.entry(AUDIT_ARCH_X86_64).or_default().x32 = Some(top | X32_BIT),
            // Every other number of the specification is the kernel's.
            arch => found.entry(arch as u32).or_default().plain = Some(top),
        }
    }
    found
}

/// The architecture that this binary was built for, which every filter of the library begins with.
pub(super) fn native() -> Arch {
    if cfg!(target_arch = "x86_64") {
        Arch::ScmpArchX86_64
    } else if cfg!(target_arch = "aarch64") {
        Arch::ScmpArchAarch64
    } else if cfg!(target_arch = "riscv64") {
        Arch::ScmpArchRiscv64
    } else if cfg!(target_arch = "s390x") {
        Arch::ScmpArchS390x
    } else if cfg!(target_arch = "powerpc64") {
        Arch::ScmpArchPpc64le
    } else if cfg!(target_arch = "arm") {
        Arch::ScmpArchArm
    } else {
        // Known by no name: no call of it has a number then, and nothing is put before its filter.
        Arch::ScmpArchNative
    }
}

fn assemble(highest: &BTreeMap<u32, Highest>) -> Vec<Instruction> {
    let parts: Vec<Vec<Instruction>> = highest.iter().map(|(arch, top)| part(*arch, *top)).collect();
    if parts.is_empty() {
        return Vec::new();
    }
    let mut program = vec![load(ARCHITECTURE)];
    program.extend(parts.into_iter().flatten());
    // What leaves a part goes to the filter, which begins behind the last one.
    let end = program.len();
    for (index, instruction) in program.iter_mut().enumerate() {
        if instruction.code == JUMP {
            instruction.k = u32::try_from(end - index - 1).unwrap_or(u32::MAX);
        }
    }
    program
}

/// The instructions for one architecture; jumps to the filter have no distance yet.
fn part(arch: u32, top: Highest) -> Vec<Instruction> {
    let mut body = vec![load(NUMBER)];
    if arch == AUDIT_ARCH_X86_64 {
        let plain = check(top.plain);
        let skip = u8::try_from(plain.len()).unwrap_or(u8::MAX);
        body.push(Instruction { code: JUMP_IF_AT_LEAST, jt: skip, jf: 0, k: X32_BIT });
        body.extend(plain);
        body.extend(check(top.x32));
    } else {
        body.extend(check(top.plain));
    }
    let skip = u8::try_from(body.len()).unwrap_or(u8::MAX);
    let mut part = vec![Instruction { code: JUMP_IF_EQUAL, jt: 0, jf: skip, k: arch }];
    part.extend(body);
    part
}

/// Numbers of a kind that the filter does not name at all are the filter's business.
fn check(top: Option<u32>) -> Vec<Instruction> {
    let to_filter = Instruction { code: JUMP, jt: 0, jf: 0, k: 0 };
    match top {
        None => vec![to_filter],
        Some(top) => vec![Instruction { code: JUMP_IF_ABOVE, jt: 1, jf: 0, k: top }, to_filter, answer(ENOSYS)],
    }
}

#[cfg(test)]
mod tests {
    use super::super::bpf::run;
    use super::*;

    #[test]
    fn only_numbers_above_the_highest_of_their_own_kind_are_answered() {
        let tops = [
            (AUDIT_ARCH_X86_64, Highest { plain: Some(400), x32: Some(X32_BIT | 500) }),
            (0x4000_0003, Highest { plain: Some(300), x32: None }),
        ];
        let program = assemble(&tops.into());
        for (arch, number, answered) in [
            (AUDIT_ARCH_X86_64, 400, false),
            (AUDIT_ARCH_X86_64, 401, true),
            (AUDIT_ARCH_X86_64, X32_BIT | 500, false),
            (AUDIT_ARCH_X86_64, X32_BIT | 501, true),
            (0x4000_0003, 300, false),
            (0x4000_0003, 301, true),
            (0xc000_00b7, 9999, false),
        ] {
            assert_eq!(run(&program, arch, number), answered.then_some(ENOSYS), "{arch:x} {number}");
        }
        let without_x32 = assemble(&[(AUDIT_ARCH_X86_64, Highest { plain: Some(400), x32: None })].into());
        assert_eq!(run(&without_x32, AUDIT_ARCH_X86_64, X32_BIT | 1), None);
        assert!(assemble(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn nothing_is_answered_for_filters_that_let_through_or_say_enosys_themselves() {
        let filter = |default: &str, errno: Option<u32>| {
            let mut value = serde_json::json!({"defaultAction": default,
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS"}]});
            if let Some(errno) = errno {
                value["defaultErrnoRet"] = errno.into();
            }
            prefix(&serde_json::from_value(value).unwrap())
        };
        assert!(filter("SCMP_ACT_ALLOW", None).is_empty() && filter("SCMP_ACT_ERRNO", Some(38)).is_empty());
        assert!(!filter("SCMP_ACT_ERRNO", None).is_empty() && !filter("SCMP_ACT_KILL", Some(1)).is_empty());
    }
}
