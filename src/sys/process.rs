//! Processes by identity, not by number: a pid alone may belong to somebody else by the time it is used.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, WaitId, WaitIdOptions, pidfd_getfd, pidfd_open, waitid};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::signal::Signal;

/// Which process is meant, now and after its pid was given to another: pid, start time, boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The pid in the caller's pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks between boot and the start of the process.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` of the boot that the two belong to.
    pub boot_id: String,
}

/// `PID START BOOT`, in one word: `12.3456.0f0e…`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.pid, self.start_time, self.boot_id)
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fields = text.splitn(3, '.');
        let parsed = (|| {
            let (pid, start, boot) = (fields.next()?, fields.next()?, fields.next()?);
            Some(Self { pid: pid.parse().ok()?, start_time: start.parse().ok()?, boot_id: boot.to_owned() })
        })();
        parsed.filter(|identity| identity.pid > 0 && !identity.boot_id.is_empty()).ok_or_else(|| {
            Error::new(Kind::Damaged, format!("read process '{}'", text.escape_debug()), "it names none")
        })
    }
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: u8,
    start_time: u64,
}

impl Identity {
    /// The identity of the process that has this pid now.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none.
    pub fn of(pid: i32) -> Result<Self> {
        let stat = read_stat(pid)?
            .ok_or_else(|| Error::new(Kind::NotFound, format!("look at process {pid}"), "no such process"))?;
        Ok(Self { pid, start_time: stat.start_time, boot_id: boot_id()? })
    }

    /// Whether this very process still runs (a zombie does not).
    ///
    /// # Errors
    /// Those of reading /proc.
    pub fn is_alive(&self) -> Result<bool> {
        match read_stat(self.pid)? {
            Some(stat) if stat.start_time == self.start_time && !matches!(stat.state, b'Z' | b'X' | b'x') => {
                Ok(boot_id()? == self.boot_id)
            }
            _ => Ok(false),
        }
    }

    /// A handle to this very process; `None` if it has ended, whoever has its pid now.
    ///
    /// # Errors
    /// Those of pidfd_open(2) and of reading /proc.
    pub fn open(&self) -> Result<Option<Process>> {
        let Some(process) = Process::open(self.pid)? else { return Ok(None) };
        // Looked at after the handle exists: the handle then names the process that was looked at, or one that is
        // younger and has another start time.
        Ok(self.is_alive()?.then_some(process))
    }
}

/// A pidfd: names one process for good.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    pid: i32,
}

