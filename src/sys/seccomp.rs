//! Loading a filter of system calls that was compiled before.

use std::os::fd::{FromRawFd, OwnedFd};

use crate::error::{Context, Error, Kind, Result};

/// One instruction of classic BPF, as the kernel's `struct sock_filter` has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if a comparison is true.
    pub jt: u8,
    /// How many to skip if it is false.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Instruction {
    /// The size of one in bytes.
    pub const SIZE: usize = size_of::<Self>();

    /// From the bytes that a compiler on this machine wrote.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, jt, jf, k @ ..] = bytes;
        Self { code: u16::from_ne_bytes([a, b]), jt, jf, k: u32::from_ne_bytes(k) }
    }

    /// The bytes as the kernel reads them.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let ([a, b], [c, d, e, f]) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [a, b, self.jt, self.jf, c, d, e, f]
    }
}

/// `SECCOMP_FILTER_FLAG_TSYNC`: for all threads.
pub const TSYNC: u32 = 1;
/// `SECCOMP_FILTER_FLAG_LOG`: log every action but ALLOW.
pub const LOG: u32 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: leave speculative store bypass on.
pub const SPEC_ALLOW: u32 = 1 << 2;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: make a descriptor that receives notifications.
pub const NEW_LISTENER: u32 = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`: a call that was received by the listener waits for fatal signals only.
pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Puts the calling process under a filter, for good. With [`NEW_LISTENER`] among the flags, returns the listener,
/// which is close-on-exec.
///
/// # Errors
/// Those of seccomp(2): EACCES without no_new_privs and CAP_SYS_ADMIN, EINVAL for a filter that is too long or a flag
/// that the kernel does not know, EBUSY for a second listener.
pub fn load_filter(program: &[Instruction], flags: u32) -> Result<Option<OwnedFd>> {
    let operation = || "load the seccomp filter";
    let length = u16::try_from(program.len()).map_err(|_| {
        Error::new(Kind::Unsupported, operation(), format!("{} instructions are too many", program.len()))
    })?;
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: seccomp(SET_MODE_FILTER) reads `len` sock_filters through the pointer and writes nothing; both live
    // until the call returns, and Instruction has the layout of sock_filter.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&header)) };
    match result {
        -1 => Err(std::io::Error::last_os_error()).context(operation),
        fd if flags & NEW_LISTENER != 0 => {
            let fd = i32::try_from(fd).map_err(|_| Error::new(Kind::System, operation(), "no descriptor came back"))?;
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        0 => Ok(None),
        thread => Err(Error::new(Kind::System, operation(), format!("thread {thread} has another filter"))),
    }
}

/// Whether this kernel knows a flag: it looks at the flags first, and then misses the filter.
#[must_use]
pub fn takes_flag(flag: u32) -> bool {
    // This one is for listeners only.
    let flags = if flag == WAIT_KILLABLE_RECV { flag | NEW_LISTENER } else { flag };
    let nothing: *const libc::sock_fprog = std::ptr::null();
    // SAFETY: without a filter to read the call always fails, and changes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, nothing) };
    result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_the_layout_of_the_kernels() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
        assert_eq!(align_of::<Instruction>(), align_of::<libc::sock_filter>());
        let mut bytes = [0, 0, 1, 2, 0, 0, 0, 0];
        bytes[..2].copy_from_slice(&0x15_u16.to_ne_bytes());
        bytes[4..].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(Instruction::from_bytes(bytes), Instruction { code: 0x15, jt: 1, jf: 2, k: 7 });
    }

    #[test]
    fn the_kernel_says_which_flags_it_knows() {
        assert!([LOG, TSYNC, SPEC_ALLOW].into_iter().all(takes_flag));
        assert!(!takes_flag(1 << 30));
    }

    #[test]
    fn a_filter_that_is_too_long_is_refused_before_the_kernel_sees_it() {
        let endless = vec![Instruction { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 }; 70_000];
        assert_eq!(load_filter(&endless, 0).unwrap_err().kind(), Kind::Unsupported);
    }
}
