//! A clone of a template, for who wants one: neither the daemon nor the registry is asked.
//!
//! ```text
//! Wish ── function ── job ── the keeper's socket ──> Taken ── status: how it ended
//!                                                         └── result: what a call gave
//! ```

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Place, function, save};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{ContainerId, Name};
use crate::runtime;
use crate::sys::signal::{Arrived, Blocked, Signal};
use crate::template::client::Requester;
use crate::template::definition::directory;
use crate::template::job::{Call, Job};
use crate::template::message::{Answer, Cleanup, Extra, Limits, Request, Take, Terminal};
use crate::template::program::Program;

/// How a clone's init tells of the clone's end takes no more than this.
const STATUS_CAP: usize = 64;
/// A keeper deletes a container as soon as it hears that nobody wants it any more; without a keeper, nobody does.
const LEAVING: Duration = Duration::from_secs(5);
/// An answer that has begun to come is there.
const ANSWER: Duration = Duration::from_secs(10);
/// A clone is made in less; who waits for its turn for longer than this after a signal wants none any more.
const GRACE: Duration = Duration::from_millis(500);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(2);

/// A clone that somebody wants.
#[derive(Debug)]
pub struct Wish {
    /// Of which template.
    pub template: Name,
    /// What its container is to be called; without it, it is called after the template.
    pub id: Option<ContainerId>,
    /// What it finds at `/function`.
    pub function: Option<PathBuf>,
    /// What to run; the function's call if that is given.
    pub command: Vec<String>,
    /// The function's call.
    pub call: Option<Call>,
    /// `NAME=VALUE`, each added to the template's or in place of the one of that name.
    pub env: Vec<String>,
    /// The working directory inside.
    pub workdir: Option<String>,
    /// The most memory, in bytes.
    pub memory: Option<u64>,
    /// What becomes of the container.
    pub cleanup: Cleanup,
}

/// A clone that runs.
#[derive(Debug)]
pub struct Taken {
    /// Its container.
    pub container: ContainerId,
    /// Its pid.
    pub pid: i32,
    /// The connection that it was asked for by, which it may end with.
    pub requester: Requester,
    /// Where its init says how it ended.
    pub status: File,
    /// What a call gives.
    pub result: Option<File>,
}

/// How a clone ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this.
    Exit(u8),
    /// It was killed by this signal.
    Signal(i32),
    /// Its container was killed as a whole before that could be told.
    Unknown,
}

impl End {
    /// Reads what a container's init wrote.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let text = std::str::from_utf8(text).unwrap_or_default().trim_end();
        match text.split_once(' ') {
            Some(("exit", code)) => code.parse().map_or(Self::Unknown, Self::Exit),
            Some(("signal", number)) => number.parse().map_or(Self::Unknown, Self::Signal),
            Some(_) | None => Self::Unknown,
        }
    }

    /// The exit status of who stands for it, as shells have it.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
            Self::Unknown => 137,
        }
    }
}

/// A clone that was asked for.
#[derive(Debug)]
pub struct Asked<'a> {
    wish: &'a Wish,
    requester: Requester,
    status: File,
    result: Option<File>,
}

/// Whether a clone was made.
#[derive(Debug)]
pub enum Answered {
    /// It runs.
    Taken(Taken),
    /// A signal came first: it was not.
    Interrupted(Signal),
}