impl Process {
    /// A handle to whatever process has this pid now; `None` if there is none.
    ///
    /// # Errors
    /// Those of pidfd_open(2).
    pub fn open(pid: i32) -> Result<Option<Self>> {
        let operation = || format!("open process {pid}");
        let number = Pid::from_raw(pid).ok_or_else(|| Error::new(Kind::Invalid, operation(), "not a process id"))?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some(Self { pidfd, pid })),
            // Kernels before 6.15 say EINVAL of a process that has ended and whose number is still in use, by its group.
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            Err(errno) => Err(errno).context(operation),
        }
    }

    /// A handle to the thread that has this id now, which is enough to take descriptors from it; `None` if there is
    /// none. Kernels before 6.9 know processes only, and give the one that the thread belongs to.
    ///
    /// # Errors
    /// Those of pidfd_open(2) and of reading /proc.
    pub fn open_thread(id: i32) -> Result<Option<Self>> {
        let operation = || format!("open thread {id}");
        let number = Pid::from_raw(id).ok_or_else(|| Error::new(Kind::Invalid, operation(), "not a thread id"))?;
        match pidfd_open(number, PidfdFlags::from_bits_retain(PIDFD_THREAD)) {
            Ok(pidfd) => Ok(Some(Self { pidfd, pid: id })),
            Err(Errno::SRCH) => Ok(None),
            Err(Errno::INVAL) => match process_of(id)? {
                Some(pid) => Self::open(pid),
                None => Ok(None),
            },
            Err(errno) => Err(errno).context(operation),
        }
    }

    /// A descriptor of this process as one of ours: the same open file, close-on-exec here.
    ///
    /// # Errors
    /// Those of pidfd_getfd(2): EBADF if it has none of that number, ESRCH if it has ended, EPERM for somebody who could
    /// not trace it.
    pub fn duplicate_descriptor(&self, number: i32) -> Result<OwnedFd> {
        pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())
            .context(|| format!("duplicate descriptor {number} of process {}", self.pid))
    }

    /// A handle that the kernel gave out together with the process.
    pub(super) fn adopt(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pidfd, pid }
    }

    /// Its pid, in the caller's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pid in the innermost pid namespace that it is in.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it has ended and was reaped; those of reading /proc.
    pub fn inner_pid(&self) -> Result<i32> {
        let operation = || format!("look at process {}", self.pid);
        // What the kernel says of the handle (proc_pid_fdinfo(5)) is shorter than what it says of the process.
        let mut text = Vec::with_capacity(256);
        let path = format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd());
        fs::File::open(path).and_then(|mut file| file.read_to_end(&mut text)).context(operation)?;
        let line =
            std::str::from_utf8(&text).ok().and_then(|text| text.lines().find_map(|line| line.strip_prefix("NSpid:")));
        let number = line.and_then(|line| line.split_ascii_whitespace().next_back()?.parse().ok());
        number.filter(|number| *number > 0).ok_or_else(|| Error::new(Kind::NotFound, operation(), "it has ended"))
    }

    /// Sends a signal. `Ok(false)` if the process has ended.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        match super::signal::send(self.pidfd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(errno).context(|| format!("send {signal} to process {}", self.pid)),
        }
    }

    /// Waits until the process has ended; `false` if the time is over before.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait_end(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| format!("wait for process {}", self.pid)),
            }
        }
    }

    /// Takes the exit status of a child of ours; `None` if it is not our child (another process reaps it).
    ///
    /// # Errors
    /// Those of waitid(2).
    pub fn reap(&self) -> Result<Option<ExitStatus>> {
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | wait_clone()) {
                Ok(Some(status)) => return Ok(Some(ExitStatus::from_wait(&status))),
                Ok(None) | Err(Errno::INTR) => {}
                Err(Errno::CHILD) => return Ok(None),
                Err(errno) => return Err(errno).context(|| format!("wait for process {}", self.pid)),
            }
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit with this status.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "with status {code}"),
            Self::Signal(signal) => write!(f, "by signal {signal}"),
        }
    }
}

impl ExitStatus {
    /// As a shell tells it: the status, or 128 and the signal's number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }

    fn from_wait(status: &rustix::process::WaitIdStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Code(u8::MAX),
        }
    }
}

/// `PIDFD_THREAD` of linux/pidfd.h, which is `O_EXCL`.
const PIDFD_THREAD: u32 = libc::O_EXCL.cast_unsigned();

/// The process that a thread belongs to; `None` if there is no such thread.
///
/// # Errors
/// Those of reading /proc.
pub fn process_of(thread: i32) -> Result<Option<i32>> {
    match fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(text) => Ok(text.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error).context(|| format!("look at thread {thread}")),
    }
}

/// `__WALL`: a process that was cloned without an exit signal is a "clone child", which a plain wait skips.
fn wait_clone() -> WaitIdOptions {
    WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned())
}

/// Kills and reaps every child of the calling process; for a failed creation, whose half-made processes nobody
/// else knows.
///
/// # Errors
/// Those of waitid(2).
pub fn kill_children() -> Result<()> {
    let operation = || "end half-made processes";
    let path = format!("/proc/self/task/{}/children", std::process::id());
    loop {
        let children = fs::read_to_string(&path).context(operation)?;
        let mut pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).peekable();
        if pids.peek().is_none() {
            return Ok(());
        }
        for pid in pids {
            // A child's pid stays its own until we have reaped it.
            if let Some(child) = Process::open(pid)? {
                child.signal(Signal::KILL)?;
                child.reap()?;
            }
        }
    }
}

/// `/proc/sys/kernel/random/boot_id`: another one after each boot.
///
/// # Errors
/// Those of reading it.
pub fn boot_id() -> Result<String> {
    // A process does not live longer than its boot.
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").context(|| "read the boot id")?;
    Ok(KNOWN.get_or_init(|| text.trim_end().to_owned()).clone())
}

fn read_stat(pid: i32) -> Result<Option<Stat>> {
    let operation = || format!("look at process {pid}");
    // More than it ever has.
    let mut text = Vec::with_capacity(1024);
    let read = fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read_to_end(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error).context(operation),
    }
    match parse_stat(&text) {
        Some(stat) => Ok(Some(stat)),
        None => Err(Error::new(Kind::System, operation(), "its stat file has a form that is not known")),
    }
}

/// The command name, in parentheses, may hold blanks and parentheses itself: count from the last one.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time })
}

