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
