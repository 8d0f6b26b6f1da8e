//! One call of a function in a clone that lives no longer than the call.
//!
//! The clone writes what came of it into a pipe: `{"result": …}`, or `{"error": {"type", "message", "traceback"}}`. Everything
//! else that can happen to it is told apart here: it ends without a word, is killed for its memory, takes too long, says too much.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Place;
use super::clone::{End, Taken, Wish, take};
use crate::config::human_bytes;
use crate::error::{Context, Error, Kind, Result};
use crate::runtime;

/// What is read at once: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// A clone that has ended has said all that it will.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How far a call may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long it may take, from the request to the result.
    pub time: Duration,
    /// The longest result, in bytes.
    pub output: u64,
}

/// What came of a call, as JSON texts.
#[derive(Debug)]
pub enum Outcome {
    /// What the function returned.
    Result(Box<RawValue>),
    /// What it failed with.
    Error(Failure),
}

/// An exception, or what the language has in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its type's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says.
    pub message: String,
    /// Where it happened.
    #[serde(default)]
    pub traceback: String,
}

/// Calls the function. The container is killed and deleted when this returns, or its process ends.
///
/// # Errors
/// As [`take`]; [`Kind::State`] if the function did not come to its end: the line says why.
pub fn invoke(place: &Place, wish: &Wish, bounds: Bounds, stdio: [BorrowedFd<'_>; 3]) -> Result<Outcome> {
    let deadline = Instant::now() + bounds.time;
    let handler = wish.call.as_ref().map(|call| call.handler.as_str()).unwrap_or_default();
    let operation = || format!("invoke '{handler}' in a clone of '{}'", wish.template);
    let mut taken = match take(place, wish, stdio, bounds.time) {
        Err(error) if error.kind() == Kind::Busy => return Err(error.during(operation())),
        other => other?,
    };
    let mut call = Call { place, bounds, deadline, text: Vec::new(), end: None };
    let heard = call.hear(&mut taken).context(operation)?;
    if heard == Heard::All {
        return parse(&call.text).map_err(|error| call.explain(&taken, error)).context(operation);
    }
    // Before its result is closed, so that it does not complain of that.
    stop(taken);
    match heard {
        Heard::All | Heard::Abandoned => {
            Err(Error::new(Kind::State, operation(), "the keeper of its template has ended"))
        }
        Heard::TooLong => {
            let seconds = bounds.time.as_secs_f64();
            let cause = format!("it has not come to its end in {seconds} s, and was killed");
            Err(Error::new(Kind::State, operation(), cause).next("give it more: --timeout"))
        }
        Heard::TooMuch => {
            let cause = format!("its result has more than {}, and it was killed", human_bytes(bounds.output));
            Err(Error::new(Kind::State, operation(), cause).next("let it return less, or allow more: --max-output"))
        }
    }
}

/// A call that goes on.
struct Call<'a> {
    place: &'a Place,
    bounds: Bounds,
    deadline: Instant,
    /// What was said so far.
    text: Vec<u8>,
    /// How the clone ended, once it has.
    end: Option<End>,
}

/// Why nothing more is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// There is nothing more.
    All,
    /// The time is over.
    TooLong,
    /// It says more than it may.
    TooMuch,
    /// Nobody looks after it any more.
    Abandoned,
}

impl Call<'_> {
    /// Reads until everything was said, or the clone has ended.
    fn hear(&mut self, taken: &mut Taken) -> Result<Heard> {
        loop {
            if let Some(heard) = self.read(taken)? {
                return Ok(heard);
            }
            // Looked at first, so that what was said before the end is read after it.
            if self.end.is_some() {
                return Ok(self.read(taken)?.unwrap_or(Heard::All));
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Heard::TooLong);
            }
            if !wait(taken, left)? {
                return Ok(Heard::Abandoned);
            }
            self.end = taken.end()?;
        }
    }

    /// Reads what is there; `None` if more may come.
    fn read(&mut self, taken: &mut Taken) -> Result<Option<Heard>> {
        let Some(result) = &mut taken.result else { return Ok(Some(Heard::All)) };
        let mut chunk = vec![0; CHUNK];
        loop {
            match result.read(&mut chunk) {
                Ok(0) => return Ok(Some(Heard::All)),
                Ok(count) => self.text.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(|| "read its result"),
            }
            if self.text.len() as u64 > self.bounds.output {
                return Ok(Some(Heard::TooMuch));
            }
        }
    }

    /// Why there is no result.
    fn explain(&self, taken: &Taken, unreadable: Error) -> Error {
        let end = self.end.or_else(|| last_words(taken));
        let refuse = |cause: String| Error::new(Kind::State, "run it", cause);
        let killed = matches!(end, Some(End::Signal(9) | End::Unknown) | None);
        if killed && ran_out_of_memory(self.place, taken) {
            return refuse("it needed more memory than it may have, and was killed".to_owned())
                .next("allow more: --memory");
        }
        match end {
            _ if !self.text.is_empty() => unreadable,
            Some(End::Exit(code)) => refuse(format!("it ended with status {code}, and returned nothing")),
            Some(End::Signal(number)) => refuse(format!("it was killed by signal {number}")),
            Some(End::Unknown) => refuse("its container was killed".to_owned()),
            None => refuse("it closed its result, and returned nothing".to_owned()),
        }
    }
}

