//! A child made by clone3(2): a copy of this process that goes on in Rust, in namespaces and a cgroup of its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use nix::sched::CloneFlags;
use rustix::io::{Errno, FdFlags};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::process::Process;

/// clone3(2)'s flag, which the C library's type is too narrow for.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// How a child comes into the world.
#[derive(Debug, Clone, Copy)]
pub struct Birth<'fd> {
    /// New namespaces. A user namespace among them is made first and owns the others.
    pub namespaces: CloneFlags,
    /// A directory of the unified hierarchy to be born in.
    pub cgroup: Option<BorrowedFd<'fd>>,
    /// Whose child it is.
    pub parent: Parent,
}

/// Whose child a clone is: who is told of its end, and reaps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The caller's.
    Caller,
    /// That of the caller's own parent: the caller is only an intermediate.
    Grandparent,
}

/// Runs `child` in a copy of this process, which ends with the status that it returns.
///
/// Memory is copied, not shared, and only the calling thread lives on in the copy: the caller has no other, or a lock
/// that another one held would never be opened again.
///
/// # Errors
/// Those of clone3(2).
pub fn spawn(birth: Birth<'_>, child: impl FnOnce() -> i32) -> Result<Process> {
    clone3(birth, child).context(|| "clone a process")
}

/// As [`spawn`], with the kernel's own error.
///
/// # Errors
/// Those of clone3(2).
pub fn try_spawn(birth: Birth<'_>, child: impl FnOnce() -> i32) -> std::result::Result<Process, Errno> {
    clone3(birth, child)
}

fn clone3(birth: Birth<'_>, child: impl FnOnce() -> i32) -> std::result::Result<Process, Errno> {
    let mut pidfd: RawFd = -1;
    let mut flags =
        u64::try_from(birth.namespaces.bits()).unwrap_or_default() | u64::from(libc::CLONE_PIDFD.unsigned_abs());
    let mut exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    let mut cgroup = 0;
    if let Some(directory) = birth.cgroup {
        flags |= INTO_CGROUP;
        cgroup = u64::try_from(directory.as_raw_fd()).unwrap_or_default();
    }
    if birth.parent == Parent::Grandparent {
        flags |= u64::from(libc::CLONE_PARENT.unsigned_abs());
        // The kernel takes the caller's own.
        exit_signal = 0;
    }
    let arguments = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup,
    };
    // SAFETY: the structure lives across the call and its size is given; without a stack of its own and without
    // CLONE_VM the child returns here on a copy of this stack, as from fork; `pidfd` is where the kernel may write.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        0 => {
            // A panic must not climb into the caller's frames, of which the parent has the originals.
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends this process without running what the parent registered to run at its own end.
            unsafe { libc::_exit(status) }
        }
        pid => {
            // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Process::adopt(i32::try_from(pid).unwrap_or_default(), pidfd))
        }
    }
}

/// Marks every descriptor from `first` on to be closed when a program is executed.
///
/// # Errors
/// Those of close_range(2).
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: the call only sets a flag of descriptors; none is closed by it.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context(|| "mark descriptors for closing") }
}

/// Closes every descriptor from `first` on but these. For a cloned process, which has copies of all that its maker had
/// open, and never returns into the frames that own them; what it owns itself is either among these or dropped before.
///
/// # Errors
/// Those of close_range(2).
pub fn close_all_but(first: u32, kept: &[BorrowedFd<'_>]) -> Result<()> {
    let mut numbers: Vec<u32> = kept.iter().map(|kept| kept.as_raw_fd().cast_unsigned()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for (from, to) in gaps(first.max(3), &numbers) {
        // SAFETY: who owns these descriptors is in frames that this process never returns to, so nobody uses or closes
        // the numbers again; a call that did would get EBADF, and reaches no memory.
        let result = unsafe { libc::close_range(from, to, 0) };
        if result == -1 {
            return Err(std::io::Error::last_os_error()).context(|| "close what the maker had open");
        }
    }
    Ok(())
}

/// The ranges from `first` on that leave out these numbers, which are in order.
fn gaps(first: u32, kept: &[u32]) -> Vec<(u32, u32)> {
    let mut gaps = Vec::new();
    let mut from = first;
    for number in kept.iter().copied().filter(|number| *number >= first) {
        if from < number {
            gaps.push((from, number - 1));
        }
        from = number.saturating_add(1);
    }
    gaps.push((from, u32::MAX));
    gaps
}

/// Puts `source` in the place of one of the standard streams, 0 to 2, where it outlives the execution of a program.
///
/// # Errors
/// Those of dup2(2).
pub fn replace_stream(source: BorrowedFd<'_>, stream: i32) -> Result<()> {
    let operation = || format!("replace standard stream {stream}");
    if !(0..=2).contains(&stream) {
        return Err(Error::new(Kind::Invalid, operation(), "it is none"));
    }
    // SAFETY: the source is borrowed for the call, and the target is a standard stream, which nothing here owns.
    let result = unsafe { libc::dup2(source.as_fd().as_raw_fd(), stream) };
    if result == -1 { Err(std::io::Error::last_os_error()).context(operation) } else { Ok(()) }
}

/// Another name for a descriptor, close-on-exec, with a number of at least `above`.
///
/// # Errors
/// Those of fcntl(F_DUPFD_CLOEXEC).
pub fn lift(descriptor: impl AsFd, above: i32) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, above).context(|| "duplicate a descriptor")
}

