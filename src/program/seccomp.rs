//! The filter of system calls, from rules to BPF: compiled in the parent, loaded by the child.

use std::collections::HashSet;
use std::io::{Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use super::enosys;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::fs::memory_file;
use crate::sys::seccomp::{self as kernel, Instruction};

/// A filter that only has to be loaded.
#[derive(Debug)]
pub(super) struct Filter {
    pub program: Vec<Instruction>,
    pub flags: u32,
}

impl Filter {
    /// Whether loading it makes a listener.
    pub(super) fn notifies(&self) -> bool {
        self.flags & kernel::NEW_LISTENER != 0
    }
}

/// Compiles a filter.
pub(super) fn compile(seccomp: &LinuxSeccomp) -> Result<Filter> {
    check(seccomp)?;
    let failed = |what: String| move |error: SeccompError| Error::new(Kind::Invalid, what, error.to_string());
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(failed("begin the seccomp filter".to_owned()))?;
    for arch in seccomp.architectures().iter().flatten() {
        // A processor that the library does not know, or of the other byte order, never runs here; its calls are
        // refused by the filter anyhow.
        if let Err(error) = context.add_arch(scmp_arch(*arch)) {
            tracing::warn!(?arch, %error, "seccomp architecture is left out");
        }
    }
    for rule in seccomp.syscalls().iter().flatten() {
        add_rule(&mut context, rule, default)?;
    }
    let program = export(&context)?;
    let program = enosys::prefix(seccomp).into_iter().chain(program).collect();
    Ok(Filter { program, flags: flags(seccomp) })
}

/// A listener that is asked about the calls by which it is itself handed over would wait for itself.
fn check(seccomp: &LinuxSeccomp) -> Result<()> {
    let refuse = |cause: &str| Err(Error::new(Kind::Invalid, "read linux.seccomp", cause));
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        return refuse("SCMP_ACT_NOTIFY cannot be the default action");
    }
    let notified =
        seccomp.syscalls().iter().flatten().filter(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    if notified.flat_map(LinuxSyscall::names).any(|name| name == "write") {
        return refuse("SCMP_ACT_NOTIFY cannot be used for write");
    }
    let mut arguments = seccomp.syscalls().iter().flatten().filter_map(|rule| rule.args().as_ref()).flatten();
    if arguments.any(|argument| argument.index() > 5) {
        return refuse("a condition names an argument beyond the sixth");
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    const EPERM: u32 = nix::errno::Errno::EPERM as u32;
    let number = errno.unwrap_or(EPERM);
    let number = u16::try_from(number)
        .ok()
        .filter(|number| *number <= 4095)
        .ok_or_else(|| Error::new(Kind::Invalid, "read linux.seccomp", format!("{number} is no error number")))?;
    Ok(match action {
        // KILL is the older name of KILL_THREAD.
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number.into()),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

fn add_rule(context: &mut ScmpFilterContext, rule: &LinuxSyscall, default: ScmpAction) -> Result<()> {
    let action = action(rule.action(), rule.errno_ret())?;
    if action == default {
        // Says nothing new, and the library refuses it.
        return Ok(());
    }
    let conditions: Vec<_> = rule.args().iter().flatten().map(condition).collect();
    let arguments: HashSet<_> = rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
    for name in rule.names() {
        // A name that this library does not know is newer than it; what then happens is the default, or ENOSYS.
        let Ok(call) = ScmpSyscall::from_name(name) else {
            tracing::debug!(%name, "unknown system call is left out of the seccomp filter");
            continue;
        };
        let failed = |error: SeccompError| {
            Error::new(Kind::Invalid, format!("add a seccomp rule for {name}"), error.to_string())
        };
        if conditions.is_empty() {
            context.add_rule(action, call).map_err(failed)?;
        } else if arguments.len() == conditions.len() {
            context.add_rule_conditional(action, call, &conditions).map_err(failed)?;
        } else {
            // A rule has room for one condition on each argument; several on one argument are alternatives, which is
            // what runc makes of them.
            for condition in &conditions {
                context.add_rule_conditional(action, call, &[*condition]).map_err(failed)?;
            }
        }
    }
    Ok(())
}

fn condition(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    // At most 5, as `check` found.
    let index = u32::try_from(argument.index()).unwrap_or(u32::MAX);
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, argument.value()),
        // `value` is the mask and `valueTwo` what is left under it, as for runc.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(argument.value()), argument.value_two().unwrap_or_default())
        }
    };
    ScmpArgCompare::new(index, operator, datum)
}

fn flags(seccomp: &LinuxSeccomp) -> u32 {
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => kernel::LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => kernel::TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => kernel::SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => kernel::WAIT_KILLABLE_RECV,
    };
    let asked = match seccomp.flags() {
        // Without any word the mitigation that costs much and protects little is left off, as runc does.
        None => kernel::SPEC_ALLOW,
        Some(flags) => flags.iter().map(flag).fold(0, |all, one| all | one),
    };
    let notifies = |rule: &LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActNotify;
    if seccomp.syscalls().iter().flatten().any(notifies) {
        // The kernel refuses a listener together with TSYNC, which means nothing before the program has threads.
        return (asked | kernel::NEW_LISTENER) & !kernel::TSYNC;
    }
    // Only a listener has calls that wait, and the kernel refuses the flag without one.
    asked & !kernel::WAIT_KILLABLE_RECV
}

