//! Freezing: every process of a cgroup stops where it is, and goes on later, without a signal that it could see.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result, quote};

/// The file that orders, and the words of each version.
struct Freezer {
    file: PathBuf,
    freeze: &'static str,
    thaw: &'static str,
    /// Where it is told that all have stopped, and by which line.
    events: PathBuf,
    frozen: &'static str,
}

impl Cgroup {
    fn freezer(&self) -> Option<Freezer> {
        let directory = self.directory("freezer")?;
        if self.unified().is_some() {
            let (file, events) = (directory.join("cgroup.freeze"), directory.join("cgroup.events"));
            return Some(Freezer { file, freeze: "1", thaw: "0", events, frozen: "frozen 1" });
        }
        let file = directory.join("freezer.state");
        Some(Freezer { file: file.clone(), freeze: "FROZEN", thaw: "THAWED", events: file, frozen: "FROZEN" })
    }

    /// Refuses a container that nobody can make stand still.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without a cgroup.
    pub fn check_freezer(&self) -> Result<()> {
        self.need_freezer().map(drop)
    }

    fn need_freezer(&self) -> Result<Freezer> {
        self.freezer().ok_or_else(|| {
            let operation = format!("freeze cgroup {}", quote(&self.path));
            let cause = "the container has no cgroup that could be frozen";
            Error::new(Kind::Unsupported, operation, cause).next("let regen make cgroups: see docs/oci.md")
        })
    }

    /// Freezes every process in it, and returns when all have stopped. One in an uninterruptible sleep does when it wakes, for
    /// which there is `patience`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without a cgroup; [`Kind::Busy`] if one does not stop, and then all go on.
    pub fn freeze(&self, patience: Duration) -> Result<()> {
        let operation = || format!("freeze cgroup {}", quote(&self.path));
        let freezer = self.need_freezer()?;
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(20);
        let mut turns = 0_u32;
        fs::write(&freezer.file, freezer.freeze).context(operation)?;
        while !freezer.is_frozen().context(operation)? {
            if Instant::now() > deadline {
                fs::write(&freezer.file, freezer.thaw).context(operation)?;
                let cause = "a process does not stop; all of them go on";
                return Err(Error::new(Kind::Busy, operation(), cause).next("try again"));
            }
            // Version 1 can hang between both states while processes are born; asked anew it looks at all of them
            // again, and now and then only a moment's freedom gets it out.
            turns += 1;
            if turns.is_multiple_of(50) && freezer.freeze == "FROZEN" {
                fs::write(&freezer.file, freezer.thaw).context(operation)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            fs::write(&freezer.file, freezer.freeze).context(operation)?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets frozen processes go on: on version 1 a frozen process does not even die of SIGKILL. Nothing to do without a
    /// cgroup, or once it is gone.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn thaw(&self) -> Result<()> {
        let Some(freezer) = self.freezer() else { return Ok(()) };
        match fs::write(&freezer.file, freezer.thaw) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("thaw {}", quote(&freezer.file))),
        }
    }

    /// Whether it is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.freezer().is_some_and(|freezer| freezer.is_frozen().unwrap_or(false))
    }
}

/// Lets everything go on that is in these directories of a container's cgroups: for whoever knows no more of it. What is
/// gone, or has no freezer, has nothing to go on.
///
/// # Errors
/// Those of writing the file.
pub fn thaw_at(directories: &[PathBuf]) -> Result<()> {
    for directory in directories {
        for (name, word) in [("cgroup.freeze", "0"), ("freezer.state", "THAWED")] {
            let path = directory.join(name);
            match OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(word.as_bytes())) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // It was removed between the two calls.
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => {}
                other => other.context(|| format!("thaw {}", quote(&path)))?,
            }
        }
    }
    Ok(())
}

impl Freezer {
    fn is_frozen(&self) -> std::io::Result<bool> {
        Ok(fs::read_to_string(&self.events)?.lines().any(|line| line == self.frozen))
    }
}
