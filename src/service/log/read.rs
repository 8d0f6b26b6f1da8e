//! Reading a log while it is written, over its change to the next file.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::name;
use crate::error::{Context, Result, quote};

/// The most bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// More files than anybody keeps.
const MOST_FILES: usize = 100;

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The program, and it ended the line.
    Line,
    /// The program, and the line goes on.
    Part,
    /// The keeper.
    Keeper,
}

impl Source {
    const ALL: [Self; 3] = [Self::Line, Self::Part, Self::Keeper];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Line => "out",
            Self::Part => "part",
            Self::Keeper => "keeper",
        }
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it came.
    pub time: DateTime<Utc>,
    /// Whose it is.
    pub instance: String,
    /// Who said it.
    pub source: Source,
    /// What was said; what is no UTF-8 is replaced.
    pub text: String,
}

/// Reads a log from its oldest line on.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Reader {
    /// Of the log in this directory, which may not have anything yet.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), file: None, rest: Vec::new() }
    }

    /// The next lines; none if there are no more for now.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn read(&mut self) -> Result<Vec<Line>> {
        let operation = || format!("read log {}", quote(&self.directory));
        loop {
            let Some(file) = &mut self.file else {
                match next_file(&self.directory, None)? {
                    Some(file) => self.file = Some(file),
                    None => return Ok(Vec::new()),
                }
                continue;
            };
            let mut chunk = vec![0; CHUNK];
            let mut count = file.read(&mut chunk).context(operation)?;
            if count == 0 {
                let Some(next) = next_file(&self.directory, Some(file))? else { return Ok(Vec::new()) };
                // Something may have come before the next file was begun.
                count = file.read(&mut chunk).context(operation)?;
                if count == 0 {
                    self.file = Some(next);
                    self.rest.clear();
                    continue;
                }
            }
            self.rest.extend_from_slice(&chunk[..count]);
            let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            let lines: Vec<Line> = self.rest[..end].split(|byte| *byte == b'\n').filter_map(parse).collect();
            self.rest.drain(..end);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }
}

/// The file after this one, or the oldest; `None` if there is none yet.
fn next_file(directory: &Path, current: Option<&File>) -> Result<Option<File>> {
    let operation = || format!("read log {}", quote(directory));
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let ours = current.map(|file| file.metadata().map(inode)).transpose().context(operation)?;
    let mut newer = None;
    for age in 0..MOST_FILES {
        let file = match File::open(name(directory, age)) {
            Ok(file) => file,
            // The newest may be about to be made.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && age == 0 => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            Err(error) => return Err(error).context(operation),
        };
        if ours == Some(file.metadata().map(inode).context(operation)?) {
            return Ok(newer);
        }
        newer = Some(file);
    }
    Ok(newer)
}

/// A line that was cut short by a full disk is none.
fn parse(line: &[u8]) -> Option<Line> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut word = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
    let time = DateTime::parse_from_rfc3339(word()?).ok()?.with_timezone(&Utc);
    let instance = word()?.to_owned();
    let how = word()?;
    let source = Source::ALL.into_iter().find(|source| source.word() == how)?;
    Some(Line { time, instance, source, text: String::from_utf8_lossy(fields.next()?).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::log::{Limits, Writer};

    #[test]
    fn a_reader_that_follows_misses_nothing_over_many_files() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { size: 300, files: 3 };
        let mut writer = Writer::new(directory.path(), &"web".parse().unwrap(), limits);
        let mut reader = Reader::new(directory.path());
        assert!(reader.read().unwrap().is_empty(), "there is no file yet");
        let mut found = Vec::new();
        for number in 0..100 {
            writer.output(format!("{number}\n").as_bytes());
            if number % 7 == 0 {
                loop {
                    let lines = reader.read().unwrap();
                    if lines.is_empty() {
                        break;
                    }
                    found.extend(lines.into_iter().map(|line| line.text.parse::<usize>().unwrap()));
                }
            }
        }
        assert_eq!(found, (0..=98).collect::<Vec<_>>());
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let text = b"2026-11-22T15:24:48.1Z web ou\n\n\xff\xff a b c\n2026-11-22T15:24:48.1Z web out \xffx y\nhalf";
        fs::write(directory.path().join("log"), text).unwrap();
        let lines = Reader::new(directory.path()).read().unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].text, "\u{fffd}x y");
    }
}
