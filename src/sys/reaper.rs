//! A first process of a pid namespace that only looks after another one: it passes signals on to it, reaps whatever
//! dies, and ends as that one ends.
//!
//! It lives as long as a container and must not cost much, so it gives back the memory that it came with: heap, variables,
//! stack and code. What is left are system calls, made without the C library, whose variables are gone.

use std::convert::Infallible;
use std::os::fd::{IntoRawFd, OwnedFd};

use crate::error::{Context, Result};

/// What `ps` shows of it, instead of the command line of whoever made it, which tells of the host.
const TITLE: &[u8; 6] = b"regen\0";
/// The kernel's signal sets are 64 bits.
const SET: usize = size_of::<u64>();

/// Blocks every signal, those too that the C library keeps for itself: they wait until somebody takes them.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn block_signals() -> Result<()> {
    let all = u64::MAX;
    // SAFETY: the kernel reads the 8 bytes of `all`, which lives across the call, and writes nothing without a place for
    // the old set.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, std::ptr::null::<u64>(), SET)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context(|| "block signals") }
}

/// Looks after a process for the rest of the caller's life, which ends with that process: with its status, or 128 and
/// the signal that ended it. Before, it writes a line into `status`: `exit N` or `signal N`.
///
/// For the only thread of a cloned process, which has [blocked](block_signals) all signals. Everything that the caller
/// owns is forgotten, not dropped; its descriptors stay open.
///
/// # Errors
/// If it could not be named for what it is.
pub fn look_after(process: i32, status: Option<OwnedFd>) -> Result<Infallible> {
    rustix::thread::set_name(c"regen-init").context(|| "name the container's first process")?;
    let arguments = retitle();
    let status = status.map_or(-1, IntoRawFd::into_raw_fd);
    shed(arguments);
    pass_on(process, status)
}

/// Overwrites arguments and environment, which the kernel shows to others from this process's memory. Their address; 0 if
/// they are not where they should be.
fn retitle() -> usize {
    unsafe extern "C" {
        // The C library's name for the first argument, which it never moves.
        static program_invocation_name: *mut u8;
    }
    // SAFETY: the C library sets it before the program begins, and nothing writes it afterwards.
    let begin = unsafe { program_invocation_name };
    // SAFETY: the call reads what the kernel gave the process at its start.
    let end = unsafe { libc::getauxval(libc::AT_EXECFN) };
    let end = usize::try_from(end).unwrap_or_default();
    // The kernel puts arguments, environment and the program's file name one after the other.
    let Some(length) = end.checked_sub(begin.addr()).filter(|length| (TITLE.len()..=MOST).contains(length)) else {
        return 0;
    };
    // SAFETY: the range holds nothing but arguments and environment: writable memory of the stack, which nobody else
    // looks at, as this is the only thread and never returns to code that reads them.
    unsafe { begin.write_bytes(0, length) };
    // SAFETY: as above; the title is no longer than the range.
    unsafe { begin.copy_from_nonoverlapping(TITLE.as_ptr(), TITLE.len()) };
    begin.addr()
}

/// What arguments and environment can take at most (execve(2)), and more than a stack does here.
const MOST: usize = 6 << 20;

/// Gives back heap, variables, code, and the stack but for a few pages around the caller's frame: what lies above, up to the
/// arguments, are frames that nobody returns to. From here on nothing may be called that needs the heap, a variable, or an
/// address that was corrected when the program was loaded.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn shed(arguments: usize) {
    unsafe extern "C" {
        // The linker's names for the beginning of the program, and the end of its variables.
        static __executable_start: u8;
        static _end: u8;
    }
    // As deep as this no other mapping lies below a stack: the kernel leaves more room.
    const DEPTH: usize = 1 << 20;
    let page = rustix::param::page_size();
    let here = (&raw const page).addr() / page * page;
    // SAFETY: with 0 the call only asks where the heap ends.
    let heap_end = unsafe { libc::sbrk(0) }.addr();
    // SAFETY: the call reads the allocator's counters; there is no other thread.
    let heap = unsafe { libc::mallinfo2() }.arena;
    let begin = (&raw const __executable_start).addr() / page * page;
    let end = (&raw const _end).addr().next_multiple_of(page);
    give_back(heap_end.saturating_sub(heap).next_multiple_of(page), heap_end);
    give_back(here.saturating_sub(DEPTH), here.saturating_sub(page));
    // In a thread that is not the first one they are somewhere else.
    if arguments.saturating_sub(here) < MOST {
        give_back(here + 3 * page, arguments / page * page);
    }
    give_back(begin, end);
}

