//! System calls that a stopped tracee makes for its tracer: its registers are set as for a call, and it steps over the one
//! instruction that makes it. What its program had in its registers is the tracer's to put back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::register::{INSTRUCTION, find_instruction};
use super::{Call, Event, Registers, Resume, Stop, Tracee};
use crate::error::{Context, Error, Kind, Result};

/// The instruction of a system call in the memory of a process, its copies and those that share it.
#[derive(Debug, Clone, Copy)]
pub struct Gate(u64);

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injected {
    /// The value.
    pub value: u64,
    /// The process or thread that it has made, by its id in our pid namespace.
    pub born: Option<Tracee>,
}

/// `AT_SYSINFO_EHDR` of getauxval(3).
const VDSO: u64 = libc::AT_SYSINFO_EHDR;

impl Gate {
    /// Looks for it in a process that has just executed a program, before anything of that ran.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] on a machine whose kernel maps no code into processes (vdso(7)).
    pub fn find(tracee: Tracee) -> Result<Self> {
        let pid = tracee.pid();
        let operation = || format!("find the kernel's code (vDSO) in process {pid}");
        let auxiliary = fs::read(format!("/proc/{pid}/auxv")).context(operation)?;
        let words: Vec<u64> = auxiliary.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        let base = words.as_chunks::<2>().0.iter().find(|[key, _]| *key == VDSO).map(|[_, value]| *value);
        let base = base.ok_or_else(|| Error::new(Kind::Unsupported, operation(), "it has none"))?;
        let mut code = vec![0; 8 << 10];
        let length = File::open(format!("/proc/{pid}/mem")).and_then(|file| file.read_at(&mut code, base));
        code.truncate(length.context(operation)?);
        Ok(Self(base + find_instruction(&code)?))
    }

    /// Whether the instruction is still there.
    ///
    /// # Errors
    /// Those of process_vm_readv(2).
    pub fn is_there(self, tracee: Tracee) -> Result<bool> {
        let mut found = [0; INSTRUCTION.len()];
        Ok(tracee.read(self.0, &mut found)? && found == INSTRUCTION)
    }
}

impl Tracee {
    /// Makes a stopped tracee call, and leaves it stopped behind that. `base` are any registers of it.
    ///
    /// # Errors
    /// The call's own, with its number; [`Kind::Damaged`] if another instruction is at the gate; [`Kind::State`] if the
    /// tracee has ended; [`Kind::Busy`] if the call does not return in time.
    pub fn call(self, gate: Gate, base: &Registers, call: &Call, deadline: Instant) -> Result<Injected> {
        if !call.memory.is_empty() && !self.write(call.scratch, &call.memory)? {
            return Err(self.changed("its scratch memory is gone"));
        }
        self.begin(gate, base, call)?;
        let mut born = None;
        loop {
            match self.wait(deadline)? {
                None => return Err(self.late(call)),
                Some(Stop::Signal(libc::SIGTRAP)) => break,
                Some(Stop::Event(Event::Born)) => born = Some(Self::inherited(id_of(self.message()?))),
                Some(Stop::Event(_) | Stop::Group) => {}
                Some(Stop::Signal(signal)) => {
                    return Err(self.changed(&format!("signal {signal} came instead of the end of {}", call.name)));
                }
                Some(Stop::Ended(status)) => return Err(self.ended(&status.to_string())),
            }
            self.resume(Resume::Step, 0)?;
        }
        let registers = self.registers()?;
        if !registers.has_called(gate.0) {
            return Err(self.changed("the kernel's code (vDSO) in it is another"));
        }
        let value = check(registers.result()).context(|| format!("{} in process {}", call.name, self.pid()))?;
        Ok(Injected { value, born })
    }

