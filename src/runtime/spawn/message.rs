//! What a process that is to become a container's and the one that made it say to each other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::channel::{Channel, Received};

/// From the maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// What you were waiting for is done.
    Go,
    /// You are on record: whoever connects to your socket may start you.
    Listen,
    /// Become the program.
    Start,
}

/// To the maker.
#[derive(Debug)]
pub(super) enum Report {
    /// An intermediate has made the real process, which has this pid here.
    Cloned(i32),
    /// The file systems stand, the host's are still in sight: the turn of hooks.
    Mounted,
    /// Everything is done that does not have to wait for the start.
    Ready(Handed),
    /// The next call executes the program: what comes now is its failure, or the end of the connection.
    Executing,
    /// It did not work. Nothing follows.
    Failed(Error),
}

/// Open files that the maker takes over.
#[derive(Debug, Default)]
pub(super) struct Handed {
    /// The near end of the terminal.
    pub terminal: Option<OwnedFd>,
    /// The listener of the seccomp filter.
    pub listener: Option<OwnedFd>,
}

const WORDS: [(u8, Word); 3] = [(b'G', Word::Go), (b'L', Word::Listen), (b'S', Word::Start)];
const TERMINAL: u8 = 1;
const LISTENER: u8 = 2;

/// Says a word. `Ok(false)` if nobody hears it.
pub(super) fn say(channel: &Channel, word: Word) -> Result<bool> {
    let code = WORDS.iter().find(|(_, other)| *other == word).map_or(0, |(code, _)| *code);
    channel.send(&[code], &[])
}

/// Waits for a word; `None` if the other side is gone.
pub(super) fn hear(channel: &Channel) -> Result<Option<Word>> {
    let Some(received) = channel.receive()? else { return Ok(None) };
    match WORDS.iter().find(|(code, _)| received.bytes == [*code]) {
        Some((_, word)) => Ok(Some(*word)),
        None => Err(garbled()),
    }
}

/// Reports. `Ok(false)` if nobody hears it.
pub(super) fn report(channel: &Channel, report: &Report) -> Result<bool> {
    match report {
        Report::Cloned(pid) => channel.send(&[b"C".as_slice(), &pid.to_ne_bytes()].concat(), &[]),
        Report::Mounted => channel.send(b"M", &[]),
        Report::Ready(handed) => {
            let flags = u8::from(handed.terminal.is_some()) * TERMINAL + u8::from(handed.listener.is_some()) * LISTENER;
            let descriptors: Vec<BorrowedFd<'_>> =
                [&handed.terminal, &handed.listener].into_iter().flatten().map(AsFd::as_fd).collect();
            channel.send(&[b'R', flags], &descriptors)
        }
        Report::Executing => channel.send(b"X", &[]),
        Report::Failed(error) => {
            let text = serde_json::to_vec(error).context(|| "report a failure")?;
            channel.send(&[b"F".as_slice(), &text].concat(), &[])
        }
    }
}

/// Waits for a report; `None` if the other side is gone.
pub(super) fn await_report(channel: &Channel) -> Result<Option<Report>> {
    let Some(Received { bytes, descriptors }) = channel.receive()? else { return Ok(None) };
    let mut descriptors = descriptors.into_iter();
    let (kind, rest) = bytes.split_first().ok_or_else(garbled)?;
    let report = match (kind, rest) {
        (b'C', rest) => Report::Cloned(i32::from_ne_bytes(rest.try_into().map_err(|_| garbled())?)),
        (b'M', []) => Report::Mounted,
        (b'R', [flags]) => {
            let mut take = |flag: u8| if flags & flag == 0 { None } else { descriptors.next() };
            Report::Ready(Handed { terminal: take(TERMINAL), listener: take(LISTENER) })
        }
        (b'X', []) => Report::Executing,
        (b'F', text) => Report::Failed(serde_json::from_slice(text).context(|| "read a failure's report")?),
        _ => return Err(garbled()),
    };
    Ok(Some(report))
}

fn garbled() -> Error {
    Error::new(Kind::System, "read a message between two processes of the runtime", "it makes no sense")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::memory_file;

    #[test]
    fn words_and_reports_arrive_as_they_were_sent() {
        let (one, other) = Channel::pair().unwrap();
        for (_, word) in WORDS {
            say(&one, word).unwrap();
            assert_eq!(hear(&other).unwrap(), Some(word));
        }
        report(&one, &Report::Cloned(77)).unwrap();
        assert!(matches!(await_report(&other).unwrap(), Some(Report::Cloned(77))));
        let failure = Error::new(Kind::CommandNotFound, "find 'x'", "it is not there").next("install it");
        let text = failure.to_string();
        report(&one, &Report::Failed(failure)).unwrap();
        let Some(Report::Failed(error)) = await_report(&other).unwrap() else { panic!("another report") };
        assert_eq!((error.kind(), error.to_string()), (Kind::CommandNotFound, text));
    }

    #[test]
    fn what_is_handed_over_keeps_its_meaning() {
        let (one, other) = Channel::pair().unwrap();
        let file = || Some(OwnedFd::from(memory_file("x", b"").unwrap()));
        for (terminal, listener) in [(None, None), (file(), None), (None, file()), (file(), file())] {
            let expected = (terminal.is_some(), listener.is_some());
            report(&one, &Report::Ready(Handed { terminal, listener })).unwrap();
            let Some(Report::Ready(handed)) = await_report(&other).unwrap() else { panic!("another report") };
            assert_eq!((handed.terminal.is_some(), handed.listener.is_some()), expected);
        }
        drop(one);
        assert!(await_report(&other).unwrap().is_none());
    }
}