/// Forgets what private memory holds; it is zero, or as its file has it, when it is used again.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn give_back(from: usize, to: usize) {
    if from < to {
        // A kernel that does not want to keeps it, which is no harm; where a part is unused, it does the rest.
        call(libc::SYS_madvise, from, to - from, libc::MADV_DONTNEED as usize, 0);
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn shed(_arguments: usize) {}

// What follows runs without variables and corrected addresses, through which even trivial functions of the standard library
// are called in a build without optimization. So it uses operators, its own functions and constants only.

/// Takes signals until the process has ended.
#[expect(clippy::cast_possible_truncation, reason = "signals are small; see above")]
fn pass_on(process: i32, status: i32) -> ! {
    let all = u64::MAX;
    loop {
        reap(process, status);
        let signal = call(libc::SYS_rt_sigtimedwait, (&raw const all).addr(), 0, 0, SET);
        if signal > 0 && signal != libc::SIGCHLD as libc::c_long {
            // It may be gone, or be another user's by now: then there is nobody to tell.
            call(libc::SYS_kill, process as usize, signal as usize, 0, 0);
        }
    }
}

/// Reaps everything that has ended. Does not return if the process is among it.
fn reap(process: i32, status: i32) {
    let mut ending: i32 = 0;
    loop {
        let options = (libc::WNOHANG | libc::__WALL) as usize;
        let pid = call(libc::SYS_wait4, usize::MAX, (&raw mut ending).addr(), options, 0);
        if pid <= 0 {
            return;
        }
        if pid == process as libc::c_long {
            end(ending, status);
        }
    }
}

fn end(ending: i32, status: i32) -> ! {
    let signal = ending & 0x7f;
    let number = if signal == 0 { (ending >> 8) & 0xff } else { signal };
    if status >= 0 {
        let (line, length) = last_line(signal, number);
        call(libc::SYS_write, status as usize, (&raw const line).addr(), length, 0);
    }
    let code = if signal == 0 { number } else { 128 + signal };
    loop {
        call(libc::SYS_exit_group, code as usize, 0, 0, 0);
    }
}

/// `exit N` or `signal N` as the bytes of a number, lowest first, which is how these processors keep it, and how many they
/// are.
fn last_line(signal: i32, number: i32) -> (u128, usize) {
    const EXIT: u128 = u64::from_le_bytes(*b"exit \0\0\0") as u128;
    const SIGNAL: u128 = u64::from_le_bytes(*b"signal \0") as u128;
    let (mut line, mut length) = if signal == 0 { (EXIT, 5) } else { (SIGNAL, 7) };
    let mut divisor = 100;
    while divisor > 0 {
        let rest = number / divisor;
        if rest > 0 || divisor == 1 {
            line |= ((b'0' as i32 + rest % 10) as u128) << (8 * length);
            length += 1;
        }
        divisor /= 10;
    }
    line |= (b'\n' as u128) << (8 * length);
    (line, length + 1)
}

/// A system call, without the C library. Negative results are errors.
#[cfg(target_arch = "x86_64")]
fn call(number: libc::c_long, one: usize, two: usize, three: usize, four: usize) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the callers in this module pass numbers, and addresses of variables that live across the call; the kernel
    // overwrites the named registers only.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") one, in("rsi") two, in("rdx") three, in("r10") four,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// A system call, without the C library. Negative results are errors.
#[cfg(target_arch = "aarch64")]
fn call(number: libc::c_long, one: usize, two: usize, three: usize, four: usize) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the callers in this module pass numbers, and addresses of variables that live across the call; the kernel
    // overwrites the named register only.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") one => result,
            in("x1") two, in("x2") three, in("x3") four,
            options(nostack),
        );
    }
    result
}

/// A system call. Negative results are errors.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn call(number: libc::c_long, one: usize, two: usize, three: usize, four: usize) -> libc::c_long {
    // SAFETY: the callers in this module pass numbers, and addresses of variables that live across the call.
    unsafe { libc::syscall(number, one, two, three, four) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_how_it_ended() {
        for (ending, text) in
            [(0, "exit 0\n"), (7 << 8, "exit 7\n"), (255 << 8, "exit 255\n"), (9, "signal 9\n"), (64, "signal 64\n")]
        {
            let signal = ending & 0x7f;
            let (line, length) = last_line(signal, if signal == 0 { ending >> 8 } else { signal });
            assert_eq!(&line.to_ne_bytes()[..length], text.as_bytes());
        }
    }

    #[test]
    fn it_ends_as_what_it_looks_after_and_says_so_first() {
        use std::io::Read;

        use crate::sys::clone::{Birth, Parent, spawn};
        use crate::sys::process::ExitStatus;

        let birth = Birth { namespaces: nix::sched::CloneFlags::empty(), cgroup: None, parent: Parent::Caller };
        for (child_ends, code, text) in [(3, 3, "exit 3\n"), (-1, 137, "signal 9\n")] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let writer = OwnedFd::from(writer);
            let reaper = spawn(birth, || {
                block_signals().unwrap();
                let child = spawn(birth, || {
                    if child_ends < 0 {
                        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
                    }
                    child_ends
                });
                let Err(_) = look_after(child.unwrap().pid(), Some(writer.try_clone().unwrap()));
                99
            })
            .unwrap();
            assert_eq!(reaper.reap().unwrap(), Some(ExitStatus::Code(code)));
            drop(writer);
            let mut line = String::new();
            reader.read_to_string(&mut line).unwrap();
            assert_eq!(line, text);
        }
    }
}
