//! aarch64: linux/arch/arm64/kernel/{ptrace,syscall}.c. Written by the kernel's sources, and not run yet.

use nix::errno::Errno;

use crate::sys::trace::Tracee;

/// `svc #0`
pub(in crate::sys::trace) const INSTRUCTION: [u8; 4] = [0x01, 0x00, 0x00, 0xd4];
/// Instructions are words.
pub(super) const ALIGNMENT: usize = 4;
/// `NT_PRFPREG` and `NT_ARM_TLS`
pub(super) const VECTOR_SETS: [i32; 2] = [2, 0x401];
/// `struct user_fpsimd_state` has 528 bytes, and the thread's registers two words.
pub(super) const VECTOR_SPACE: usize = 4 << 10;
/// `NT_ARM_SYSTEM_CALL`
const SYSTEM_CALL: i32 = 0x404;

/// What the kernel calls `user_pt_regs`, with the number of the call beside it.
#[derive(Debug, Clone, Copy)]
pub(super) struct General {
    registers: libc::user_regs_struct,
    /// Whether a call in progress goes on.
    forgets_call: bool,
}

impl General {
    pub(super) fn zeroed() -> Self {
        // SAFETY: all-zero bytes are a valid value of this structure of numbers.
        Self { registers: unsafe { std::mem::zeroed() }, forgets_call: false }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = (&raw mut self.registers).cast::<u8>();
        // SAFETY: the structure is borrowed for as long as the bytes are, has exactly so many, no padding (34 words), and
        // any bytes are numbers.
        unsafe { std::slice::from_raw_parts_mut(start, size_of::<libc::user_regs_struct>()) }
    }
}

pub(super) fn call(registers: &General) -> (u64, [u64; 6]) {
    let r = &registers.registers.regs;
    // clone(2) has its fourth and fifth argument the other way round here; callers know x86_64's order.
    (r[8], [r[0], r[1], r[2], r[4], r[3], r[5]])
}

pub(super) fn result(registers: &General) -> i64 {
    registers.registers.regs[0].cast_signed()
}

pub(super) fn returning(mut registers: General, result: i64) -> General {
    registers.forgets_call = true;
    registers.registers.regs[0] = result.cast_unsigned();
    registers
}

pub(super) fn calling(mut registers: General, gate: u64, number: u64, arguments: [u64; 6]) -> General {
    let r = &mut registers.registers;
    r.regs[..6].copy_from_slice(&arguments);
    if number == libc::SYS_clone.cast_unsigned() {
        r.regs.swap(3, 4);
    }
    (r.regs[8], r.pc) = (number, gate);
    registers.forgets_call = true;
    registers
}

pub(super) fn has_called(registers: &General, gate: u64) -> bool {
    registers.registers.pc == after_call(gate)
}

/// The address behind the instruction.
fn after_call(gate: u64) -> u64 {
    gate + 4
}

/// The number of the call is no register of the program.
pub(super) fn settle(tracee: Tracee, registers: &General) -> Result<(), Errno> {
    if registers.forgets_call {
        return tracee.set_set(SYSTEM_CALL, &mut (-1_i32).to_ne_bytes());
    }
    Ok(())
}
