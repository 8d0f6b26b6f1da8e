//! The filter that stops a template's process where it forks, for whoever traces it.
//!
//! ```text
//! load architecture
//!     another one? allow
//! load number
//!     fork? trace
//!     clone3? return ENOSYS                 its flags are in memory; C libraries then call clone
//!     clone? load its flags
//!         shares memory (a thread, vfork)? allow, else trace
//! allow
//! ```
//!
//! Without a tracer a call that is traced fails with ENOSYS.

use super::bpf::{ALLOW, ARCHITECTURE, ENOSYS, JUMP_IF_EQUAL, NUMBER, TRACE, answer, load};
use super::enosys::native;
use super::persona::Confinement;
use crate::sys::seccomp::{Instruction, SPEC_ALLOW};
use crate::sys::trace::{SYSCALLS, Syscalls};

/// What a stop by this filter comes with, so that it is told from those of the container's own filter.
pub const FORK_MARK: u16 = 0x5a46;

/// The low half of the first argument in `struct seccomp_data`.
const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
/// `CLONE_VM` of clone(2).
const SHARES_MEMORY: u32 = 0x100;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const JUMP_IF_ANY: u16 = 0x45;

/// The filter.
#[must_use]
pub fn fork_filter() -> Confinement {
    Confinement { program: assemble(native() as u32, SYSCALLS), flags: SPEC_ALLOW }
}

fn assemble(arch: u32, calls: Syscalls) -> Vec<Instruction> {
    let jump = |code: u16, k: u32, jt: u8, jf: u8| Instruction { code, jt, jf, k };
    vec![
        load(ARCHITECTURE),
        jump(JUMP_IF_EQUAL, arch, 0, 6),
        load(NUMBER),
        // Where there is no fork(2), a second look for clone3 says nothing new.
        match calls.fork {
            Some(fork) => jump(JUMP_IF_EQUAL, fork, 5, 0),
            None => jump(JUMP_IF_EQUAL, calls.clone3, 6, 0),
        },
        jump(JUMP_IF_EQUAL, calls.clone3, 5, 0),
        jump(JUMP_IF_EQUAL, calls.clone, 0, 2),
        load(FIRST_ARGUMENT),
        jump(JUMP_IF_ANY, SHARES_MEMORY, 0, 1),
        answer(ALLOW),
        answer(TRACE | FORK_MARK as u32),
        answer(ENOSYS),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::bpf::{AUDIT_ARCH_X86_64, X32_BIT, run_with};
    use super::*;

    #[test]
    fn forks_are_traced_threads_are_not_and_what_cannot_be_looked_into_is_refused() {
        let program = assemble(AUDIT_ARCH_X86_64, Syscalls { clone: 56, clone3: 435, fork: Some(57) });
        let traced = TRACE | u32::from(FORK_MARK);
        for (arch, number, flags, expected) in [
            (AUDIT_ARCH_X86_64, 57, 0, traced),
            (AUDIT_ARCH_X86_64, 56, 0x0120_0011, traced),
            (AUDIT_ARCH_X86_64, 56, 0x003d_0f00, ALLOW),
            (AUDIT_ARCH_X86_64, 435, 0, ENOSYS),
            (AUDIT_ARCH_X86_64, 58, 0, ALLOW),
            (AUDIT_ARCH_X86_64, 0, 0x11, ALLOW),
            (AUDIT_ARCH_X86_64, X32_BIT | 57, 0, ALLOW),
            (0x4000_0003, 57, 0, ALLOW),
        ] {
            assert_eq!(run_with(&program, arch, number, flags), Some(expected), "{arch:x} {number} {flags:x}");
        }
    }

    #[test]
    fn a_machine_without_fork_is_served_too() {
        let program = assemble(AUDIT_ARCH_X86_64, Syscalls { clone: 220, clone3: 435, fork: None });
        assert_eq!(run_with(&program, AUDIT_ARCH_X86_64, 220, 17), Some(TRACE | u32::from(FORK_MARK)));
        assert_eq!(run_with(&program, AUDIT_ARCH_X86_64, 435, 17), Some(ENOSYS));
        assert_eq!(run_with(&program, AUDIT_ARCH_X86_64, 57, 17), Some(ALLOW));
    }
}
