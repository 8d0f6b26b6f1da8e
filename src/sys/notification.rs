//! System calls that a filter leaves to somebody else to answer (seccomp user notification, seccomp_unotify(2)).
//!
//! Whoever holds the listener of a filter receives a [`Notification`] for each call that the filter hands over, while the
//! calling thread waits, and answers it. A thread may be gone, and its number another's, at any moment: what was read of
//! its memory or taken from its descriptors counts only if [`Listener::is_waiting`] says so *afterwards*.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Context, Error, Kind, Result};

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    id: u64,
    /// The thread that called, in the receiver's pid namespace; 0 if it is not visible there.
    pub thread: i32,
    /// The number of the call, of the architecture below.
    pub call: i32,
    /// `AUDIT_ARCH_…` of linux/audit.h.
    pub architecture: u32,
    /// The arguments as the registers had them.
    pub arguments: [u64; 6],
}

/// The calls that services are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intercepted {
    /// bind(2)
    Bind,
    /// listen(2)
    Listen,
}

impl Notification {
    /// Which call it is, of those that services are asked about.
    #[must_use]
    pub fn intercepted(&self) -> Option<Intercepted> {
        match libc::c_long::from(self.call) {
            libc::SYS_bind => Some(Intercepted::Bind),
            libc::SYS_listen => Some(Intercepted::Listen),
            _ => None,
        }
    }
}

/// What the caller of a system call gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call succeeded, and returns this.
    Value(i64),
    /// The call failed with this number (positive, as in errno(3)).
    Failure(i32),
    /// The kernel runs the call, with the arguments as they are by then: no protection against a hostile caller.
    Continue,
}

/// What becomes of a descriptor when its process executes a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtExec {
    /// It stays open.
    Stays,
    /// It is closed.
    Closes,
}

/// Whether the thread still waits when an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It got it.
    Delivered,
    /// It was interrupted or has ended; a call that was interrupted is made again, and is a new notification.
    Gone,
}

/// The end of a filter that receives. It becomes readable when a call waits, and hangs up (POLLHUP) once no process is
/// under the filter any more. While it is open and nobody answers, calls wait; when the last copy of it is closed, they
/// fail with ENOSYS.
#[derive(Debug)]
pub struct Listener {
    descriptor: OwnedFd,
    /// How large the kernel's structures of a notification and of an answer are, in bytes.
    sizes: (usize, usize),
}

impl Listener {
    /// Receives what a descriptor gives that [`load_filter`](super::seccomp::load_filter) made, here or elsewhere.
    ///
    /// # Errors
    /// Those of seccomp(SECCOMP_GET_NOTIF_SIZES): kernels before 5.0 have no such listeners.
    pub fn new(descriptor: OwnedFd) -> Result<Self> {
        let mut sizes = libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
        // SAFETY: this operation takes no flags and writes one structure, which the pointer leads to.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) };
        if result == -1 {
            return Err(io::Error::last_os_error()).context(|| "ask for the size of a notification");
        }
        let received = usize::from(sizes.seccomp_notif).max(size_of::<libc::seccomp_notif>());
        let sent = usize::from(sizes.seccomp_notif_resp).max(size_of::<libc::seccomp_notif_resp>());
        Ok(Self { descriptor, sizes: (received, sent) })
    }