    /// Makes a stopped tracee call clone(2), and leaves it stopped in the middle of that, for good: it can only be killed
    /// then. Returns the child.
    ///
    /// # Errors
    /// As [`Tracee::call`].
    pub fn call_once(self, gate: Gate, base: &Registers, call: &Call, deadline: Instant) -> Result<Self> {
        self.begin(gate, base, call)?;
        loop {
            match self.wait(deadline)? {
                None => return Err(self.late(call)),
                Some(Stop::Event(Event::Born)) => return Ok(Self::inherited(id_of(self.message()?))),
                Some(Stop::Event(_) | Stop::Group) => {
                    self.resume(Resume::Step, 0)?;
                }
                Some(Stop::Signal(_)) => {
                    let result = self.registers()?.result();
                    check(result).context(|| format!("{} in process {}", call.name, self.pid()))?;
                    return Err(self.changed("the kernel's code (vDSO) in it is another"));
                }
                Some(Stop::Ended(status)) => return Err(self.ended(&status.to_string())),
            }
        }
    }

    fn begin(self, gate: Gate, base: &Registers, call: &Call) -> Result<()> {
        self.set_registers(&base.calling(gate.0, call.syscall, call.arguments))?;
        match self.resume(Resume::Step, 0)? {
            true => Ok(()),
            false => Err(self.ended("by force")),
        }
    }

    /// Reads its memory; `false` if not all of it is there.
    ///
    /// # Errors
    /// Those of process_vm_readv(2).
    pub fn read(self, address: u64, space: &mut [u8]) -> Result<bool> {
        let local = libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: space.len() };
        let remote = remote(address, space.len());
        // SAFETY: the call reads both vectors, which live across it, and writes at most as many bytes as the first says to
        // the space that it leads to, which is borrowed for writing; addresses of the other process are numbers.
        let result = unsafe { libc::process_vm_readv(self.pid(), &raw const local, 1, &raw const remote, 1, 0) };
        self.moved(result, space.len(), "read")
    }

    /// Writes to its memory, where it could write itself; `false` if not all of it is there.
    ///
    /// # Errors
    /// Those of process_vm_writev(2).
    pub fn write(self, address: u64, bytes: &[u8]) -> Result<bool> {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let remote = remote(address, bytes.len());
        // SAFETY: the call reads both vectors, which live across it, and reads at most as many bytes as the first says from
        // the slice that it leads to; addresses of the other process are numbers.
        let result = unsafe { libc::process_vm_writev(self.pid(), &raw const local, 1, &raw const remote, 1, 0) };
        self.moved(result, bytes.len(), "write")
    }

    fn moved(self, result: isize, wanted: usize, what: &str) -> Result<bool> {
        match usize::try_from(result) {
            Ok(length) => Ok(length == wanted),
            Err(_) => match nix::errno::Errno::last() {
                nix::errno::Errno::EFAULT => Ok(false),
                errno => Err(errno).context(|| format!("{what} memory of process {}", self.pid())),
            },
        }
    }

    /// The tracee is not what it was.
    fn changed(self, cause: &str) -> Error {
        Error::new(Kind::Damaged, format!("make a call in process {}", self.pid()), cause)
    }

    fn ended(self, how: &str) -> Error {
        Error::new(Kind::State, format!("make a call in process {}", self.pid()), format!("it has ended {how}"))
    }

    fn late(self, call: &Call) -> Error {
        let operation = format!("{} in process {}", call.name, self.pid());
        Error::new(Kind::Busy, operation, "it did not return in time")
    }
}

fn remote(address: u64, length: usize) -> libc::iovec {
    let address = usize::try_from(address).unwrap_or_default();
    libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: length }
}

fn id_of(message: u64) -> i32 {
    i32::try_from(message).unwrap_or_default()
}

/// The kernel's way to return errors: the last 4,095 numbers.
fn check(result: i64) -> std::io::Result<u64> {
    match result {
        -4095..=-1 => Err(std::io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or_default())),
        value => Ok(value.cast_unsigned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_near_zero_are_errors() {
        assert_eq!(check(-1).unwrap_err().raw_os_error(), Some(1));
        assert_eq!(check(-4096).unwrap(), (-4096_i64).cast_unsigned());
        assert_eq!(check(7).unwrap(), 7);
    }
}