/// Another name for a descriptor that programs which are executed get too: for one that is told its number.
#[derive(Debug)]
pub struct Passed(OwnedFd);

impl Passed {
    /// Makes it, above the standard streams. While it lives, whatever this process executes has it.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(descriptor: impl AsFd) -> Result<Self> {
        let passed = lift(descriptor, 3)?;
        rustix::io::fcntl_setfd(&passed, FdFlags::empty()).context(|| "pass a descriptor on")?;
        Ok(Self(passed))
    }

    /// Its number, here and there.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Leaves a descriptor of ours open to a command, and to none but that.
pub fn leave_open(command: &mut Command, descriptor: BorrowedFd<'_>) {
    let number = descriptor.as_raw_fd();
    let leave = move || {
        // SAFETY: the caller's descriptor is open in this copy of its process, which is about to execute a program.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        Ok(rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?)
    };
    // SAFETY: the closure runs between fork and exec and makes one system call: it allocates nothing, takes no lock, and
    // touches no memory that another thread of the parent could have left half-written.
    unsafe { command.pre_exec(leave) };
}

/// Puts descriptors where a program will find them, from `first` on, with whatever had these numbers closed. For a cloned
/// process that executes a program next: what it still needs has been [`lift`]ed above, the sources too.
///
/// # Errors
/// Those of dup2(2); [`Kind::Invalid`] if a source would be closed itself.
pub fn place_from(first: u32, sources: &[BorrowedFd<'_>]) -> Result<()> {
    let operation = || "put descriptors in their places";
    let first = i32::try_from(first.max(3)).unwrap_or(i32::MAX);
    let end = first.saturating_add(i32::try_from(sources.len()).unwrap_or(i32::MAX));
    if sources.iter().any(|source| source.as_raw_fd() < end) {
        return Err(Error::new(Kind::Invalid, operation(), "one of them is in the place of another"));
    }
    for (source, number) in sources.iter().zip(first..end) {
        // SAFETY: the source is borrowed for the call. Who owns the target is in frames that this process never returns
        // to, as the caller promises, and its descriptor is another's from now on, which is memory-safe.
        let result = unsafe { libc::dup2(source.as_raw_fd(), number) };
        if result == -1 {
            return Err(std::io::Error::last_os_error()).context(operation);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_left_out_of_what_is_closed() {
        assert_eq!(gaps(3, &[]), [(3, u32::MAX)]);
        assert_eq!(gaps(3, &[3, 4, 9]), [(5, 8), (10, u32::MAX)]);
        assert_eq!(gaps(5, &[3, 7]), [(5, 6), (8, u32::MAX)]);
    }
    use crate::sys::process::ExitStatus;

    fn plain() -> Birth<'static> {
        Birth { namespaces: CloneFlags::empty(), cgroup: None, parent: Parent::Caller }
    }

    #[test]
    fn a_clone_ends_with_its_own_status_and_shares_no_memory() {
        let mut value = 1;
        let child = spawn(plain(), || {
            value += 1;
            value + 40
        })
        .unwrap();
        assert_eq!(child.reap().unwrap(), Some(ExitStatus::Code(42)));
        assert_eq!(value, 1);
    }

    #[test]
    fn a_grandchild_can_be_a_child() {
        let (reader, writer) = std::io::pipe().unwrap();
        let intermediate = spawn(plain(), || {
            let birth = Birth { parent: Parent::Grandparent, ..plain() };
            let made = spawn(birth, || 7).unwrap();
            use std::io::Write;
            (&writer).write_all(&made.pid().to_ne_bytes()).map_or(1, |()| 0)
        })
        .unwrap();
        let mut pid = [0; 4];
        std::io::Read::read_exact(&mut &reader, &mut pid).unwrap();
        assert_eq!(intermediate.reap().unwrap(), Some(ExitStatus::Code(0)));
        let grandchild = Process::open(i32::from_ne_bytes(pid)).unwrap().unwrap();
        assert_eq!(grandchild.reap().unwrap(), Some(ExitStatus::Code(7)));
    }
}