/// Waits for anything to happen; `false` if the keeper has ended and nothing else has happened.
fn wait(taken: &Taken, limit: Duration) -> Result<bool> {
    let limit =
        Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: limit.subsec_nanos().into() };
    let mut sources = vec![
        // No event but those that are always told: nothing more is said.
        PollFd::new(&taken.requester, PollFlags::empty()),
        PollFd::new(&taken.status, PollFlags::IN),
    ];
    sources.extend(taken.result.as_ref().map(|result| PollFd::new(result, PollFlags::IN)));
    match poll(&mut sources, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno).context(|| "wait for its result"),
    }
    let news = sources[1..].iter().any(|source| !source.revents().is_empty());
    Ok(news || sources[0].revents().is_empty())
}

/// Ends the clone by the end of the connection that it was asked for by.
fn stop(taken: Taken) {
    let Taken { requester, status, result, .. } = taken;
    drop(requester);
    await_end(&status);
    drop(result);
}

/// Waits a moment for the word about a clone's end.
fn await_end(status: &File) {
    let limit = Timespec { tv_sec: i64::try_from(LAST_WORDS.as_secs()).unwrap_or(1), tv_nsec: 0 };
    // If it does not come, it is said without it.
    let _ = poll(&mut [PollFd::new(status, PollFlags::IN)], Some(&limit));
}

/// How a clone ended that has closed its result; it is just about to.
fn last_words(taken: &Taken) -> Option<End> {
    await_end(&taken.status);
    let mut text = [0; 64];
    let count = rustix::io::read(&taken.status, &mut text).ok()?;
    Some(End::parse(&text[..count]))
}

/// Whether the kernel has killed something in its container for want of memory.
fn ran_out_of_memory(place: &Place, taken: &Taken) -> bool {
    let kills = runtime::state(&place.root, &taken.container).and_then(|state| state.cgroup.memory_kills());
    kills.is_ok_and(|kills| kills > 0)
}

/// Reads what a clone has written.
pub(super) fn parse(text: &[u8]) -> Result<Outcome> {
    let refuse = |cause: String| Error::new(Kind::Invalid, "read its result", cause);
    let mut fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(text).map_err(|error| refuse(format!("it is no JSON object: {error}")))?;
    match (fields.remove("result"), fields.remove("error")) {
        (Some(result), None) => Ok(Outcome::Result(result)),
        (None, Some(error)) => {
            let failure = serde_json::from_str(error.get()).map_err(|error| refuse(format!("its error: {error}")))?;
            Ok(Outcome::Error(failure))
        }
        (Some(_), Some(_)) | (None, None) => Err(refuse("it has not one of 'result' and 'error'".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_errors_are_told_apart() {
        let result = |text: &str| match parse(text.as_bytes()) {
            Ok(Outcome::Result(result)) => result.get().to_owned(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(result(r#"{"result": null}"#), "null");
        assert_eq!(result(r#"{"result": {"error": 1e400}}"#), r#"{"error": 1e400}"#);
        let text = r#"{"error": {"type": "ValueError", "message": "no", "traceback": "at f"}}"#;
        let Ok(Outcome::Error(failure)) = parse(text.as_bytes()) else { panic!() };
        assert_eq!((failure.kind.as_str(), failure.traceback.as_str()), ("ValueError", "at f"));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for text in [
            "",
            "1",
            "[]",
            "{}",
            r#"{"result": 1"#,
            r#"{"result": 1, "error": {}}"#,
            r#"{"error": 1}"#,
            r#"{"result":1}x"#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }
}
