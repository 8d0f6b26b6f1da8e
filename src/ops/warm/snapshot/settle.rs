//! Waiting until a program that is ready has come to rest.
//!
//! What it started only to say that it is ready ends by itself, and threads that still compile would compile again in every
//! clone. When it rests, all that it has to do next is to read its order.

use std::fs;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::ids::ContainerId;
use crate::runtime::{self, StateRoot};

/// So many looks in a row have to show the same.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);
/// One that never rests is saved all the same.
const LIMIT: Duration = Duration::from_secs(5);

/// Waits until no thread of a container has run in a few looks, and no process has come or gone; 5 seconds at most.
///
/// # Errors
/// Those of finding its processes.
pub(super) fn settle(root: &StateRoot, id: &ContainerId) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let (mut before, mut quiet) = (Vec::new(), 0);
    while quiet < LOOKS && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
        let now = runtime::processes(root, id)?;
        quiet = if now == before && now.iter().all(|pid| rests(*pid)) { quiet + 1 } else { 0 };
        before = now;
    }
    Ok(())
}

fn rests(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    stats.into_iter().all(|stat| sleeps(&stat))
}

/// Whether a line of /proc/PID/stat is that of a thread that waits for something, or of none any more. Its name may have
/// brackets of its own.
fn sleeps(stat: &str) -> bool {
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('S' | 'I') | None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_rests() {
        assert!(sleeps("7 (java) S 1 7") && sleeps(""));
        assert!(!sleeps("7 (java) R 1 7") && !sleeps("7 (a) S b) D 1 7") && !sleeps("7 (sh) Z 1 7"));
    }
}
