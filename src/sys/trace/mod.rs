//! Tracing of other processes (ptrace(2)): their stops, registers and memory, and system calls that they make for us.
//!
//! A tracee belongs to the *thread* that seized it, and everything it has or makes (threads, children) is seized with it.
//! It is stopped between [`Tracee::wait`] and [`Tracee::resume`]; nothing else here works on one that runs. If the tracer
//! ends, the kernel kills what it traced.

mod call;
mod inject;
mod register;
mod stop;

use std::io;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal as Name, pthread_sigmask, raise};

pub use call::{Call, SYSCALLS, Syscall, Syscalls};
pub use inject::{Gate, Injected};
pub use register::{Registers, Vectors};
pub use stop::{Event, Stop};

use crate::error::{Context, Error, Kind, Result};

/// A process or thread that the calling thread traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tracee(i32);

/// How a stopped tracee goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Until it is stopped by something.
    Run,
    /// For one instruction.
    Step,
    /// It stays in a stop of job control, and its end or the next signal is told.
    Listen,
}

/// How a thread has registered its area for restartable sequences (rseq(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// Where it is.
    pub address: u64,
    /// How large it is, in bytes.
    pub size: u32,
    /// What stands before every place where a sequence is broken off.
    pub signature: u32,
}

/// `linux/ptrace.h`; the C library gives it for some machines only.
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// How many signals the kernel has, in bytes of a mask.
const MASK_BYTES: usize = 8;

/// Every signal is told of while they are masked here, so that [`Tracee::wait`] hears of stops. The calling thread stays so.
///
/// # Errors
/// Those of sigmask.
pub fn listen_for_stops() -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Name::SIGCHLD);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None).context(|| "block SIGCHLD")
}

/// Lets SIGCHLD arrive once more: [`Tracee::wait`] may have taken one that told of somebody else.
pub fn tell_of_stops_again() {
    // Can fail for a signal that does not exist only.
    let _ = raise(Name::SIGCHLD);
}

impl Tracee {
    /// Begins to trace a process, which goes on as it is. Its children and threads will be traced too, and it is stopped
    /// when it executes a program, when it makes a child or a thread, and by filters that say `SECCOMP_RET_TRACE`.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_SEIZE): EPERM for one that is traced already, ESRCH.
    pub fn seize(pid: i32) -> Result<Self> {
        let options = libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_EXITKILL;
        let tracee = Self(pid);
        tracee.request(libc::PTRACE_SEIZE, 0, options as usize).context(|| format!("trace process {pid}"))?;
        Ok(tracee)
    }

    /// One that is traced because whoever made it is.
    #[must_use]
    pub fn inherited(pid: i32) -> Self {
        Self(pid)
    }

    /// Its id, in our pid namespace.
    #[must_use]
    pub fn pid(self) -> i32 {
        self.0
    }

