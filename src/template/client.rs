//! The other side of a keeper's sockets: ask for a clone, or how it is.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::message::{Answer, CONTROL, Command, Reply, Request, SOCKET, Status, decode, encode};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::channel::Channel;
use crate::sys::fs::open_path;

/// A keeper answers commands at once: it does nothing that takes time while somebody asks.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection on which clones are asked for.
#[derive(Debug)]
pub struct Requester {
    template: String,
    channel: Channel,
}

/// A connection on which a keeper is commanded.
#[derive(Debug)]
pub struct Controller {
    generation: u64,
    channel: Channel,
}

impl Requester {
    /// Connects to the keeper of a template, by the template's directory; `template` is what errors call it. Waits as long
    /// as `patience` allows while others are served.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it has none that is ready, [`Kind::Busy`] at the end of the patience; else those of connect(2).
    pub fn connect(directory: &Path, template: &str, patience: Duration) -> Result<Self> {
        let connected = open_path(directory).and_then(|place| Channel::connect_within(place, SOCKET, patience));
        match connected {
            Ok(channel) => Ok(Self { template: template.to_owned(), channel }),
            Err(error) if is_gone(&error) => {
                let cause = if directory.exists() { "it is not ready" } else { "there is no such template" };
                let next = if directory.exists() {
                    format!("see 'regen template show {template}'")
                } else {
                    "see 'regen template ls'".to_owned()
                };
                Err(Error::new(Kind::NotFound, format!("clone template '{template}'"), cause).next(next))
            }
            Err(error) => Err(error.during(format!("clone template '{template}'"))),
        }
    }

    /// Asks for something. Answers come in the order of the requests.
    ///
    /// # Errors
    /// Those of sendmsg(2); [`Kind::State`] if the keeper has ended.
    pub fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        match self.channel.send(&encode(request)?, descriptors).context(|| self.operation())? {
            true => Ok(()),
            false => Err(self.gone()),
        }
    }

    /// The next answer.
    ///
    /// # Errors
    /// [`Kind::Busy`] if it does not come in time, [`Kind::State`] if the keeper ends before; else those of recvmsg(2), and of
    /// what is no answer.
    pub fn answer(&self, limit: Option<Duration>) -> Result<Answer> {
        if !self.channel.wait(limit).context(|| self.operation())? {
            return Err(Error::new(Kind::Busy, self.operation(), "its keeper has not answered in time"));
        }
        let received = self.channel.receive().context(|| self.operation())?.ok_or_else(|| self.gone())?;
        decode(&received.bytes).context(|| self.operation())
    }

    fn operation(&self) -> String {
        format!("clone template '{}'", self.template)
    }

    fn gone(&self) -> Error {
        Error::new(Kind::State, self.operation(), "its keeper has ended")
            .next(format!("see 'regen template show {}'", self.template))
    }
}

impl AsFd for Requester {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Controller {
    /// Connects to the keeper of this generation; `None` if there is none (any more).
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(directory: &Path, generation: u64) -> Result<Option<Self>> {
        let name = format!("{CONTROL}{generation}");
        match open_path(directory).and_then(|place| Channel::connect(place, &name)) {
            Ok(channel) => Ok(Some(Self { generation, channel })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.during(operation(generation))),
        }
    }

    /// Which keeper it is.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Commands something without waiting for the reply; that nobody is left to hear it is no error.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn tell(&self, command: Command) -> Result<()> {
        let operation = || operation(self.generation);
        self.channel.send(&encode(&command)?, &[]).context(operation).map(drop)
    }

