//! What instances print, kept by size.
//!
//! ```text
//! DIR/log      the newest: the keepers of all instances append to it
//! DIR/log.1    what was before
//! DIR/log.2    the oldest, which the next one takes the place of
//! DIR/lock     held by whoever renames them
//!
//! 2026-11-22T15:24:48.123456Z web-1.2.0-7 out listening on port 80
//! when                        instance    how the line itself
//! ```
//!
//! How is `out` for a line of the program's, `part` for one that goes on in the next, `keeper` for what the keeper has to
//! say. Each write is of whole lines and goes to the end of the file, so lines of two instances never mix.
//!
//! Rules:
//! - A program is never kept waiting, and never fails, because its words cannot be kept: they are counted and dropped.
//! - Whoever finds the newest file over its limit renames it under the lock, unless somebody else was faster.

mod read;

pub use read::{Line, Reader, Source};

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::{SecondsFormat, Utc};

use crate::error::{Context, Result, quote};
use crate::ids::ContainerId;
use crate::sys::lock::{Lock, Sharing};

/// The newest file.
const NEWEST: &str = "log";
const LOCK: &str = "lock";

/// A line that is longer is kept in parts.
const LONGEST: usize = 16 << 10;
/// How many lines of an instance are kept at hand, and how much of each, in characters.
const LAST_WORDS: usize = 20;
const LAST_WORD: usize = 300;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The bytes of one file, after which the next one is begun.
    pub size: u64,
    /// How many files there are, the newest among them.
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { size: 10 << 20, files: 3 }
    }
}

/// A file of the log: 0 is the newest.
fn name(directory: &Path, age: usize) -> PathBuf {
    directory.join(if age == 0 { NEWEST.to_owned() } else { format!("{NEWEST}.{age}") })
}

/// What one instance says.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    limits: Limits,
    instance: String,
    file: Option<File>,
    /// The beginning of a line whose end has not come.
    pending: Vec<u8>,
    /// Bytes that could not be kept, and why.
    lost: Option<(u64, String)>,
    last_words: VecDeque<String>,
}

impl Writer {
    /// For an instance whose service has this directory for its log, which is there.
    #[must_use]
    pub fn new(directory: &Path, instance: &ContainerId, limits: Limits) -> Self {
        Self {
            directory: directory.to_owned(),
            limits,
            instance: instance.to_string(),
            file: None,
            pending: Vec::new(),
            lost: None,
            last_words: VecDeque::new(),
        }
    }

    /// Takes what the program printed, as it came.
    pub fn output(&mut self, bytes: &[u8]) {
        let mut lines = Vec::with_capacity(bytes.len() + 256);
        let head = self.head();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() >= LONGEST {
                self.take_pending(&head, &mut lines);
            }
        }
        self.write(&lines);
    }

    /// Says something of the keeper's own.
    pub fn note(&mut self, text: &str) {
        let head = self.head();
        let mut lines = Vec::new();
        for line in text.lines() {
            put(&mut lines, &head, Source::Keeper, line.as_bytes());
        }
        self.write(&lines);
    }

    /// The program prints no more: a line without an end is one all the same.
    pub fn finish(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut lines = Vec::new();
        self.pending.push(b'\n');
        let head = self.head();
        self.take_pending(&head, &mut lines);
        self.write(&lines);
    }

    /// The last lines of the program, for whoever asks why it ended.
    #[must_use]
    pub fn last_words(&self) -> Vec<String> {
        self.last_words.iter().cloned().collect()
    }

    fn head(&self) -> String {
        format!("{} {}", Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true), self.instance)
    }

    /// Puts what is pending under the lines: one or a part of one, split where it is too long.
    fn take_pending(&mut self, head: &str, lines: &mut Vec<u8>) {
        let pending = std::mem::take(&mut self.pending);
        let (text, whole) = match pending.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (pending.as_slice(), false),
        };
        self.remember(text);
        let mut rest = text;
        while rest.len() > LONGEST {
            let (part, after) = rest.split_at(LONGEST);
            put(lines, head, Source::Part, part);
            rest = after;
        }
        put(lines, head, if whole { Source::Line } else { Source::Part }, rest);
    }

    fn remember(&mut self, text: &[u8]) {
        let line: String = String::from_utf8_lossy(text).chars().take(LAST_WORD).collect();
        self.last_words.push_back(line);
        if self.last_words.len() > LAST_WORDS {
            self.last_words.pop_front();
        }
    }

    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let lost = self.lost.as_ref().map(|(bytes, why)| {
            let mut line = Vec::new();
            put(&mut line, &self.head(), Source::Keeper, format!("{bytes} bytes were not kept: {why}").as_bytes());
            line
        });
        let written = self.append(&[lost.unwrap_or_default().as_slice(), lines].concat());
        match (written, &mut self.lost) {
            (Ok(()), lost) => *lost = None,
            (Err(error), Some((bytes, why))) => (*bytes, *why) = (*bytes + lines.len() as u64, error.to_string()),
            (Err(error), lost @ None) => {
                tracing::warn!("{error}");
                *lost = Some((lines.len() as u64, error.to_string()));
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => open(&self.directory)?,
        };
        let operation = || format!("write log {}", quote(name(&self.directory, 0)));
        if file.metadata().context(operation)?.len() >= self.limits.size {
            file = turn_over(&self.directory, &file, self.limits)?;
        }
        let before = file.metadata().context(operation)?.len();
        let written = file.write_all(bytes).context(operation);
        if written.is_err() && file.metadata().is_ok_and(|now| now.len() > before) {
            // Half a line must not have the next one as its end. Where there is no room even for that, readers pass over it.
            let _ = file.write_all(b"\n");
        }
        self.file = Some(file);
        written
    }
}