    /// Takes the next call; `None` if the caller that made the descriptor readable has gone by now. Waits if none is
    /// there: poll the descriptor first.
    ///
    /// # Errors
    /// Those of ioctl(SECCOMP_IOCTL_NOTIF_RECV).
    pub fn receive(&self) -> Result<Option<Notification>> {
        let mut space = zeroed(self.sizes.0);
        let notification = space.as_mut_ptr().cast::<libc::seccomp_notif>();
        // SAFETY: the kernel wants zeros and writes one of its own structures, for which the space is large enough.
        let result = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, notification) };
        if result == -1 {
            return match io::Error::last_os_error() {
                error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
                error => Err(error).context(|| "receive a system call of a container"),
            };
        }
        // SAFETY: the space is aligned to eight bytes, holds at least one of these, and every byte of it is a number.
        let notification = unsafe { notification.read() };
        Ok(Some(Notification {
            id: notification.id,
            thread: notification.pid.cast_signed(),
            call: notification.data.nr,
            architecture: notification.data.arch,
            arguments: notification.data.args,
        }))
    }

    /// Whether the thread still waits for an answer, so that what was read of it since then is its own.
    ///
    /// # Errors
    /// Those of ioctl(SECCOMP_IOCTL_NOTIF_ID_VALID), apart from ENOENT.
    pub fn is_waiting(&self, notification: &Notification) -> Result<bool> {
        let id = notification.id;
        // SAFETY: the request reads one number, which the pointer leads to.
        let result =
            unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
        deliver(result).map(|found| found == Delivery::Delivered).context(|| "ask whether a system call still waits")
    }

    /// Answers a call. Each is answered once.
    ///
    /// # Errors
    /// Those of ioctl(SECCOMP_IOCTL_NOTIF_SEND), apart from ENOENT.
    pub fn answer(&self, notification: &Notification, answer: Answer) -> Result<Delivery> {
        let continuing = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or_default();
        let (val, error, flags) = match answer {
            Answer::Value(value) => (value, 0, 0),
            Answer::Failure(number) => (0, -number.abs(), 0),
            Answer::Continue => (0, 0, continuing),
        };
        let mut space = zeroed(self.sizes.1);
        let response = space.as_mut_ptr().cast::<libc::seccomp_notif_resp>();
        // SAFETY: the space is aligned to eight bytes, and large enough for one of these.
        unsafe { response.write(libc::seccomp_notif_resp { id: notification.id, val, error, flags }) };
        // SAFETY: the kernel reads one of its own structures, for which the space is large enough and zero beyond ours.
        let result = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, response) };
        deliver(result).context(|| "answer a system call of a container")
    }

    /// Puts an open file in the place of a descriptor of the waiting process, as dup2(2) would. The call still waits for
    /// its answer.
    ///
    /// # Errors
    /// Those of ioctl(SECCOMP_IOCTL_NOTIF_ADDFD), apart from ENOENT: EBADF for a number beyond the process's limit.
    pub fn replace_descriptor(
        &self,
        notification: &Notification,
        target: i32,
        source: BorrowedFd<'_>,
        at_exec: AtExec,
    ) -> Result<Delivery> {
        let flags = match at_exec {
            AtExec::Stays => 0,
            AtExec::Closes => libc::O_CLOEXEC.cast_unsigned(),
        };
        let request = libc::seccomp_notif_addfd {
            id: notification.id,
            flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SETFD).unwrap_or_default(),
            srcfd: source.as_raw_fd().cast_unsigned(),
            newfd: target.cast_unsigned(),
            newfd_flags: flags,
        };
        let addfd = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
        // SAFETY: the request reads one structure of the size in its number; the source is borrowed across the call.
        let result = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), addfd, &raw const request) };
        deliver(result).context(|| format!("replace descriptor {target} of process {}", notification.thread))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Reads memory of a process, by the id of any of its threads. What was read is a caller's own only if it still waits
/// afterwards ([`Listener::is_waiting`]).
///
/// # Errors
/// Those of process_vm_readv(2): EFAULT for an address that is not the process's, ESRCH if it has ended, EPERM for
/// somebody who could not trace it; [`Kind::State`] if only the first part of the range is memory.
pub fn read_memory(thread: i32, address: u64, length: usize) -> Result<Vec<u8>> {
    let operation = || format!("read {length} bytes of memory of process {thread}");
    let mut bytes = vec![0_u8; length];
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let place = usize::try_from(address).unwrap_or_default();
    let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(place), iov_len: length };
    // SAFETY: the kernel writes at most `length` bytes to the buffer that `here` describes, which has that many; what
    // `there` describes is an address of another process, which it checks.
    let count = unsafe { libc::process_vm_readv(thread, &raw const here, 1, &raw const there, 1, 0) };
    match usize::try_from(count) {
        Ok(count) if count == length => Ok(bytes),
        Ok(count) => Err(Error::new(Kind::State, operation(), format!("only {count} of them are there"))),
        Err(_) => Err(io::Error::last_os_error()).context(operation),
    }
}

/// Zeros for a structure of this many bytes, aligned to eight.
fn zeroed(bytes: usize) -> Vec<u64> {
    vec![0; bytes.div_ceil(size_of::<u64>())]
}