fn export(context: &ScmpFilterContext) -> Result<Vec<Instruction>> {
    let operation = || "compile the seccomp filter";
    let mut file = memory_file("seccomp", &[])?;
    context.export_bpf(&file).map_err(|error| Error::new(Kind::System, operation(), error.to_string()))?;
    let mut bytes = Vec::new();
    file.rewind().context(operation)?;
    file.read_to_end(&mut bytes).context(operation)?;
    let (instructions, rest) = bytes.as_chunks::<{ Instruction::SIZE }>();
    if instructions.is_empty() || !rest.is_empty() {
        return Err(Error::new(Kind::System, operation(), "the compiler wrote half an instruction"));
    }
    Ok(instructions.iter().map(|bytes| Instruction::from_bytes(*bytes)).collect())
}

/// The architecture in the library's words.
pub(super) fn scmp_arch(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(value).unwrap()
    }

    fn rule(action: &str, name: &str) -> serde_json::Value {
        serde_json::json!({"names": [name], "action": action})
    }

    #[test]
    fn a_listener_is_never_asked_about_its_own_delivery() {
        let all = serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"});
        let write =
            serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("SCMP_ACT_NOTIFY", "write")]});
        assert!(compile(&parse(all)).is_err() && compile(&parse(write)).is_err());
    }

    #[test]
    fn flags_are_the_kernels_and_those_it_refuses_together_are_not_given_together() {
        let with = |flags: serde_json::Value, action: &str| {
            flags_of(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
                "syscalls": [rule(action, "mkdir")]}))
        };
        let all = serde_json::json!([
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
        ]);
        assert_eq!(with(all.clone(), "SCMP_ACT_ERRNO"), kernel::TSYNC | kernel::LOG | kernel::SPEC_ALLOW);
        let listener = kernel::LOG | kernel::SPEC_ALLOW | kernel::WAIT_KILLABLE_RECV | kernel::NEW_LISTENER;
        assert_eq!(with(all, "SCMP_ACT_NOTIFY"), listener);
        assert_eq!(with(serde_json::json!([]), "SCMP_ACT_ERRNO"), 0);
        assert_eq!(flags_of(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"})), kernel::SPEC_ALLOW);
    }

    fn flags_of(value: serde_json::Value) -> u32 {
        flags(&parse(value))
    }

    #[test]
    fn unknown_calls_and_rules_that_say_nothing_are_left_out() {
        let with = |rules: serde_json::Value| {
            let filter = parse(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
            compile(&filter).unwrap().program
        };
        let empty = with(serde_json::json!([]));
        let same =
            with(serde_json::json!([rule("SCMP_ACT_ALLOW", "mkdir"), rule("SCMP_ACT_ERRNO", "from_the_future")]));
        assert_eq!(empty, same);
        assert!(with(serde_json::json!([rule("SCMP_ACT_ERRNO", "mkdir")])).len() > empty.len());
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused() {
        let errno = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70_000});
        assert!(compile(&parse(errno)).is_err());
        let mut seventh = rule("SCMP_ACT_ERRNO", "mkdir");
        seventh["args"] = serde_json::json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
        let seventh = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [seventh]});
        assert!(compile(&parse(seventh)).is_err());
    }
}