fn put(lines: &mut Vec<u8>, head: &str, source: Source, text: &[u8]) {
    lines.extend_from_slice(head.as_bytes());
    lines.push(b' ');
    lines.extend_from_slice(source.word().as_bytes());
    lines.push(b' ');
    lines.extend_from_slice(text);
    lines.push(b'\n');
}

fn open(directory: &Path) -> Result<File> {
    let path = name(directory, 0);
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .context(|| format!("open log {}", quote(&path)))
}

/// Begins the next file, unless somebody has done so since `full` was opened.
fn turn_over(directory: &Path, full: &File, limits: Limits) -> Result<File> {
    let operation = || format!("begin another file of log {}", quote(name(directory, 0)));
    let _lock = Lock::wait(&directory.join(LOCK), Sharing::Exclusive)?;
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let ours = full.metadata().map(inode).context(operation)?;
    if fs::metadata(name(directory, 0)).is_ok_and(|newest| inode(newest) == ours) {
        for age in (1..limits.files.max(2)).rev() {
            match fs::rename(name(directory, age - 1), name(directory, age)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.context(operation)?,
            }
        }
    }
    open(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(directory: &Path, instance: &str, limits: Limits) -> Writer {
        Writer::new(directory, &instance.parse().unwrap(), limits)
    }

    fn all(directory: &Path) -> Vec<(String, Source, String)> {
        let mut reader = Reader::new(directory);
        let mut found = Vec::new();
        loop {
            let lines = reader.read().unwrap();
            if lines.is_empty() {
                return found;
            }
            found.extend(lines.into_iter().map(|line| (line.instance, line.source, line.text)));
        }
    }

    #[test]
    fn lines_come_back_as_they_were_printed_with_who_printed_them() {
        let directory = tempfile::tempdir().unwrap();
        let mut one = writer(directory.path(), "web-1", Limits::default());
        let mut other = writer(directory.path(), "web-2", Limits::default());
        one.output(b"first\nsec");
        other.output(b"other\n");
        one.output(b"ond\n\n");
        one.note("it was told to end");
        one.output(b"no end");
        one.finish();
        let expected = [
            ("web-1", Source::Line, "first"),
            ("web-2", Source::Line, "other"),
            ("web-1", Source::Line, "second"),
            ("web-1", Source::Line, ""),
            ("web-1", Source::Keeper, "it was told to end"),
            ("web-1", Source::Line, "no end"),
        ];
        let expected: Vec<_> = expected.map(|(who, source, text)| (who.to_owned(), source, text.to_owned())).into();
        assert_eq!(all(directory.path()), expected);
        assert_eq!(one.last_words(), ["first", "second", "", "no end"]);
    }

    #[test]
    fn a_long_line_comes_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(directory.path(), "web", Limits::default());
        writer.output(&[b'x'; 3 * LONGEST + 7]);
        writer.output(b"end\n");
        let found = all(directory.path());
        let text: String = found.iter().map(|(.., text)| text.as_str()).collect();
        assert_eq!(text.len(), 3 * LONGEST + 10);
        assert_eq!(found.last().unwrap().1, Source::Line);
        assert!(found[..found.len() - 1].iter().all(|(_, source, _)| *source == Source::Part));
    }

    #[test]
    fn no_more_is_kept_than_the_limit_whoever_writes() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { size: 1000, files: 3 };
        let mut writers = [writer(directory.path(), "a", limits), writer(directory.path(), "b", limits)];
        for number in 0..200 {
            writers[number % 2].output(format!("line {number}\n").as_bytes());
        }
        let sizes: Vec<_> =
            (0..4).map(|age| fs::metadata(name(directory.path(), age)).map(|file| file.len()).ok()).collect();
        assert!(sizes[..3].iter().all(|size| size.is_some_and(|size| size < 1100)), "{sizes:?}");
        assert_eq!(sizes[3], None);
        let found = all(directory.path());
        let numbers: Vec<usize> = found.iter().map(|(.., text)| text[5..].parse().unwrap()).collect();
        assert_eq!(numbers, (200 - numbers.len()..200).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_kept_is_counted_and_told_later() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        let mut writer = writer(&gone, "web", Limits::default());
        writer.output(b"lost\n");
        writer.output(b"lost\n");
        fs::create_dir(&gone).unwrap();
        writer.output(b"kept\n");
        let found = all(&gone);
        assert_eq!(found.len(), 2);
        assert!(found[0].1 == Source::Keeper && found[0].2.contains("bytes were not kept"), "{found:?}");
        assert_eq!(found[1].2, "kept");
        assert_eq!(writer.last_words().len(), 3);
    }
}