/// Has a clone made, and returns once it runs. `patience` is for the wait while others are served.
///
/// # Errors
/// As [`connect`], [`ask`] and [`Asked::answer`].
pub fn take(place: &Place, wish: &Wish, stdio: [BorrowedFd<'_>; 3], patience: Duration) -> Result<Taken> {
    let requester = connect(place, &wish.template, patience)?;
    ask(place, requester, wish, stdio)?.answer(patience)
}

/// Waits for a place among those who are served.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such template, or it is not ready; [`Kind::Busy`] at the end of the patience.
pub fn connect(place: &Place, template: &Name, patience: Duration) -> Result<Requester> {
    Requester::connect(&directory(&place.store, &place.owner, template), template.as_str(), patience)
}

/// Asks for a clone.
///
/// # Errors
/// Those of the function, of making the job, and of a keeper that has ended.
pub fn ask<'a>(place: &Place, requester: Requester, wish: &'a Wish, stdio: [BorrowedFd<'_>; 3]) -> Result<Asked<'a>> {
    let operation = || wish.operation();
    let function = wish.function.as_deref().map(|function| function::open(place, function)).transpose()?;
    let program = Program::read(&directory(&place.store, &place.owner, &wish.template)).context(operation)?;
    let job = Job { args: wish.command.clone(), env: program.environment(&wish.env), call: wish.call.clone() };
    let job = job.seal().context(operation)?;
    let (status, status_end) = pipe().context(operation)?;
    let (result, result_end) = match &wish.call {
        Some(_) => pipe().context(operation).map(|(near, far)| (Some(near), Some(far)))?,
        None => (None, None),
    };
    let mut extra = vec![Extra::Status];
    let mut descriptors = vec![job.as_fd(), stdio[0], stdio[1], stdio[2], status_end.as_fd()];
    if let Some(end) = &result_end {
        extra.push(Extra::Result);
        descriptors.push(end.as_fd());
    }
    if let Some(function) = &function {
        extra.push(Extra::Function);
        descriptors.push(function.as_fd());
    }
    let take = Take {
        id: wish.id.clone(),
        extra,
        cleanup: wish.cleanup,
        workdir: wish.workdir.clone().map(PathBuf::from),
        limits: Limits { memory: wish.memory },
        terminal: Terminal::None,
    };
    requester.ask(&Request::Take(Box::new(take)), &descriptors)?;
    Ok(Asked { wish, requester, status, result })
}

impl Wish {
    fn operation(&self) -> String {
        format!("clone template '{}'", self.template)
    }
}

impl Asked<'_> {
    /// Waits until the clone runs.
    ///
    /// # Errors
    /// What the keeper says against it; [`Kind::Busy`] if it does not come in time.
    pub fn answer(self, patience: Duration) -> Result<Taken> {
        let operation = self.wish.operation();
        match self.requester.answer(Some(patience))? {
            Answer::Taken { container, pid } => {
                Ok(Taken { container, pid, requester: self.requester, status: self.status, result: self.result })
            }
            Answer::Failed { error, .. } => Err(error),
            Answer::Unfit { reason } => Err(Error::new(Kind::Unsupported, operation, reason)),
            Answer::Fits(_) | Answer::Entered { .. } => {
                Err(Error::new(Kind::Damaged, operation, "its keeper answers something else"))
            }
        }
    }

    /// As [`Asked::answer`], or until a signal arrives that is not for the clone yet. One that arrives while the clone is
    /// just being made is for the clone, which may run before the answer has come.
    ///
    /// # Errors
    /// As [`Asked::answer`], and those of poll(2).
    pub fn answer_or_signal(self, place: &Place, signals: &Blocked) -> Result<Answered> {
        let mut early = None;
        loop {
            let mut sources = [PollFd::new(&self.requester, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            let limit = early.map(|_| Timespec::try_from(GRACE).expect("a grace of less than a second"));
            let ready = match poll(&mut sources, limit.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other.context(|| self.wish.operation())?,
            };
            if !sources[0].revents().is_empty() {
                let taken = self.answer(ANSWER)?;
                early.into_iter().for_each(|signal| taken.forward(place, signal));
                return Ok(Answered::Taken(taken));
            }
            while let Some(Arrived { signal, .. }) = signals.take()? {
                match early {
                    _ if is_ours(signal) => {}
                    None => early = Some(signal),
                    Some(first) => return Ok(Answered::Interrupted(first)),
                }
            }
            if let (0, Some(signal)) = (ready, early) {
                return Ok(Answered::Interrupted(signal));
            }
        }
    }
}

/// Signals that are not meant for a program that somebody else waits for.
fn is_ours(signal: Signal) -> bool {
    matches!(signal, Signal::CHLD | Signal::PIPE | Signal::WINCH)
}

/// The near end, from which is read without waiting, and the far one.
fn pipe() -> Result<(File, OwnedFd)> {
    let operation = || "make a pipe";
    let (near, far) = pipe_with(PipeFlags::CLOEXEC).context(operation)?;
    let flags = rustix::fs::fcntl_getfl(&near).context(operation)?;
    rustix::fs::fcntl_setfl(&near, flags | rustix::fs::OFlags::NONBLOCK).context(operation)?;
    Ok((File::from(near), far))
}

impl Taken {
    /// How it ended, if that was told by now; `None` while nothing was.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn end(&mut self) -> Result<Option<End>> {
        let mut text = [0; STATUS_CAP];
        match std::io::Read::read(&mut self.status, &mut text) {
            Ok(count) => Ok(Some(End::parse(&text[..count]))),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context(|| format!("read how container '{}' ended", self.container)),
        }
    }

    /// Stays with a clone until it ends, passes signals on to it, and returns when its container is gone.
    ///
    /// # Errors
    /// Those of poll(2), and of deleting the container.
    pub fn attend(mut self, place: &Place, signals: &Blocked) -> Result<End> {
        let mut kept = true;
        let end = loop {
            let mut sources = vec![PollFd::new(&self.status, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            if kept {
                // No event but those that are always told: nothing more is said.
                sources.push(PollFd::new(&self.requester, PollFlags::empty()));
            }
            match poll(&mut sources, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| format!("wait for container '{}'", self.container)),
            }
            kept = kept && sources[2].revents().is_empty();
            drop(sources);
            while let Some(Arrived { signal, .. }) = signals.take()? {
                if !is_ours(signal) {
                    self.forward(place, signal);
                }
            }
            if let Some(end) = self.end()? {
                break end;
            }
        };
        self.leave(place)?;
        Ok(end)
    }

    fn forward(&self, place: &Place, signal: Signal) {
        match runtime::kill(&place.root, &self.container, signal, false) {
            // It is just ending.
            Err(error) if matches!(error.kind(), Kind::State | Kind::NotFound) => {}
            Err(error) => tracing::warn!("{error}"),
            Ok(()) => {}
        }
    }

    /// Ends a clone that ends with its connection, and returns when its container is gone.
    ///
    /// # Errors
    /// Those of deleting the container, if its keeper has not.
    pub fn leave(self, place: &Place) -> Result<()> {
        let Self { container, requester, .. } = self;
        drop(requester);
        let deadline = Instant::now() + LEAVING;
        while place.root.container(&container).exists() {
            if Instant::now() > deadline {
                // Whoever should have done it is gone.
                return match save::delete(place, &container, true, None) {
                    Err(error) if error.kind() != Kind::NotFound => Err(error),
                    Ok(_) | Err(_) => Ok(()),
                };
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::runtime::StateRoot;
    use crate::sys::channel::Listener;
    use crate::sys::fs::open_path;
    use crate::template::message::{SOCKET, encode};

    /// The signal that ends the wait for a keeper which answers after some time or never, if one has come before that.
    fn interrupted(answer: Option<Duration>) -> Option<Signal> {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::bind(open_path(directory.path()).unwrap(), SOCKET).unwrap();
        let requester = Requester::connect(directory.path(), "py", ANSWER).unwrap();
        let keeper = std::thread::spawn(move || {
            let caller = listener.accept().unwrap();
            if let Some(after) = answer {
                std::thread::sleep(after);
                let taken = Answer::Taken { container: "box1".parse().unwrap(), pid: 1 };
                caller.send(&encode(&taken).unwrap(), &[]).unwrap();
            }
            caller.receive().unwrap_or(None).is_none()
        });
        let wish = Wish {
            template: "py".parse().unwrap(),
            id: None,
            function: None,
            command: Vec::new(),
            call: None,
            env: Vec::new(),
            workdir: None,
            memory: None,
            cleanup: Cleanup::WithConnection,
        };
        let place = Place {
            root: StateRoot::new(directory.path().join("run")),
            store: directory.path().join("store"),
            config: Config::default(),
            config_file: None,
            owner: "root".parse().unwrap(),
        };
        let signals = Blocked::all().unwrap();
        // Its arrival is the calling thread's, so no other test's.
        nix::sys::signal::raise(nix::sys::signal::SIGINT).unwrap();
        let asked = Asked { wish: &wish, requester, status: File::open("/dev/null").unwrap(), result: None };
        let interrupted = match asked.answer_or_signal(&place, &signals).unwrap() {
            // The connection ends with it.
            Answered::Taken(_) => None,
            Answered::Interrupted(signal) => Some(signal),
        };
        assert!(keeper.join().unwrap(), "nobody is at the other end any more");
        interrupted
    }

    #[test]
    fn a_signal_is_the_clones_if_it_comes_while_the_clone_is_made_and_else_ends_the_wait() {
        assert_eq!(interrupted(Some(Duration::from_millis(20))), None);
        assert_eq!(interrupted(None), Some(Signal::INT));
    }

    #[test]
    fn the_end_is_read_as_init_writes_it() {
        let of = |text: &str| (End::parse(text.as_bytes()), End::parse(text.as_bytes()).code());
        assert_eq!(of("exit 3\n"), (End::Exit(3), 3));
        assert_eq!(of("signal 9\n"), (End::Signal(9), 137));
        for nothing in ["", "\n", "exit", "exit 256\n", "gone 1\n"] {
            assert_eq!(of(nothing), (End::Unknown, 137), "{nothing:?}");
        }
    }
}
