//! Whether a file has changed, as far as its status tells.

use std::time::SystemTime;

use rustix::fs::{FileType, Stat};

use super::known::Input;

/// A change so long ago shows in the times, nanoseconds: the kernel's clock ticks at least every ten milliseconds.
const TICK: i128 = 100_000_000;
/// The same where times are whole seconds.
const SECOND: i128 = 2_000_000_000;

/// What tells whether something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    inode: u64,
    mode: u32,
    size: i64,
    changed: (i64, u64),
    modified: (i64, u64),
    /// It had changed so lately that the next change may show the same time.
    pub(super) just_now: bool,
}

impl Seen {
    /// What `stat` says, which was asked for after `now`.
    pub(super) fn of(stat: &Stat, now: SystemTime) -> Self {
        let mut seen = Self {
            inode: stat.st_ino,
            mode: stat.st_mode,
            size: stat.st_size,
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            just_now: false,
        };
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_nanos().cast_signed());
        let changed = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        let unsure = if stat.st_ctime_nsec == 0 && stat.st_mtime_nsec == 0 { SECOND } else { TICK };
        // One of the future, too: somebody has set the clock.
        seen.just_now = now - changed < unsure;
        seen
    }

    /// The file's number.
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether the file may be another than it was when it was seen, now that its status is this.
    pub(super) fn is_outdated_by(&self, stat: &Stat) -> bool {
        let changed = (stat.st_ctime, stat.st_ctime_nsec) != self.changed;
        let modified = (stat.st_mtime, stat.st_mtime_nsec) != self.modified;
        let facts = (stat.st_ino, stat.st_mode, stat.st_size) != (self.inode, self.mode, self.size);
        self.just_now || changed || modified || facts
    }

    /// Writes it down in [`Seen::decode`]'s form.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.inode.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        for (second, nanosecond) in [self.changed, self.modified] {
            out.extend(second.to_le_bytes());
            out.extend(nanosecond.to_le_bytes());
        }
        out.push(u8::from(self.just_now));
    }

    /// Reads what was written down; `None` if it ends too early.
    pub(super) fn decode(input: &mut Input<'_>) -> Option<Self> {
        let inode = u64::from_le_bytes(input.array()?);
        let mode = u32::from_le_bytes(input.array()?);
        let size = i64::from_le_bytes(input.array()?);
        let mut time = || Some((i64::from_le_bytes(input.array()?), u64::from_le_bytes(input.array()?)));
        let (changed, modified) = (time()?, time()?);
        let [just_now] = input.array()?;
        Some(Self { inode, mode, size, changed, modified, just_now: just_now != 0 })
    }

    /// Whether a name stands for another file now.
    pub(super) fn is_another_file(&self, other: &Self) -> bool {
        (self.inode, kind_of(self.mode)) != (other.inode, kind_of(other.mode))
    }

    /// Whether nothing tells that it changed, not even where it cannot be told.
    pub(super) fn has_the_facts_of(&self, other: &Self) -> bool {
        Self { just_now: false, ..*self } == Self { just_now: false, ..*other }
    }

    /// Whether the file may be another than it was when it was seen.
    pub(super) fn shows_a_change(&self, now: &Self) -> bool {
        self.just_now || Self { just_now: false, ..*now } != *self
    }
}

/// What sort of file it is.
pub(super) fn kind_of(mode: u32) -> FileType {
    FileType::from_raw_mode(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn stat(second: i64, nanosecond: u64) -> Stat {
        let directory = tempfile::tempdir().unwrap();
        let mut stat = rustix::fs::stat(directory.path()).unwrap();
        (stat.st_ctime, stat.st_ctime_nsec) = (second, nanosecond);
        (stat.st_mtime, stat.st_mtime_nsec) = (second, nanosecond);
        stat
    }

    fn seen(stat: &Stat, now: f64) -> Seen {
        Seen::of(stat, SystemTime::UNIX_EPOCH + Duration::from_secs_f64(now))
    }

    #[test]
    fn a_change_of_just_now_may_hide_the_next_one() {
        let changed = stat(1000, 5);
        assert!(seen(&changed, 1000.05).just_now);
        assert!(!seen(&changed, 1000.2).just_now);
        assert!(seen(&changed, 900.0).just_now, "somebody has set the clock");
        let whole_seconds = stat(1000, 0);
        assert!(seen(&whole_seconds, 1001.5).just_now);
        assert!(!seen(&whole_seconds, 1002.5).just_now);
    }

    #[test]
    fn a_change_is_told_by_any_of_the_facts() {
        let before = stat(1000, 5);
        let old = seen(&before, 2000.0);
        assert!(!old.shows_a_change(&seen(&before, 3000.0)));
        let changes: [fn(&mut Stat); 4] = [
            |stat| stat.st_ctime_nsec = 6,
            |stat| stat.st_mtime = 999,
            |stat| stat.st_size += 1,
            |stat| stat.st_mode ^= 0o100,
        ];
        for change in changes {
            let mut after = before;
            change(&mut after);
            assert!(old.shows_a_change(&seen(&after, 3000.0)));
            assert!(!old.is_another_file(&seen(&after, 3000.0)));
        }
    }
}