    /// How it is.
    ///
    /// # Errors
    /// [`Kind::Busy`] if it does not say in time, [`Kind::NotFound`] if it has ended.
    pub fn status(&self) -> Result<Status> {
        self.tell(Command::Status)?;
        let operation = || operation(self.generation);
        if !self.channel.wait(Some(PATIENCE)).context(operation)? {
            let cause = format!("it has not answered for {} s", PATIENCE.as_secs());
            return Err(Error::new(Kind::Busy, operation(), cause));
        }
        match self.next()? {
            Some(Reply::Status(status)) => Ok(*status),
            Some(Reply::Failed { error }) => Err(error),
            Some(Reply::Ended { .. }) | None => Err(Error::new(Kind::NotFound, operation(), "it has ended")),
            Some(Reply::Done) => Err(Error::new(Kind::Damaged, operation(), "it does not say how it is")),
        }
    }

    /// The next message; `None` once the keeper is gone.
    ///
    /// # Errors
    /// Those of recvmsg(2); [`Kind::Damaged`] for what is no message of a keeper.
    pub fn next(&self) -> Result<Option<Reply>> {
        let operation = || operation(self.generation);
        let Some(received) = self.channel.receive().context(operation)? else { return Ok(None) };
        decode(&received.bytes)
            .map(Some)
            .map_err(|error| Error::new(Kind::Damaged, operation(), error.without_next_step()))
    }
}

impl AsFd for Controller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

fn operation(generation: u64) -> String {
    format!("ask keeper {generation} of a template")
}

/// The generations whose keepers have a socket for commands in a template's directory, oldest first, whether or not they
/// live.
///
/// # Errors
/// Those of reading the directory; that there is none is no error.
pub fn generations(directory: &Path) -> Result<Vec<u64>> {
    let operation = || format!("list {}", quote(directory));
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(operation)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(generation_of(&entry.context(operation)?.file_name()));
    }
    found.sort_unstable();
    Ok(found)
}

fn generation_of(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix(CONTROL)?.parse().ok()
}

/// There is no directory or no socket, or nobody listens at it.
fn is_gone(error: &Error) -> bool {
    error.kind() == Kind::NotFound || error.errno() == Some(Errno::CONNREFUSED.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::channel::Listener;

    fn place() -> (tempfile::TempDir, Listener) {
        let place = tempfile::tempdir().unwrap();
        let listener = Listener::bind(open_path(place.path()).unwrap(), SOCKET).unwrap();
        (place, listener)
    }

    #[test]
    fn a_request_is_answered() {
        let (place, listener) = place();
        let keeper = std::thread::spawn(move || {
            let caller = listener.accept().unwrap();
            let asked: Request = decode(&caller.receive().unwrap().unwrap().bytes).unwrap();
            caller.send(&encode(&Answer::Unfit { reason: "no".into() }).unwrap(), &[]).unwrap();
            asked
        });
        let requester = Requester::connect(place.path(), "py", PATIENCE).unwrap();
        requester.ask(&Request::Fit, &[]).unwrap();
        assert!(matches!(requester.answer(Some(PATIENCE)).unwrap(), Answer::Unfit { .. }));
        assert_eq!(keeper.join().unwrap(), Request::Fit);
        let error = requester.answer(None).unwrap_err();
        assert_eq!(error.to_string(), "clone template 'py': its keeper has ended: see 'regen template show py'");
    }

    #[test]
    fn who_has_no_keeper_is_told_whether_there_is_a_template() {
        let place = tempfile::tempdir().unwrap();
        let cause = |directory: &Path| Requester::connect(directory, "py", PATIENCE).unwrap_err().to_string();
        assert!(cause(place.path()).contains("it is not ready: see 'regen template show py'"));
        assert!(cause(&place.path().join("other")).contains("there is no such template"));
        assert!(Controller::connect(place.path(), 3).unwrap().is_none());
    }

    #[test]
    fn generations_are_found_by_their_sockets() {
        let place = tempfile::tempdir().unwrap();
        for name in ["control-10", "control-9", "control-x", "socket", "control-"] {
            std::fs::write(place.path().join(name), "").unwrap();
        }
        assert_eq!(generations(place.path()).unwrap(), [9, 10]);
        assert!(generations(&place.path().join("nowhere")).unwrap().is_empty());
    }
}
