//! One call: an order in a line, an answer in a line.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::de::IgnoredAny;

use super::{Clone, Snapshot, Streams, clone};
use crate::cgroup::Manager;
use crate::config::human_bytes;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{ContainerId, Name};
use crate::ops::invoke::{Bounds, Outcome, parse};
use crate::ops::load::Supervised;
use crate::ops::{Place, save};
use crate::runtime::{Created, Stdio};
use crate::sys::fs::random_id;
use crate::sys::process::{ExitStatus, Process};
use crate::sys::signal::{Blocked, Signal};
use crate::template::job::Call;

const CHUNK: usize = 64 << 10;

/// A call of a function in a clone that lives for it alone.
#[derive(Debug)]
pub struct Invocation {
    /// The template, which the clone is called after.
    pub template: Name,
    /// What is called, and with what: the event is JSON.
    pub call: Call,
    /// What it finds at /function: a mount that is attached nowhere.
    pub function: Option<OwnedFd>,
    /// How far it may go.
    pub bounds: Bounds,
    /// The most memory, in bytes.
    pub memory: Option<u64>,
    /// Who makes the cgroup.
    pub cgroups: Manager,
    /// Where its standard error goes.
    pub stderr: OwnedFd,
}

/// Calls. `print` gets what the program prints on its standard output besides the answer. The clone is gone when this returns.
///
/// # Errors
/// Those of [`clone`]; [`Kind::State`] if the program ends without an answer, or takes too long, or says too much.
pub fn invoke(
    place: &Place,
    snapshot: Snapshot,
    invocation: Invocation,
    print: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Outcome> {
    let Invocation { template, call, function, bounds, memory, cgroups, stderr } = invocation;
    let operation = || format!("invoke '{}' in a clone of '{template}'", call.handler);
    let deadline = Instant::now() + bounds.time;
    let id = name(&template)?;
    let signals = Blocked::all()?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe");
    let ((stdin, input), (output, stdout)) = (pipe()?, pipe()?);
    for end in [&input, &output] {
        fcntl_setfl(end, OFlags::NONBLOCK).context(|| "make a pipe")?;
    }
    let mut streams = Streams::default();
    let stderr = streams.fit_output(stderr)?;
    let wanted = Clone {
        template: template.clone(),
        id: id.clone(),
        stdio: Stdio::Files { stdin, stdout, stderr },
        function,
        memory,
        cgroups,
        supervised: Supervised::Here,
        mask: Some(signals.before()),
    };
    let created = clone(place, &snapshot, wanted)?;
    // From here on it may be replaced.
    drop(snapshot);
    let lines = Lines { buffer: Vec::new(), most: bounds.output };
    let mut talk = Talk { unsent: order(&call)?, input: Some(input), output, lines, deadline, bounds };
    let answer = start(place, &id, &created).and_then(|process| talk.run(&process, &signals, print));
    let removed = save::delete(place, &id, true, None);
    streams.finish()?;
    let answer = answer.context(operation)?;
    match removed {
        // Somebody else was faster.
        Err(error) if error.kind() == Kind::NotFound => Ok(answer),
        removed => removed.context(operation).map(|_| answer),
    }
}

/// What a clone is called that nobody has named.
fn name(template: &Name) -> Result<ContainerId> {
    let number: String = random_id()?.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{template}-{number}").parse()
}

fn start(place: &Place, id: &ContainerId, created: &Created) -> Result<Process> {
    let gone = || Error::new(Kind::State, "start it", "its first process has ended");
    let process = created.init.open()?.ok_or_else(gone)?;
    created.start(&place.root, id)?;
    Ok(process)
}

/// The line that says what to do. A line break in JSON is only ever between its parts.
fn order(call: &Call) -> Result<Vec<u8>> {
    let event = call.event.replace(['\n', '\r'], " ");
    let handler = serde_json::to_string(&call.handler).context(|| "write what it is to do")?;
    Ok(format!("{{\"handler\": {handler}, \"event\": {event}}}\n").into_bytes())
}

/// The answer that a line is, if it is one: an object with `result` alone, or `error` alone.
fn parse_answer(line: &[u8]) -> Option<Outcome> {
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_slice(line).ok()?;
    (fields.len() == 1).then(|| parse(line).ok()).flatten()
}

/// What was printed and is not looked at yet.
struct Lines {
    buffer: Vec<u8>,
    /// The longest line, in bytes.
    most: u64,
}

impl Lines {
    /// The answer among the lines that are complete now; `print` gets the others.
    fn add(&mut self, bytes: &[u8], print: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Option<Outcome>> {
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
        if u64::try_from(length).unwrap_or(u64::MAX) <= self.most {
            return Ok(());
        }
        let cause = format!("it has printed a line of more than {}, and was killed", human_bytes(self.most));
        Err(Error::new(Kind::State, "read its answer", cause).next("let it return less, or allow more: --max-output"))
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
    bounds: Bounds,
}

impl Talk {
    fn run(
        &mut self,
        process: &Process,
        signals: &Blocked,
        print: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Outcome> {
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
                let seconds = self.bounds.time.as_secs_f64();
                let cause = format!("it has not come to its end in {seconds} s, and was killed");
                return Err(Error::new(Kind::State, "wait for its answer", cause).next("give it more: --timeout"));
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

    fn receive(&mut self, print: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Option<Outcome>> {
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
        let call = Call { handler: "m:f".into(), event: "{\n\"big\": 123456789012345678901}".into() };
        let line = String::from_utf8(order(&call).unwrap()).unwrap();
        assert_eq!(line, "{\"handler\": \"m:f\", \"event\": { \"big\": 123456789012345678901}}\n");
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
        assert!(add("hello\n{\"result\"").unwrap().is_none());
        assert!(add(":null,\"x\":1}\n\n[1]\n").unwrap().is_none());
        let Some(Outcome::Result(result)) = add("{\"result\": 1e400}\nmore").unwrap() else { panic!() };
        assert_eq!(result.get(), "1e400");
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
