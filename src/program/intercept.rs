//! The filter that asks whoever made the process about every bind(2) and listen(2): for services whose program knows
//! nothing of socket activation.
//!
//! ```text
//! load architecture
//!     another one? allow
//! load number
//!     bind, listen? notify
//!     io_uring_setup? return ENOSYS         its rings bind and listen without a system call
//! allow
//! ```
//!
//! It stands beside the container's own filter, and what that refuses stays refused. Calls in other forms (x32, or of a
//! 32-bit program) have other numbers and are let through.

use libseccomp::ScmpSyscall;

use super::bpf::{ALLOW, ARCHITECTURE, ENOSYS, JUMP_IF_EQUAL, NOTIFY, NUMBER, answer, load};
use super::enosys::native;
use super::seccomp::Filter;
use crate::error::{Error, Kind, Result};
use crate::sys::seccomp::{Instruction, NEW_LISTENER, SPEC_ALLOW, WAIT_KILLABLE_RECV, takes_flag};

/// Which calls of a process its maker answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Intercept {
    /// None.
    #[default]
    No,
    /// bind(2) and listen(2).
    Binds,
}

/// The filter; it never says no to a call that it does not report, but for io_uring.
pub(super) fn filter() -> Result<Filter> {
    let number = |name: &str| {
        let number = ScmpSyscall::from_name(name).ok().and_then(|call| u32::try_from(call.as_raw_syscall()).ok());
        number.ok_or_else(|| Error::new(Kind::Unsupported, "intercept binds", format!("this machine has no '{name}'")))
    };
    let program = assemble(native() as u32, [number("bind")?, number("listen")?], number("io_uring_setup")?);
    // A call that was received is waited for even if a signal comes: the Go runtime sends itself many, and the call would
    // begin anew with each.
    let wait = if takes_flag(WAIT_KILLABLE_RECV) { WAIT_KILLABLE_RECV } else { 0 };
    Ok(Filter { program, flags: NEW_LISTENER | SPEC_ALLOW | wait })
}

fn assemble(arch: u32, reported: [u32; 2], refused: u32) -> Vec<Instruction> {
    let unless_equal = |k: u32, skip: u8| Instruction { code: JUMP_IF_EQUAL, jt: 0, jf: skip, k };
    let if_equal = |k: u32, skip: u8| Instruction { code: JUMP_IF_EQUAL, jt: skip, jf: 0, k };
    vec![
        load(ARCHITECTURE),
        unless_equal(arch, 4),
        load(NUMBER),
        if_equal(reported[0], 3),
        if_equal(reported[1], 2),
        if_equal(refused, 2),
        answer(ALLOW),
        answer(NOTIFY),
        answer(ENOSYS),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::bpf::{AUDIT_ARCH_X86_64, X32_BIT, run};
    use super::*;

    #[test]
    fn binds_and_listens_of_the_native_form_are_reported_and_rings_refused() {
        let program = assemble(AUDIT_ARCH_X86_64, [49, 50], 425);
        for (arch, number, expected) in [
            (AUDIT_ARCH_X86_64, 49, NOTIFY),
            (AUDIT_ARCH_X86_64, 50, NOTIFY),
            (AUDIT_ARCH_X86_64, 425, ENOSYS),
            (AUDIT_ARCH_X86_64, 0, ALLOW),
            (AUDIT_ARCH_X86_64, 51, ALLOW),
            (AUDIT_ARCH_X86_64, X32_BIT | 49, ALLOW),
            (0x4000_0003, 49, ALLOW),
            (0x4000_0003, 425, ALLOW),
        ] {
            assert_eq!(run(&program, arch, number), Some(expected), "{arch:x} {number}");
        }
    }

    #[test]
    fn this_machine_knows_all_three_calls() {
        let filter = filter().unwrap();
        assert!(filter.notifies());
        assert_eq!(run(&filter.program, native() as u32, 0), Some(ALLOW));
    }
}
