//! What waitpid(2) says of a tracee (ptrace(2), "Stopped tracee states").

use crate::sys::process::ExitStatus;

/// Why a tracee does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Something happened that its tracer wants to know.
    Event(Event),
    /// A signal is to be delivered, or an instruction was stepped over (SIGTRAP).
    Signal(i32),
    /// Job control has stopped it.
    Group,
    /// It has ended, and is reaped.
    Ended(ExitStatus),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It has made a process or a thread, whose id is the message.
    Born,
    /// It has executed a program; its former id is the message.
    Executed,
    /// A filter stopped a call, with data of its own as the message.
    Filtered,
    /// It is new, or was interrupted.
    Stopped,
    /// Anything else, which nobody asked for.
    Other,
}

/// `PTRACE_EVENT_STOP`, for which the C library's type differs.
const EVENT_STOP: i32 = 128;

/// Decodes what waitpid(2) has filled in.
pub(super) fn decode(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Ended(ExitStatus::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX)));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Ended(ExitStatus::Signal(libc::WTERMSIG(status)));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 => Stop::Signal(signal),
        EVENT_STOP if signal != libc::SIGTRAP => Stop::Group,
        EVENT_STOP => Stop::Event(Event::Stopped),
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => Stop::Event(Event::Born),
        libc::PTRACE_EVENT_EXEC => Stop::Event(Event::Executed),
        libc::PTRACE_EVENT_SECCOMP => Stop::Event(Event::Filtered),
        _ => Stop::Event(Event::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_stop_is_told_apart() {
        let stopped = |signal: i32, event: i32| 0x7f | signal << 8 | event << 16;
        for (status, stop) in [
            (0x0300, Stop::Ended(ExitStatus::Code(3))),
            (9, Stop::Ended(ExitStatus::Signal(9))),
            (stopped(libc::SIGTERM, 0), Stop::Signal(libc::SIGTERM)),
            (stopped(libc::SIGTRAP, 0), Stop::Signal(libc::SIGTRAP)),
            (stopped(libc::SIGTRAP, EVENT_STOP), Stop::Event(Event::Stopped)),
            (stopped(libc::SIGTSTP, EVENT_STOP), Stop::Group),
            (stopped(libc::SIGTRAP, libc::PTRACE_EVENT_VFORK), Stop::Event(Event::Born)),
            (stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC), Stop::Event(Event::Executed)),
            (stopped(libc::SIGTRAP, libc::PTRACE_EVENT_SECCOMP), Stop::Event(Event::Filtered)),
            (stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXIT), Stop::Event(Event::Other)),
        ] {
            assert_eq!(decode(status), stop, "{status:x}");
        }
    }
}
