//! A descriptor that one thread makes readable for another, which may wait for several things at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::{Context, Result};

/// Readable from when it is rung until it is silenced (eventfd(2)).
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A silent one.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(|| "make an eventfd")?))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        // It fails only where it has been rung 2^64 - 2 times already: it is readable then.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it silent.
    pub fn silence(&self) {
        // It fails only where it is silent.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Waits until it is rung, or the time is over, or a signal came.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_bell_is_heard_until_it_is_silenced() {
        let bell = Bell::new().unwrap();
        let long = Some(Duration::from_secs(60));
        bell.ring();
        bell.ring();
        let start = Instant::now();
        bell.wait(long).unwrap();
        bell.wait(long).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60));
        bell.silence();
        let short = Duration::from_millis(20);
        let start = Instant::now();
        bell.wait(Some(short)).unwrap();
        assert!(start.elapsed() >= short, "it is silent");
    }
}
