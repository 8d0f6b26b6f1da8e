//! Registers of a stopped tracee, as far as system calls go; one part for each processor.

#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
mod machine;

use nix::errno::Errno;

pub(super) use machine::INSTRUCTION;

use super::{Syscall, Tracee};
use crate::error::{Context, Error, Kind, Result};

/// The general registers.
#[derive(Debug, Clone, Copy)]
pub struct Registers(machine::General);

/// The registers of floating point and vectors, and on some machines that of the thread's own memory.
#[derive(Debug, Clone)]
pub struct Vectors(Vec<(i32, Vec<u8>)>);

impl Registers {
    /// The call at which a filter has stopped the tracee.
    #[must_use]
    pub fn call(&self) -> (u64, [u64; 6]) {
        machine::call(&self.0)
    }

    /// What a call has returned: a value, or an error's number below zero.
    #[must_use]
    pub fn result(&self) -> i64 {
        machine::result(&self.0)
    }

    /// The same as if the call at which the tracee is stopped had returned this.
    #[must_use]
    pub fn returning(&self, result: i64) -> Self {
        Self(machine::returning(self.0, result))
    }

    /// The same, about to make a call by the instruction at `gate`.
    #[must_use]
    pub(super) fn calling(&self, gate: u64, call: Syscall, arguments: [u64; 6]) -> Self {
        Self(machine::calling(self.0, gate, call.number(), arguments))
    }

    /// Whether the instruction at `gate` was that of a call, and nothing else was run.
    #[must_use]
    pub(super) fn has_called(&self, gate: u64) -> bool {
        machine::has_called(&self.0, gate)
    }
}

impl Tracee {
    /// Its general registers.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_GETREGSET).
    pub fn registers(self) -> Result<Registers> {
        let mut registers = machine::General::zeroed();
        self.get_set(libc::NT_PRSTATUS, registers.bytes_mut())
            .context(|| format!("read the registers of process {}", self.pid()))?;
        Ok(Registers(registers))
    }

    /// Sets them. A call at which the tracee is stopped is not made then, unless the registers still say so.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_SETREGSET).
    pub fn set_registers(self, registers: &Registers) -> Result<()> {
        let mut general = registers.0;
        self.set_set(libc::NT_PRSTATUS, general.bytes_mut())
            .and_then(|()| machine::settle(self, &general))
            .context(|| format!("set the registers of process {}", self.pid()))
    }

    /// Its other registers.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_GETREGSET).
    pub fn vectors(self) -> Result<Vectors> {
        let get = |kind: i32| {
            let mut space = vec![0_u8; machine::VECTOR_SPACE];
            let length = self.get_set(kind, &mut space)?;
            space.truncate(length);
            Ok((kind, space))
        };
        let sets: std::result::Result<_, Errno> = machine::VECTOR_SETS.iter().map(|kind| get(*kind)).collect();
        Ok(Vectors(sets.context(|| format!("read the vectors of process {}", self.pid()))?))
    }

    /// Sets them.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_SETREGSET).
    pub fn set_vectors(self, vectors: &mut Vectors) -> Result<()> {
        for (kind, bytes) in &mut vectors.0 {
            self.set_set(*kind, bytes).context(|| format!("set the vectors of process {}", self.pid()))?;
        }
        Ok(())
    }

    fn get_set(self, kind: i32, space: &mut [u8]) -> std::result::Result<usize, Errno> {
        self.transfer(libc::PTRACE_GETREGSET, kind, space)
    }

    pub(super) fn set_set(self, kind: i32, bytes: &mut [u8]) -> std::result::Result<(), Errno> {
        self.transfer(libc::PTRACE_SETREGSET, kind, bytes).map(|_| ())
    }

    fn transfer(self, request: libc::c_uint, kind: i32, space: &mut [u8]) -> std::result::Result<usize, Errno> {
        let mut vector = libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: space.len() };
        // SAFETY: the request reads the vector, moves at most so many bytes as it says to or from the space that it leads
        // to, which is borrowed for writing, and writes how many into the vector; both outlive the call.
        let result = unsafe { libc::ptrace(request, self.pid(), i64::from(kind), &raw mut vector) };
        if result == -1 { Err(Errno::last()) } else { Ok(vector.iov_len) }
    }
}

/// Where the instruction of a system call is in the code that the kernel maps into every process.
///
/// # Errors
/// [`Kind::Unsupported`] if there is none.
pub(super) fn find_instruction(code: &[u8]) -> Result<u64> {
    // Behind the header of the image, whose numbers may look like code.
    const HEADER: usize = 0x40;
    let mut found = code.windows(INSTRUCTION.len()).enumerate().skip(HEADER).step_by(machine::ALIGNMENT);
    let found = found.find(|(_, bytes)| *bytes == INSTRUCTION);
    found
        .and_then(|(at, _)| u64::try_from(at).ok())
        .ok_or_else(|| Error::new(Kind::Unsupported, "find a system call in the kernel's code (vDSO)", "there is none"))
}
