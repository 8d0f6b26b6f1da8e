//! One process waits, without being woken for nothing, until another one rings: by a file that the one watches and the other
//! opens and closes.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::error::{Context, Result, quote};

/// Hears every ring since it was made.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

impl Doorbell {
    /// Watches a file, which is made if it is not there.
    ///
    /// # Errors
    /// Those of making it, and of inotify(7).
    pub fn new(file: &Path) -> Result<Self> {
        let operation = || format!("watch {}", quote(file));
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file).context(operation)?;
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let descriptor = inotify::init(flags).context(operation)?;
        // Also when it is removed, with everything around it.
        let events = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&descriptor, file, events).context(operation)?;
        Ok(Self(descriptor))
    }

    /// Rings, if anybody ever watched.
    ///
    /// # Errors
    /// Those of open.
    pub fn ring(file: &Path) -> Result<()> {
        match OpenOptions::new().write(true).open(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop).context(|| format!("ring {}", quote(file))),
        }
    }

    /// Waits until somebody has rung since the last look, at most so long; whether somebody has.
    ///
    /// # Errors
    /// Those of poll(2) and read(2).
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        let operation = || "wait for a ring";
        let limit = Timespec::try_from(limit).ok();
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(operation),
        }
        let (mut buffer, mut rang) = ([0; 4096], false);
        loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(_) => rang = true,
                Err(Errno::AGAIN) => return Ok(rang),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(operation),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ring_is_heard_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bell");
        Doorbell::ring(&file).unwrap();
        assert!(!file.exists(), "nobody ever watched");
        let bell = Doorbell::new(&file).unwrap();
        assert!(!bell.wait(Duration::ZERO).unwrap());
        Doorbell::ring(&file).unwrap();
        Doorbell::ring(&file).unwrap();
        assert!(bell.wait(Duration::from_secs(60)).unwrap());
        assert!(!bell.wait(Duration::ZERO).unwrap());
        std::fs::remove_file(&file).unwrap();
        assert!(bell.wait(Duration::from_secs(60)).unwrap());
    }
}
