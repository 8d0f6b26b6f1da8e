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
    /// Do not become the program: another process will be it, see [`Verdict`].
    Shelter,
}

/// From the maker, to a process that shelters: what becomes of it.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nobody came: become the program yourself.
    Start,
    /// Look after this process, which is the program.
    Adopt(Adoption),
}

/// A process that a container's first process is to look after.
#[derive(Debug)]
pub(super) struct Adoption {
    /// As the first process sees it.
    pub pid: i32,
    /// Where it writes how that one ended.
    pub status: Option<OwnedFd>,
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
    /// What the program is to have: it is for another process to become that. The verdict is awaited.
    Sheltering(Shelter),
    /// From now on it looks after the program. Nothing follows.
    Adopted,
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

/// What a process has that is to be the program's.
#[derive(Debug)]
pub(in crate::runtime) struct Shelter {
    /// Its standard streams.
    pub stdio: [OwnedFd; 3],
    /// Its working directory, with `O_PATH`.
    pub directory: OwnedFd,
}

const WORDS: [(u8, Word); 4] = [(b'G', Word::Go), (b'L', Word::Listen), (b'S', Word::Start), (b'H', Word::Shelter)];
const ADOPT: u8 = b'A';
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

/// Says that a process is there. `Ok(false)` if nobody hears it.
pub(super) fn adopt(channel: &Channel, pid: i32, status: Option<BorrowedFd<'_>>) -> Result<bool> {
    let bytes = [[ADOPT].as_slice(), &pid.to_ne_bytes()].concat();
    channel.send(&bytes, status.as_slice())
}

/// Waits for a verdict; `None` if the other side is gone.
pub(super) fn hear_verdict(channel: &Channel) -> Result<Option<Verdict>> {
    let Some(Received { bytes, descriptors }) = channel.receive()? else { return Ok(None) };
    match bytes.split_first() {
        Some((b'S', [])) => Ok(Some(Verdict::Start)),
        Some((&ADOPT, pid)) => {
            let pid = i32::from_ne_bytes(pid.try_into().map_err(|_| garbled())?);
            Ok(Some(Verdict::Adopt(Adoption { pid, status: descriptors.into_iter().next() })))
        }
        Some(_) | None => Err(garbled()),
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
        Report::Sheltering(shelter) => {
            let files = shelter.stdio.iter().chain([&shelter.directory]);
            channel.send(b"H", &files.map(AsFd::as_fd).collect::<Vec<_>>())
        }
        Report::Adopted => channel.send(b"A", &[]),
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
        (b'H', []) => Report::Sheltering(take_shelter(descriptors).ok_or_else(garbled)?),
        (b'A', []) => Report::Adopted,
        (b'F', text) => Report::Failed(serde_json::from_slice(text).context(|| "read a failure's report")?),
        _ => return Err(garbled()),
    };
    Ok(Some(report))
}

fn take_shelter(mut descriptors: impl Iterator<Item = OwnedFd>) -> Option<Shelter> {
    let stdio = [descriptors.next()?, descriptors.next()?, descriptors.next()?];
    Some(Shelter { stdio, directory: descriptors.next()? })
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

    #[test]
    fn a_shelter_and_its_verdict_arrive_as_they_were_sent() {
        let (one, other) = Channel::pair().unwrap();
        let file = || OwnedFd::from(memory_file("x", b"").unwrap());
        let shelter = Shelter { stdio: [file(), file(), file()], directory: file() };
        report(&one, &Report::Sheltering(shelter)).unwrap();
        assert!(matches!(await_report(&other).unwrap(), Some(Report::Sheltering(_))));
        report(&one, &Report::Adopted).unwrap();
        assert!(matches!(await_report(&other).unwrap(), Some(Report::Adopted)));
        for status in [None, Some(file())] {
            adopt(&one, 300, status.as_ref().map(AsFd::as_fd)).unwrap();
            let Some(Verdict::Adopt(adoption)) = hear_verdict(&other).unwrap() else { panic!("another verdict") };
            assert_eq!((adoption.pid, adoption.status.is_some()), (300, status.is_some()));
        }
        say(&one, Word::Start).unwrap();
        assert!(matches!(hear_verdict(&other).unwrap(), Some(Verdict::Start)));
        say(&one, Word::Go).unwrap();
        assert!(hear_verdict(&other).is_err());
    }
}
