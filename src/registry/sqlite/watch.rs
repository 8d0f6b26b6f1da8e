//! Hearing what happens: also what other processes do, without asking again and again.
//!
//! Who commits opens the bell (`STORE/registry.db-bell`, an empty file) for writing before, and closes it afterwards. The
//! kernel tells everybody who watches the file of that (`IN_CLOSE_WRITE`, inotify(7)): after the change can be seen, and
//! also if the process is killed in between. Then they look into the history. A timer rings when the next lease is over.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use super::super::{Answer, Event, Failure, Watch};
use super::Shared;
use super::history::Rest;
use super::lease::Due;
use crate::error::{Context, Error, Result, quote};

/// A lease that could not be ended (the disk is full, say) is tried again after this.
const PAUSE: Duration = Duration::from_secs(1);

/// One who hears of changes.
#[derive(Debug)]
pub(super) struct Watcher {
    shared: Arc<Shared>,
    prefix: String,
    /// What was heard.
    after: u64,
    /// When a lease that is over and could not be ended is tried again.
    pause: Option<Instant>,
    /// The two below, as one.
    bell: OwnedFd,
    commits: OwnedFd,
    timer: OwnedFd,
}

/// Whether leases that are over were ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expired {
    Now,
    Later,
}

/// Opens the bell: it rings when the file is closed.
pub(super) fn grasp(bell: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(bell).context(|| format!("open {}", quote(bell)))
}

impl Watcher {
    /// # Errors
    /// [`Failure::Compacted`] if the changes after that revision are not all known, [`Failure::Refused`] if there are too
    /// many watches (inotify(7)).
    pub(super) fn new(shared: Arc<Shared>, prefix: &str, after: u64) -> Answer<Self> {
        let operation = || shared.operation("watch");
        let (bell, commits, timer) = open_bell(&shared.bell).context(operation).map_err(Failure::Refused)?;
        // Nothing of it is used but that it is possible.
        shared.look(prefix, after)?;
        Ok(Self { prefix: prefix.to_owned(), after, pause: None, bell, commits, timer, shared })
    }

    /// Makes the timer ring for what is due. One of another time is replaced.
    fn arm(&self, rest: Rest, due: Due) -> Result<()> {
        let at = match (rest, due) {
            (Rest::More, _) | (Rest::Nothing, Due::Now) => Some(1),
            // A millisecond has to be over.
            (Rest::Nothing, Due::At(until)) => Some(until.saturating_add(1)),
            (Rest::Nothing, Due::Never) => None,
        };
        self.set_timer(at)
    }

    /// Rings at this time, in milliseconds since the boot, which may be over; or never.
    fn set_timer(&self, at: Option<u64>) -> Result<()> {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = at.map_or(never, |at| {
            let at = Duration::from_millis(at.max(1));
            Timespec { tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX), tv_nsec: at.subsec_nanos().into() }
        });
        let value = Itimerspec { it_interval: never, it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &value).context(|| "set a timer")?;
        Ok(())
    }

    /// What is heard from here on is for the next look.
    fn drain(&self) -> Result<()> {
        let mut buffer = [0; 4096];
        for descriptor in [&self.commits, &self.timer] {
            loop {
                match rustix::io::read(descriptor, &mut buffer) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(errno) => return Err(errno).context(|| "read what rang"),
                }
            }
        }
        Ok(())
    }

    /// Ends what is over; if that is impossible now, the timer rings again in a while. Attempts ring the bell too: without
    /// the pause, those who watch would wake each other all the time.
    fn expire(&mut self) -> Result<Expired> {
        let left = self.pause.map(|pause| pause.saturating_duration_since(Instant::now()));
        let left = match left.filter(|left| !left.is_zero()) {
            Some(left) => left,
            None => {
                let Err(failure) = self.shared.expire() else { return Ok(Expired::Now) };
                tracing::warn!("end a lease that is over: {}", Error::from(failure));
                self.pause = Some(Instant::now() + PAUSE);
                PAUSE
            }
        };
        let left = u64::try_from(left.as_millis()).unwrap_or_default();
        self.set_timer(Some(self.shared.clock.now() + left + 1))?;
        Ok(Expired::Later)
    }

    fn broken(&self) -> impl Fn(Error) -> Failure {
        |error| Failure::Unavailable(error.during(self.shared.operation("watch")))
    }
}

impl Watch for Watcher {
    fn next(&mut self, limit: Option<Duration>) -> Answer<Vec<Event>> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            self.drain().map_err(self.broken())?;
            let look = self.shared.look(&self.prefix, self.after)?;
            self.after = look.through;
            self.arm(look.rest, look.due).map_err(self.broken())?;
            if !look.events.is_empty() {
                return Ok(look.events);
            }
            if look.due == Due::Now && self.expire().map_err(|error| self.broken()(error))? == Expired::Now {
                continue;
            }
            if wait(&self.bell, deadline).map_err(self.broken())? == Waited::InVain {
                return Ok(Vec::new());
            }
        }
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// It is rung once in the beginning, for what happened before.
fn open_bell(path: &Path) -> Result<(OwnedFd, OwnedFd, OwnedFd)> {
    let operation = || format!("listen to {}", quote(path));
    let commits = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).context(operation)?;
    inotify::add_watch(&commits, path, inotify::WatchFlags::CLOSE_WRITE).context(operation)?;
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Boottime, flags).context(operation)?;
    let soon = Timespec { tv_sec: 0, tv_nsec: 1 };
    let first = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: soon };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &first).context(operation)?;
    let bell = epoll::create(epoll::CreateFlags::CLOEXEC).context(operation)?;
    for (number, descriptor) in [(0, &commits), (1, &timer)] {
        epoll::add(&bell, descriptor, epoll::EventData::new_u64(number), epoll::EventFlags::IN).context(operation)?;
    }
    Ok((bell, commits, timer))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    ForSomething,
    InVain,
}

fn wait(bell: &OwnedFd, deadline: Option<Instant>) -> Result<Waited> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(bell, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Ok(Waited::InVain),
            Ok(_) => return Ok(Waited::ForSomething),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "wait for the bell"),
        }
    }
}
