//! One call: an order in a line, an answer in a line.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use super::{Clone, Snapshot, clone};
use crate::cgroup::Manager;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::ops::load::Supervised;
use crate::ops::{Place, save};
use crate::runtime::{Created, Stdio};
use crate::sys::process::{ExitStatus, Process};
use crate::sys::signal::{Blocked, Signal};

const CHUNK: usize = 64 << 10;

/// A call of a function in a clone that lives for it alone.
#[derive(Debug)]
pub struct Invocation {
    /// The clone's id.
    pub id: ContainerId,
    /// `MODULE:NAME`: what that means is the program's affair.
    pub handler: String,
    /// The event.
    pub event: Value,
    /// The directory that it finds at /function; absolute.
    pub function: Option<PathBuf>,
    /// How long it may take.
    pub timeout: Duration,
    /// The most memory, in bytes.
    pub memory: Option<u64>,
    /// The longest answer, in bytes.
    pub max_output: u64,
    /// Who makes the cgroup.
    pub cgroups: Manager,
    /// Where its standard error goes.
    pub stderr: OwnedFd,
}

/// Calls. `print` gets what the program prints on its standard output besides the answer. The answer is an object with
/// `result`, or with `error`; the clone is gone when this returns.
///
/// # Errors
/// Those of [`clone`]; [`Kind::State`] if the program ends without an answer, or takes too long, or says too much.
pub fn invoke(
    place: &Place,
    snapshot: &Snapshot,
    invocation: Invocation,
    print: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Value> {
    let operation = format!("call '{}' in container '{}'", invocation.handler, invocation.id);
    let id = invocation.id.clone();
    let signals = Blocked::all()?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe");
    let ((stdin, input), (output, stdout)) = (pipe()?, pipe()?);
    for end in [&input, &output] {
        fcntl_setfl(end, OFlags::NONBLOCK).context(|| "make a pipe")?;
    }
    let wanted = Clone {
        id: id.clone(),
        stdio: Stdio::Files { stdin, stdout, stderr: invocation.stderr },
        function: invocation.function,
        memory: invocation.memory,
        cgroups: invocation.cgroups,
        supervised: Supervised::Here,
        mask: Some(signals.before()),
    };
    let created = clone(place, snapshot, wanted)?;
    let mut talk = Talk {
        unsent: order(&invocation.handler, &invocation.event),
        input: Some(input),
        output,
        lines: Lines { buffer: Vec::new(), most: usize::try_from(invocation.max_output).unwrap_or(usize::MAX) },
        deadline: Instant::now() + invocation.timeout,
    };
    let answer = start(place, &id, &created)
        .and_then(|process| talk.run(&process, &signals, print))
        .map_err(|error| error.during(operation.clone()));
    let removed = save::delete(place, &id, true, None);
    let answer = answer?;
    match removed {
        // Somebody else was faster.
        Err(error) if error.kind() == Kind::NotFound => {}
        other => drop(other.context(|| operation)?),
    }
    Ok(answer)
}

fn start(place: &Place, id: &ContainerId, created: &Created) -> Result<Process> {
    let gone = || Error::new(Kind::State, "start it", "its first process has ended");
    let process = created.init.open()?.ok_or_else(gone)?;
    created.start(&place.root, id)?;
    Ok(process)
}

/// The line that says what to do.
fn order(handler: &str, event: &Value) -> Vec<u8> {
    let mut line = json!({"handler": handler, "event": event}).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The answer that a line is, if it is one: an object with `result` alone, or `error` alone, which has texts.
fn parse_answer(line: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let object = value.as_object().filter(|object| object.len() == 1)?;
    let error = object.get("error").and_then(Value::as_object);
    let texts = |error: &serde_json::Map<String, Value>| {
        error.get("type").is_some_and(Value::is_string) && error.get("message").is_some_and(Value::is_string)
    };
    (object.contains_key("result") || error.is_some_and(texts)).then_some(value)
}

/// What was printed and is not looked at yet.
struct Lines {
    buffer: Vec<u8>,
    /// The longest line, in bytes.
    most: usize,
}

impl Lines {
    /// The answer among the lines that are complete now; `print` gets the others.
    fn add(&mut self, bytes: &[u8], print: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Option<Value>> {
        let mut from = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().skip(from).position(|byte| *byte == b'\n').map(|index| from + index) {
            let rest = self.buffer.split_off(end + 1);
            let line = std::mem::replace(&mut self.buffer, rest);
            from = 0;
            self.check(line.len() - 1)?;
            if let Some(answer) = parse_answer(&line) {
                return Ok(Some(answer));
            }
            print(&line)?;
        }
        self.check(self.buffer.len())?;
        Ok(None)
    }

    fn check(&self, length: usize) -> Result<()> {
        if length <= self.most {
            return Ok(());
        }
        Err(Error::new(Kind::State, "read its answer", format!("it is longer than {} bytes", self.most)))
    }
}

/// The two pipes between us and the program.
struct Talk {
    unsent: Vec<u8>,
    /// Closed once everything is sent: a program that reads on finds the end.
    input: Option<OwnedFd>,
    output: OwnedFd,
    lines: Lines,
    deadline: Instant,
}

impl Talk {
    fn run(
        &mut self,
        process: &Process,
        signals: &Blocked,
        print: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Value> {
        loop {
            let ended = self.wait(process, signals)?;
            self.send()?;
            if let Some(answer) = self.receive(print)? {
                return Ok(answer);
            }
            while let Some(arrived) = signals.take()? {
                if matches!(arrived.signal, Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT) {
                    return Err(Error::new(Kind::State, "wait for its answer", format!("{} came", arrived.signal)));
                }
            }
            if ended {
                let how = process.reap()?;
                let how = how.as_ref().map_or_else(String::new, |status: &ExitStatus| format!(" {status}"));
                return Err(Error::new(
                    Kind::State,
                    "wait for its answer",
                    format!("its program ended{how} without one"),
                ));
            }
            if Instant::now() >= self.deadline {
                return Err(Error::new(Kind::State, "wait for its answer", "the time is over")
                    .next("give it a longer --timeout"));
            }
        }
    }

    /// Waits for anything. Whether the program has ended.
    fn wait(&self, process: &Process, signals: &Blocked) -> Result<bool> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let limit =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut polled = vec![PollFd::new(process, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        polled.push(PollFd::new(&self.output, PollFlags::IN));
        polled.extend(self.input.iter().map(|input| PollFd::new(input, PollFlags::OUT)));
        match poll(&mut polled, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(polled.first().is_some_and(|process| !process.revents().is_empty())),
            Err(errno) => Err(errno).context(|| "wait for its answer"),
        }
    }

    fn send(&mut self) -> Result<()> {
        while let Some(input) = self.input.as_ref().filter(|_| !self.unsent.is_empty()) {
            match write(input, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // It does not want to hear more; what it answers counts.
                Err(Errno::PIPE) => self.unsent.clear(),
                Err(errno) => return Err(errno).context(|| "tell it what to do"),
            }
        }
        self.input = None;
        Ok(())
    }

    fn receive(&mut self, print: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Option<Value>> {
        let mut chunk = vec![0; CHUNK];
        loop {
            match read(&self.output, &mut chunk) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(None),
                Ok(count) => {
                    if let Some(answer) = self.lines.add(chunk.get(..count).unwrap_or_default(), print)? {
                        return Ok(Some(answer));
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| "read its answer"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_one_line() {
        let line = order("m:f", &json!({"text": "a\nb"}));
        assert_eq!(String::from_utf8(line).unwrap(), "{\"event\":{\"text\":\"a\\nb\"},\"handler\":\"m:f\"}\n");
    }

    #[test]
    fn the_first_line_that_is_an_answer_is_the_answer() {
        let mut lines = Lines { buffer: Vec::new(), most: 40 };
        let mut printed = Vec::new();
        let mut print = |bytes: &[u8]| {
            printed.extend_from_slice(bytes);
            Ok(())
        };
        let mut add = |text: &str| lines.add(text.as_bytes(), &mut print);
        assert_eq!(add("hello\n{\"result\"").unwrap(), None);
        assert_eq!(add(":null,\"x\":1}\n\n[1]\n").unwrap(), None);
        assert_eq!(add("{\"result\":null}\nmore").unwrap(), Some(json!({"result": null})));
        assert_eq!(add(&"x".repeat(50)).unwrap_err().kind(), Kind::State);
        assert_eq!(String::from_utf8(printed).unwrap(), "hello\n{\"result\":null,\"x\":1}\n\n[1]\n");
    }

    #[test]
    fn an_error_has_a_type_and_a_message() {
        let is = |text: &str| parse_answer(text.as_bytes()).is_some();
        assert!(is(r#"{"error":{"type":"E","message":"m","traceback":""}}"#) && is(r#" {"result":[1]} "#));
        for other in [r#"{"error":"x"}"#, r#"{"error":{"type":1}}"#, "{}", "1", r#"{"result":1"#] {
            assert!(!is(other), "{other}");
        }
    }
}