/// Closes every descriptor from `first` on that this process was started with. The first thing that a program does: what
/// it opened itself would be closed under its hands.
///
/// # Errors
/// Those of close_range(2).
pub fn close_inherited(first: u32) -> Result<()> {
    // SAFETY: nothing in this process owns a descriptor beyond the standard streams yet, as the caller promises; a
    // closed number that is used all the same gives EBADF, and reaches no memory.
    let result = unsafe { libc::close_range(first.max(3), libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context(|| "close inherited descriptors") }
}

/// Checks that the caller passed what it promised with `--preserve-fds`: descriptors 3 to 2 + `count` are open.
/// Called before anything else is opened, or a file of ours would take a missing one's place and leak.
///
/// # Errors
/// [`Kind::Invalid`] with the first number that is closed.
pub fn check_preserved_fds(count: u32) -> Result<()> {
    for number in 3..3_i64 + i64::from(count) {
        let open = i32::try_from(number).is_ok_and(|fd| {
            // SAFETY: fcntl(F_GETFD) on any number only reads the descriptor table.
            unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
        });
        if !open {
            let operation = format!("preserve {count} file descriptors");
            return Err(Error::new(Kind::Invalid, operation, format!("descriptor {number} is not open")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_the_pid_that_its_namespace_gives_it() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Process::open(own).unwrap().unwrap().inner_pid().unwrap(), own);
        let mut command = std::process::Command::new("unshare");
        let mut child = command.args(["--pid", "--fork", "--kill-child", "sleep", "100"]).spawn().unwrap();
        let sleeper = loop {
            let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
            // Before it is `sleep` it may not have asked yet to be killed with its parent.
            if let Ok(pid) = text.trim().parse::<i32>()
                && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
            {
                break Process::open(pid).unwrap().unwrap();
            }
        };
        assert_eq!(sleeper.inner_pid().unwrap(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(sleeper.wait_end(Duration::from_secs(10)).unwrap());
    }

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let text = format!("1 (a) b) S {}", fields.join(" "));
        assert_eq!(parse_stat(text.as_bytes()), Some(Stat { state: b'S', start_time: 22 }));
    }

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let mut me = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive().unwrap());
        assert!(me.open().unwrap().is_some());
        me.start_time += 1;
        assert!(!me.is_alive().unwrap());
        assert!(me.open().unwrap().is_none());
    }

    #[test]
    fn an_identity_is_read_as_it_was_written() {
        let me = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(me.to_string().parse::<Identity>().unwrap(), me);
        for damaged in ["", "1", "1.2", "1.2.", "x.2.b", "0.2.b", "-1.2.b"] {
            assert!(damaged.parse::<Identity>().is_err(), "{damaged}");
        }
    }

    #[test]
    fn an_identity_of_another_boot_is_dead() {
        let mut me = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        me.boot_id = "00000000-0000-0000-0000-000000000000".to_owned();
        assert!(!me.is_alive().unwrap());
    }

    #[test]
    fn a_zombie_is_not_alive_and_keeps_its_status() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 3"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::open(pid).unwrap().unwrap();
        assert!(process.wait_end(Duration::from_secs(20)).unwrap());
        assert!(!Identity::of(pid).unwrap().is_alive().unwrap());
        assert_eq!(process.reap().unwrap(), Some(ExitStatus::Code(3)));
        assert!(process.reap().unwrap().is_none());
        assert!(child.wait().is_err());
    }

    #[test]
    fn a_descriptor_of_a_living_process_is_taken_from_any_of_its_threads() {
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap().unwrap();
        let file = fs::File::from(process.duplicate_descriptor(0).unwrap());
        assert!(rustix::fs::fstat(&file).unwrap().st_mode & libc::S_IFMT == libc::S_IFIFO);
        assert_eq!(process.duplicate_descriptor(999).unwrap_err().errno(), Some(libc::EBADF));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(process.duplicate_descriptor(0).unwrap_err().errno(), Some(libc::ESRCH));

        let here = std::thread::spawn(|| {
            let id = rustix::thread::gettid().as_raw_nonzero().get();
            assert_eq!(process_of(id).unwrap(), i32::try_from(std::process::id()).ok());
            Process::open_thread(id).unwrap().unwrap().duplicate_descriptor(0).map(drop)
        });
        here.join().unwrap().unwrap();
    }

    #[test]
    fn missing_descriptors_are_named() {
        let error = check_preserved_fds(60_000).unwrap_err();
        assert!(error.to_string().contains("is not open"), "{error}");
    }
}
