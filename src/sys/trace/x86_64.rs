//! x86_64: sysdeps/x86_64 of any C library, and linux/arch/x86/entry.

use nix::errno::Errno;

use crate::sys::trace::Tracee;

/// `syscall`
pub(in crate::sys::trace) const INSTRUCTION: [u8; 2] = [0x0f, 0x05];
/// Instructions begin anywhere.
pub(super) const ALIGNMENT: usize = 1;
/// `NT_X86_XSTATE`
pub(super) const VECTOR_SETS: [i32; 1] = [0x202];
/// More than any processor has.
pub(super) const VECTOR_SPACE: usize = 16 << 10;

/// What the kernel calls `user_regs_struct`.
#[derive(Debug, Clone, Copy)]
pub(super) struct General(libc::user_regs_struct);

impl General {
    pub(super) fn zeroed() -> Self {
        // SAFETY: all-zero bytes are a valid value of this structure of numbers.
        Self(unsafe { std::mem::zeroed() })
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = (&raw mut self.0).cast::<u8>();
        // SAFETY: the structure is borrowed for as long as the bytes are, has exactly so many, no padding (27 words), and
        // any bytes are numbers.
        unsafe { std::slice::from_raw_parts_mut(start, size_of::<libc::user_regs_struct>()) }
    }
}

pub(super) fn call(registers: &General) -> (u64, [u64; 6]) {
    let General(r) = registers;
    (r.orig_rax, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9])
}

pub(super) fn result(registers: &General) -> i64 {
    registers.0.rax.cast_signed()
}

pub(super) fn returning(mut registers: General, result: i64) -> General {
    // No call is in progress any more, so none is begun anew.
    registers.0.orig_rax = u64::MAX;
    registers.0.rax = result.cast_unsigned();
    registers
}

pub(super) fn calling(mut registers: General, gate: u64, number: u64, arguments: [u64; 6]) -> General {
    let r = &mut registers.0;
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = arguments;
    // Nothing that another instruction than `syscall` could take for an argument.
    [r.rbx, r.rcx, r.rbp, r.r11] = [0; 4];
    (r.rip, r.rax, r.orig_rax) = (gate, number, u64::MAX);
    registers
}

pub(super) fn has_called(registers: &General, gate: u64) -> bool {
    // `syscall` leaves the address behind it in rcx, and no other instruction of two bytes does.
    (registers.0.rip, registers.0.rcx) == (after_call(gate), after_call(gate))
}

/// The address behind the instruction.
fn after_call(gate: u64) -> u64 {
    gate + 2
}

/// Nothing is left to say beside the registers.
pub(super) fn settle(_tracee: Tracee, _registers: &General) -> Result<(), Errno> {
    Ok(())
}
