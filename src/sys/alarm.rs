//! Being told by the kernel that a cgroup ran out of memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;

use crate::error::{Context, Result, quote};

/// A descriptor that becomes readable when a cgroup ran out of memory, and at times for other reasons.
#[derive(Debug)]
pub struct Alarm {
    descriptor: OwnedFd,
    /// Where the kernel writes down what happened.
    file: PathBuf,
    /// On version 2, how many kills are known; version 1 rings once for each time, also where nothing is killed.
    kills: Option<u64>,
}

impl Alarm {
    /// On version 1, for a directory of the memory hierarchy (cgroup-v1/memory.rst, "OOM Control").
    ///
    /// # Errors
    /// Those of opening and registering.
    pub fn version_1(directory: &Path) -> Result<Self> {
        let operation = || format!("ask to be told when {} runs out of memory", quote(directory));
        let file = directory.join("memory.oom_control");
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(operation)?;
        let control = File::open(&file).context(operation)?;
        // The kernel keeps both open for itself.
        let line = format!("{} {}", descriptor.as_raw_fd(), control.as_raw_fd());
        fs::write(directory.join("cgroup.event_control"), line).context(operation)?;
        Ok(Self { descriptor, file, kills: None })
    }

    /// On version 2 (cgroup-v2.rst, `memory.events`).
    ///
    /// # Errors
    /// Those of watching the file.
    pub fn version_2(directory: &Path) -> Result<Self> {
        let operation = || format!("ask to be told when {} runs out of memory", quote(directory));
        let file = directory.join("memory.events");
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let descriptor = inotify::init(flags).context(operation)?;
        inotify::add_watch(&descriptor, &file, inotify::WatchFlags::MODIFY).context(operation)?;
        let kills = Some(count_kills(&file));
        Ok(Self { descriptor, file, kills })
    }

    /// How often memory ran out since the last look. Whatever made the descriptor readable is taken from it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn rings(&mut self) -> io::Result<u64> {
        let mut buffer = [0; 4096];
        let mut rang = false;
        loop {
            match rustix::io::read(&self.descriptor, &mut buffer) {
                Ok(_) => rang = true,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match &mut self.kills {
            // It rings too when the cgroup is removed.
            None => Ok(u64::from(rang && self.file.exists())),
            Some(known) => {
                let now = count_kills(&self.file);
                let new = now.saturating_sub(*known);
                *known = now.max(*known);
                Ok(new)
            }
        }
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// `oom_kill N`, a line of the file; nothing is counted any more in a cgroup that is gone.
fn count_kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
