//! Instructions of filters that we write ourselves, and a machine that runs them for tests.

use crate::sys::seccomp::Instruction;

/// x86_64 and x32 have one architecture for the kernel; numbers of x32 have this bit.
pub(super) const X32_BIT: u32 = 0x4000_0000;
pub(super) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// `SECCOMP_RET_ALLOW`.
pub(super) const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_USER_NOTIF`.
pub(super) const NOTIFY: u32 = 0x7fc0_0000;
/// `SECCOMP_RET_TRACE`.
pub(super) const TRACE: u32 = 0x7ff0_0000;
/// `SECCOMP_RET_ERRNO | ENOSYS`.
pub(super) const ENOSYS: u32 = 0x0005_0000 | nix::errno::Errno::ENOSYS as u32;

/// Offsets into `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub(super) const JUMP_IF_ABOVE: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(super) const JUMP_IF_AT_LEAST: u16 = 0x35;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Takes a word of the call into the accumulator.
pub(super) fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

/// Ends with an answer.
pub(super) fn answer(what: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: what }
}

/// What a program does with a call: an answer, or nothing, if it ends just behind its last instruction.
#[cfg(test)]
pub(super) fn run(program: &[Instruction], arch: u32, number: u32) -> Option<u32> {
    run_with(program, arch, number, 0)
}

/// The same, of a call with such a first argument.
#[cfg(test)]
pub(super) fn run_with(program: &[Instruction], arch: u32, number: u32, argument: u32) -> Option<u32> {
    let (mut at, mut accumulator) = (0, 0);
    while let Some(instruction) = program.get(at) {
        let choose = |truth: bool| usize::from(if truth { instruction.jt } else { instruction.jf });
        at += 1 + match instruction.code {
            LOAD => {
                accumulator = match instruction.k {
                    NUMBER => number,
                    ARCHITECTURE => arch,
                    _ => argument,
                };
                0
            }
            0x45 => choose(accumulator & instruction.k != 0),
            JUMP => instruction.k as usize,
            JUMP_IF_EQUAL => choose(accumulator == instruction.k),
            JUMP_IF_ABOVE => choose(accumulator > instruction.k),
            JUMP_IF_AT_LEAST => choose(accumulator >= instruction.k),
            RETURN => return Some(instruction.k),
            code => panic!("code {code}"),
        };
    }
    assert_eq!(at, program.len(), "a jump beyond the end");
    None
}
