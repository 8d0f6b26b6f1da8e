//! bpf(2), as far as device rules of cgroup version 2 need it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Context, Result};

/// `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and source.
    pub code: u8,
    /// Destination in the low four bits, source in the high ones (little-endian machines; see [`Instruction`]).
    pub registers: u8,
    /// Of a jump, in instructions; of a load, in bytes.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

impl Instruction {
    /// The two registers are bit fields, which compilers lay out by the machine's byte order.
    fn native(mut self) -> Self {
        if cfg!(target_endian = "big") {
            self.registers = self.registers.rotate_left(4);
        }
        self
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes those that are left out as zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device program and attaches it to a cgroup, beside those that are there: an access is allowed if all of them
/// allow it. The program goes with the cgroup.
///
/// # Errors
/// Those of bpf(2), `EPERM` above all; with the verifier's last words if it finds fault with the program.
pub fn attach_device_program(program: &[Instruction], cgroup: &File) -> Result<()> {
    let program = load(program)?;
    let attributes = Attach {
        target: number(cgroup.as_raw_fd()),
        program: number(program.as_raw_fd()),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    call(BPF_PROG_ATTACH, &attributes).map(drop).context(|| "attach the device program")
}

fn load(program: &[Instruction]) -> Result<OwnedFd> {
    let program: Vec<Instruction> = program.iter().map(|instruction| instruction.native()).collect();
    let mut attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: address(program.as_ptr()),
        license: address(c"Apache-2.0".as_ptr()),
        ..Load::default()
    };
    let result = match call(BPF_PROG_LOAD, &attributes) {
        // Only a program that the verifier refuses is loaded again, for its reasons: the log costs memory.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) => {
            let mut log = vec![0_u8; 64 << 10];
            attributes.log_level = 1;
            attributes.log_size = u32::try_from(log.len()).unwrap_or_default();
            attributes.log_buffer = address(log.as_mut_ptr());
            call(BPF_PROG_LOAD, &attributes).context(|| {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                let text = String::from_utf8_lossy(&log[..end]);
                let words = text.lines().rfind(|line| !line.starts_with("processed")).unwrap_or_default();
                format!("load the device program ({words})")
            })?
        }
        other => other.context(|| "load the device program")?,
    };
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// A descriptor or zero.
fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the structure is one of those above, laid out as the command's part of union bpf_attr and of the size
    // that is given; what its addresses point to lives in the caller across the call, and is written only if it is a
    // log buffer, which the caller holds as mutable.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(result).map_err(io::Error::other) }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer as usize as u64
}

fn number(descriptor: RawFd) -> u32 {
    descriptor.cast_unsigned()
}