    /// Lets it go on, with a signal if the stop was the delivery of one (0 for none). `false` if it was killed meanwhile.
    ///
    /// # Errors
    /// Those of ptrace(2).
    pub fn resume(self, how: Resume, signal: i32) -> Result<bool> {
        let request = match how {
            Resume::Run => libc::PTRACE_CONT,
            Resume::Step => libc::PTRACE_SINGLESTEP,
            Resume::Listen => libc::PTRACE_LISTEN,
        };
        match self.request(request, 0, usize::try_from(signal).unwrap_or_default()) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno).context(|| format!("let process {} go on", self.0)),
        }
    }

    /// Lets it go for good.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_DETACH).
    pub fn detach(self) -> Result<()> {
        self.request(libc::PTRACE_DETACH, 0, 0).context(|| format!("let process {} go", self.0))
    }

    /// Kills it, whatever it does. Its end is told by [`Tracee::wait`].
    pub fn kill(self) {
        // Whoever is gone is gone.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0), Name::SIGKILL);
    }

    /// What an event comes with: the new process's id, the former id at an execution, the filter's data.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_GETEVENTMSG).
    pub fn message(self) -> Result<u64> {
        let mut message: libc::c_ulong = 0;
        self.request(libc::PTRACE_GETEVENTMSG, 0, (&raw mut message).expose_provenance())
            .context(|| format!("ask what has stopped process {}", self.0))?;
        Ok(message)
    }

    /// Which signals are held back from it, as bits from signal 1 on.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_GETSIGMASK).
    pub fn signal_mask(self) -> Result<u64> {
        let mut mask = 0_u64;
        self.request(libc::PTRACE_GETSIGMASK, MASK_BYTES, (&raw mut mask).expose_provenance())
            .context(|| format!("read the signal mask of process {}", self.0))?;
        Ok(mask)
    }

    /// Sets them.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_SETSIGMASK).
    pub fn set_signal_mask(self, mask: u64) -> Result<()> {
        self.request(libc::PTRACE_SETSIGMASK, MASK_BYTES, (&raw const mask).expose_provenance())
            .context(|| format!("set the signal mask of process {}", self.0))
    }

    /// Its area for restartable sequences; `None` if it has none, or the kernel (before 5.13) does not tell.
    ///
    /// # Errors
    /// Those of ptrace(PTRACE_GET_RSEQ_CONFIGURATION).
    pub fn sequences(self) -> Result<Option<Sequences>> {
        // address, size, signature, flags, padding
        let mut found = [0_u64; 3];
        let request = GET_RSEQ_CONFIGURATION;
        match self.request(request, size_of_val(&found), (&raw mut found).expose_provenance()) {
            Err(Errno::EIO | Errno::EINVAL) => return Ok(None),
            other => other.context(|| format!("read the restartable sequences of process {}", self.0))?,
        }
        let [size, signature] = halves(found[1]);
        Ok((found[0] != 0).then_some(Sequences { address: found[0], size, signature }))
    }

    /// The next stop, or the end, which is reaped. `None` if there is none when the time is over.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not ours any more (its end was told as another's, at an execution).
    pub fn wait(self, deadline: Instant) -> Result<Option<Stop>> {
        loop {
            if let Some(stop) = self.look()? {
                return Ok(Some(stop));
            }
            if !await_stop(deadline) {
                return Ok(None);
            }
        }
    }

    /// A stop that has happened; `None` if there is none.
    ///
    /// # Errors
    /// As [`Tracee::wait`].
    pub fn look(self) -> Result<Option<Stop>> {
        let mut status = 0;
        // SAFETY: the kernel writes one number, to which the pointer leads.
        let result = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL | libc::WNOHANG) };
        match result {
            0 => Ok(None),
            -1 => match Errno::last() {
                Errno::EINTR => Ok(None),
                Errno::ECHILD => Err(Error::new(Kind::NotFound, format!("wait for process {}", self.0), "it is gone")),
                errno => Err(errno).context(|| format!("wait for process {}", self.0)),
            },
            _ => Ok(Some(stop::decode(status))),
        }
    }

    /// `ptrace(request, pid, address, data)`, for requests whose numbers are numbers or lead to what outlives the call.
    fn request(self, request: libc::c_uint, address: usize, data: usize) -> std::result::Result<(), Errno> {
        let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(address);
        let data = std::ptr::with_exposed_provenance_mut::<libc::c_void>(data);
        // SAFETY: every caller in this module passes numbers, or addresses of its own variables of the size that the
        // request reads or writes, exposed before; another thread's memory is changed by none of them but the tracee's.
        let result = unsafe { libc::ptrace(request, self.0, address, data) };
        if result == -1 { Err(Errno::last()) } else { Ok(()) }
    }
}

/// A stop of somebody that is traced and whom nobody has heard of: it was made by one that was killed before its event
/// could be told. It is left for [`Tracee::look`].
#[must_use]
pub fn find_stopped() -> Option<Tracee> {
    // SAFETY: all-zero bytes are a valid value of this plain C structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WSTOPPED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
    // SAFETY: the kernel writes one structure, to which the pointer leads.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    if result == -1 {
        return None;
    }
    // SAFETY: waitid fills the fields of SIGCHLD, of which this is one; it is 0 if there is nothing.
    let pid = unsafe { info.si_pid() };
    (pid != 0).then_some(Tracee(pid))
}

/// Until SIGCHLD comes; `false` if the time is over before.
#[must_use]
pub fn await_stop(deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left == Duration::ZERO {
        return false;
    }
    let mut set = SigSet::empty();
    set.add(Name::SIGCHLD);
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    // SAFETY: both pointers lead to values that live across the call; nothing is written.
    let result = unsafe { libc::sigtimedwait(set.as_ref(), null_mut(), &raw const time) };
    result != -1 || io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
}

/// The two halves of a word as they lie in memory.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}
