//! How many files a process may have open: many for the daemon, and what it was told for what it starts.
//!
//! The soft limit of most processes is 1024, because select(2) cannot say more and programs would fail in odd ways. Who
//! needs more raises it for itself up to the hard one, and gives it back to what it executes.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What it was before it was raised.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of this process to the hard one. What cannot be raised stays.
pub fn raise() {
    let now = getrlimit(Resource::Nofile);
    let before = BEFORE.get_or_init(|| now);
    // The hard limit is there for everybody to use.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..*before });
}

/// The soft limit is raised as long as this lives.
#[derive(Debug)]
pub struct Raised(Rlimit);

impl Raised {
    /// Raises the soft limit of this process to the hard one, as [`raise`].
    #[must_use]
    pub fn new() -> Self {
        let now = getrlimit(Resource::Nofile);
        raise();
        Self(now)
    }

    /// How many files this process may have open now.
    #[must_use]
    pub fn limit(&self) -> usize {
        let limit = getrlimit(Resource::Nofile).current;
        limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }
}

impl Default for Raised {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        // It was so before, so it may be so again.
        let _ = setrlimit(Resource::Nofile, self.0);
    }
}

/// Gives the soft limit back as it was, before another program is executed. It makes one system call and takes no lock, so it
/// may be called between fork and exec.
///
/// # Errors
/// Those of setrlimit(2).
pub fn restore() -> io::Result<()> {
    match BEFORE.get() {
        Some(before) => Ok(setrlimit(Resource::Nofile, *before)?),
        None => Ok(()),
    }
}
