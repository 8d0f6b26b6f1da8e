//! Everything that a keeper waits for, in one set (epoll(7)): as fast with three hundred as with three.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// How many are heard in one round.
const ROUND: usize = 64;

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A signal: most often a child's change of state.
    Signals,
    /// Somebody wants to ask for clones.
    Requests,
    /// Somebody wants to command.
    Commands,
    /// Whoever ordered us is gone.
    Birth,
    /// The template's program says something.
    Zygote,
    /// It prints something.
    Output,
    /// Somebody asks for a clone, or is gone.
    Caller(u64),
    /// Somebody commands, or is gone.
    Commander(u64),
    /// A worker says something, or is dead.
    Worker(u64),
    /// The first process of a sandbox says something, or is gone.
    Sandbox(u64),
}

impl Source {
    const BITS: u32 = 56;

    fn token(self) -> u64 {
        let (kind, number) = match self {
            Self::Signals => (0, 0),
            Self::Requests => (1, 0),
            Self::Commands => (2, 0),
            Self::Birth => (3, 0),
            Self::Zygote => (4, 0),
            Self::Output => (5, 0),
            Self::Caller(number) => (6, number),
            Self::Commander(number) => (7, number),
            Self::Worker(number) => (8, number),
            Self::Sandbox(number) => (9, number),
        };
        kind << Self::BITS | number
    }

    fn from_token(token: u64) -> Option<Self> {
        let number = token & ((1 << Self::BITS) - 1);
        Some(match token >> Self::BITS {
            0 => Self::Signals,
            1 => Self::Requests,
            2 => Self::Commands,
            3 => Self::Birth,
            4 => Self::Zygote,
            5 => Self::Output,
            6 => Self::Caller(number),
            7 => Self::Commander(number),
            8 => Self::Worker(number),
            9 => Self::Sandbox(number),
            _ => return None,
        })
    }
}

/// The set.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// An empty one.
    pub(super) fn new() -> Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self).context(|| "make a set of what to wait for")
    }

    /// From now on this is heard.
    pub(super) fn add(&self, file: impl AsFd, source: Source) -> Result<()> {
        let data = EventData::new_u64(source.token());
        epoll::add(&self.0, file, data, EventFlags::IN).context(|| "wait for one more")
    }

    /// From now on only its end is heard.
    pub(super) fn mute(&self, file: impl AsFd, source: Source) -> Result<()> {
        self.change(file, source, EventFlags::empty())
    }

    /// From now on all of it is heard again.
    pub(super) fn unmute(&self, file: impl AsFd, source: Source) -> Result<()> {
        self.change(file, source, EventFlags::IN)
    }

    fn change(&self, file: impl AsFd, source: Source, flags: EventFlags) -> Result<()> {
        let data = EventData::new_u64(source.token());
        epoll::modify(&self.0, file, data, flags).context(|| "wait for something else")
    }

    /// From now on nothing of it is heard. What is not in the set stays out of it.
    pub(super) fn remove(&self, file: impl AsFd) {
        // It may never have been in it, or have left it by being closed.
        let _ = epoll::delete(&self.0, file);
    }

    /// Waits for something, or until a time comes.
    pub(super) fn wait(&self, until: Option<Instant>) -> Result<Vec<Source>> {
        let limit = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        let mut space = [MaybeUninit::<Event>::uninit(); ROUND];
        match epoll::wait(&self.0, &mut space, limit.as_ref()) {
            Ok((events, _)) => Ok(events.iter().filter_map(|event| Source::from_token(event.data.u64())).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(errno).context(|| "wait for something to do"),
        }
    }
}

/// Never shorter: who wakes too early goes round in circles.
fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::channel::Channel;

    #[test]
    fn what_happens_is_told_by_whom_it_happens_to() {
        let watch = Watch::new().unwrap();
        let (one, other) = Channel::pair().unwrap();
        watch.add(&one, Source::Sandbox(77)).unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        assert!(watch.wait(soon()).unwrap().is_empty());
        other.send(b"x", &[]).unwrap();
        assert_eq!(watch.wait(None).unwrap(), [Source::Sandbox(77)]);
        watch.mute(&one, Source::Sandbox(77)).unwrap();
        assert!(watch.wait(soon()).unwrap().is_empty());
        drop(other);
        assert_eq!(watch.wait(None).unwrap(), [Source::Sandbox(77)], "its end");
        watch.remove(&one);
        assert!(watch.wait(soon()).unwrap().is_empty());
    }

    #[test]
    fn every_source_is_told_apart() {
        use Source::{Birth, Caller, Commander, Commands, Output, Requests, Sandbox, Signals, Worker, Zygote};
        let number = (1 << Source::BITS) - 1;
        let all = [Signals, Requests, Commands, Birth, Zygote, Output];
        for source in all.into_iter().chain([Caller(number), Commander(1), Worker(2), Sandbox(number)]) {
            assert_eq!(Source::from_token(source.token()), Some(source));
        }
        assert_eq!(Source::from_token(u64::MAX), None);
    }
}