/// ENOENT: no such call waits.
fn deliver(result: i32) -> io::Result<Delivery> {
    match result {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(Delivery::Gone),
            error => Err(error),
        },
        _ => Ok(Delivery::Delivered),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Lines};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, ChildStdout, Command, Stdio};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::sys::channel::Channel;
    use crate::sys::seccomp::{Instruction, NEW_LISTENER, load_filter};

    /// bind(2) is left to us, everything else is allowed. The number of a call is the first word of what a filter gets.
    fn filter() -> [Instruction; 4] {
        let bind = u32::try_from(libc::SYS_bind).unwrap();
        [
            Instruction { code: 0x20, jt: 0, jf: 0, k: 0 },
            Instruction { code: 0x15, jt: 0, jf: 1, k: bind },
            Instruction { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
            Instruction { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        ]
    }

    /// A Python program under the filter, its output, and the listener.
    fn start(program: &str) -> (Child, Lines<BufReader<ChildStdout>>, Listener) {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", program]).stdout(Stdio::piped());
        let prepare = move || {
            let listener = load_filter(&filter(), NEW_LISTENER).map_err(io::Error::other)?;
            let sent = listener.map(|listener| theirs.send(b"x", &[listener.as_fd()]));
            if matches!(sent, Some(Ok(true))) { Ok(()) } else { Err(io::Error::other("not sent")) }
        };
        // SAFETY: the closure makes system calls; it allocates only to tell of a failure, with which the test fails.
        unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn().unwrap();
        let listener = Listener::new(ours.receive().unwrap().unwrap().descriptors.remove(0)).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines, listener)
    }

    fn events(listener: &Listener) -> PollFlags {
        let mut list = [PollFd::new(listener, PollFlags::IN)];
        poll(&mut list, Some(&Timespec { tv_sec: 60, tv_nsec: 0 })).unwrap();
        list[0].revents()
    }

    fn next(listener: &Listener) -> Notification {
        assert!(events(listener).contains(PollFlags::IN));
        listener.receive().unwrap().unwrap()
    }

    #[test]
    fn a_call_is_answered_in_every_way() {
        let program = "import socket\ndef bind(port):\n s=socket.socket()\n\
                       \x20try:\n  s.bind(('127.0.0.1',port))\n  print(s.getsockname()[1],s.get_inheritable(),flush=True)\n\
                       \x20except OSError as e: print(-e.errno,flush=True)\nbind(77);bind(78);bind(0);bind(79)";
        let (mut child, mut lines, listener) = start(program);
        let mut line = || lines.next().unwrap().unwrap();

        let call = next(&listener);
        assert_eq!(i64::from(call.call), libc::SYS_bind);
        assert_eq!(u32::try_from(call.thread).unwrap(), child.id());
        let address = read_memory(call.thread, call.arguments[1], usize::try_from(call.arguments[2]).unwrap()).unwrap();
        assert_eq!(address[..8], [libc::AF_INET.to_ne_bytes()[0], 0, 0, 77, 127, 0, 0, 1]);
        assert!(listener.is_waiting(&call).unwrap());
        let ours = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let target = i32::try_from(call.arguments[0]).unwrap();
        let replaced = listener.replace_descriptor(&call, target, ours.as_fd(), AtExec::Stays).unwrap();
        assert_eq!(replaced, Delivery::Delivered);
        assert_eq!(listener.answer(&call, Answer::Value(0)).unwrap(), Delivery::Delivered);
        assert_eq!(line(), format!("{} True", ours.local_addr().unwrap().port()));
        assert_eq!(listener.answer(&call, Answer::Value(0)).unwrap(), Delivery::Gone);

        let call = next(&listener);
        listener.answer(&call, Answer::Failure(libc::EADDRINUSE)).unwrap();
        assert_eq!(line(), format!("-{}", libc::EADDRINUSE));

        let call = next(&listener);
        listener.answer(&call, Answer::Continue).unwrap();
        let port: u16 = line().strip_suffix(" False").unwrap().parse().unwrap();
        assert_ne!(port, 0);

        let call = next(&listener);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!listener.is_waiting(&call).unwrap());
        assert_eq!(listener.answer(&call, Answer::Continue).unwrap(), Delivery::Gone);
        let replaced = listener.replace_descriptor(&call, target, ours.as_fd(), AtExec::Closes).unwrap();
        assert_eq!(replaced, Delivery::Gone);
        assert_eq!(read_memory(call.thread, call.arguments[1], 8).unwrap_err().errno(), Some(libc::ESRCH));
        assert!(events(&listener).contains(PollFlags::HUP));
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let me = i32::try_from(std::process::id()).unwrap();
        let words = *b"some words";
        let address = words.as_ptr().addr() as u64;
        assert_eq!(read_memory(me, address, words.len()).unwrap(), words);
        assert_eq!(read_memory(me, 8, 8).unwrap_err().errno(), Some(libc::EFAULT));
        assert!(read_memory(me, address, 0).unwrap().is_empty());
    }
}
