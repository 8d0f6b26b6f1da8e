//! The daemon's side of a keeper's control socket: ask and be answered, or watch.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::address::Listen;
use super::message::{Command, KEEPERS, Order, Reply, Status};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::sys::channel::Channel;
use crate::sys::fs::{open_path, read_capped};

/// The socket in a keeper's directory.
pub const CONTROL: &str = "control";
/// What it was told to keep, in its directory.
pub const ORDER: &str = "order.json";
/// The longest order that is read: each came in one message, which is shorter.
const ORDER_CAP: u64 = 1 << 20;
/// A keeper answers at once: it does nothing that takes time while somebody asks.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the keeper of an instance has its files.
#[must_use]
pub fn directory(root: &Path, instance: &ContainerId) -> PathBuf {
    root.join(KEEPERS).join(instance.as_str())
}

/// What the keeper of an instance was told to keep, whether or not it still is there.
///
/// # Errors
/// Those of reading the file, and of a text that is no order.
pub fn order(root: &Path, instance: &ContainerId) -> Result<Order> {
    let operation = || format!("read what the keeper of instance '{instance}' keeps");
    let text = read_capped(&directory(root, instance).join(ORDER), ORDER_CAP);
    serde_json::from_slice(&text.context(operation)?).context(operation)
}

/// The instances that have a keeper's directory, sorted, whether or not there still is a keeper.
///
/// # Errors
/// Those of reading the directory; that there is none is no error.
pub fn list(root: &Path) -> Result<Vec<ContainerId>> {
    let directory = root.join(KEEPERS);
    let operation = || format!("list {}", quote(&directory));
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(operation)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.context(operation)?.file_name();
        // What has no name of an instance is none of ours.
        found.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// A connection to a keeper.
#[derive(Debug)]
pub struct Keeper {
    instance: ContainerId,
    channel: Channel,
}

/// What a keeper answered to a question.
#[derive(Debug)]
pub struct Answer {
    /// The reply; never [`Reply::Failed`].
    pub reply: Reply,
    /// The sockets that came with it.
    pub sockets: Vec<OwnedFd>,
}

impl Keeper {
    /// Connects to the keeper of an instance; `None` if there is none (any more).
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(root: &Path, instance: &ContainerId) -> Result<Option<Self>> {
        let connected = open_path(&directory(root, instance)).and_then(|place| Channel::connect(place, CONTROL));
        match connected {
            Ok(channel) => Ok(Some(Self { instance: instance.clone(), channel })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.during(format!("reach the keeper of instance '{instance}'"))),
        }
    }

    /// The near end of a connection that a keeper was born with.
    #[must_use]
    pub fn at(channel: Channel, instance: ContainerId) -> Self {
        Self { instance, channel }
    }

    /// Whose keeper it is.
    #[must_use]
    pub fn instance(&self) -> &ContainerId {
        &self.instance
    }

    /// Asks one thing and waits for the answer.
    ///
    /// # Errors
    /// What the keeper says against it; [`Kind::NotFound`] if it ends before it answers, [`Kind::Busy`] if it does not
    /// answer.
    pub fn ask(&self, command: &Command) -> Result<Answer> {
        self.tell(command)?;
        self.answer(PATIENCE)
    }

    /// Says something without waiting for the answer; that nobody is left to hear it is no error.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn tell(&self, command: &Command) -> Result<()> {
        let text = serde_json::to_vec(command).context(|| self.operation())?;
        self.channel.send(&text, &[]).context(|| self.operation()).map(|_| ())
    }

    /// The next message, which has to come in this time.
    ///
    /// # Errors
    /// As [`Keeper::ask`].
    pub fn answer(&self, limit: Duration) -> Result<Answer> {
        if !wait(&self.channel, limit).context(|| self.operation())? {
            let cause = format!("it has not answered for {} s", limit.as_secs());
            return Err(Error::new(Kind::Busy, self.operation(), cause).next("see what holds it: 'regen doctor'"));
        }
        match self.next()? {
            Some(Answer { reply: Reply::Failed { error }, .. }) => Err(error),
            Some(answer) => Ok(answer),
            None => Err(Error::new(Kind::NotFound, self.operation(), "it has ended")),
        }
    }

    /// The next message; `None` once the keeper is gone.
    ///
    /// # Errors
    /// Those of recvmsg(2); [`Kind::Damaged`] for what is no message of a keeper.
    pub fn next(&self) -> Result<Option<Answer>> {
        let Some(received) = self.channel.receive().context(|| self.operation())? else { return Ok(None) };
        let reply = serde_json::from_slice(&received.bytes).map_err(|error| {
            Error::new(Kind::Damaged, self.operation(), format!("it said what is no answer: {error}"))
        })?;
        Ok(Some(Answer { reply, sockets: received.descriptors }))
    }

    /// The sockets of the instance, each with what it is.
    ///
    /// # Errors
    /// As [`Keeper::ask`]; [`Kind::Damaged`] if they are not what the keeper says.
    pub fn sockets(&self) -> Result<Vec<(Listen, OwnedFd)>> {
        let answer = self.ask(&Command::Sockets)?;
        match answer.reply {
            Reply::Sockets { listen } if listen.len() == answer.sockets.len() => {
                Ok(listen.into_iter().zip(answer.sockets).collect())
            }
            Reply::Sockets { .. } | Reply::Targets { .. } | Reply::Status(_) | Reply::Done | Reply::Failed { .. } => {
                Err(Error::new(Kind::Damaged, self.operation(), "it did not hand out its sockets"))
            }
        }
    }

    /// The state in an answer that has one.
    #[must_use]
    pub fn status(answer: Answer) -> Option<Status> {
        match answer.reply {
            Reply::Status(status) => Some(*status),
            Reply::Done | Reply::Sockets { .. } | Reply::Targets { .. } | Reply::Failed { .. } => None,
        }
    }

    fn operation(&self) -> String {
        format!("ask the keeper of instance '{}'", self.instance)
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// There is no directory or no socket, or nobody listens at it.
fn is_gone(error: &Error) -> bool {
    error.kind() == Kind::NotFound || error.errno() == Some(Errno::CONNREFUSED.raw_os_error())
}

/// Whether there is something to read within the time.
fn wait(source: impl AsFd, limit: Duration) -> std::io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&source, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::channel::Listener;
    use crate::sys::fs::memory_file;

    /// A keeper that answers one question of one caller.
    fn answering(reply: &'static str) -> (tempfile::TempDir, ContainerId, std::thread::JoinHandle<Vec<u8>>) {
        let root = tempfile::tempdir().unwrap();
        let instance: ContainerId = "web-1.0.0-1".parse().unwrap();
        let place = directory(root.path(), &instance);
        std::fs::create_dir_all(&place).unwrap();
        let listener = Listener::bind(open_path(&place).unwrap(), CONTROL).unwrap();
        let thread = std::thread::spawn(move || {
            let caller = listener.accept().unwrap();
            let asked = caller.receive().unwrap().unwrap().bytes;
            let file = memory_file("socket", b"").unwrap();
            let sockets = if reply.contains("sockets") { vec![file.as_fd()] } else { vec![] };
            caller.send(reply.as_bytes(), &sockets).unwrap();
            asked
        });
        (root, instance, thread)
    }

    #[test]
    fn a_question_is_answered() {
        let (root, instance, thread) = answering(r#"{"reply":"done"}"#);
        let keeper = Keeper::connect(root.path(), &instance).unwrap().unwrap();
        assert!(matches!(keeper.ask(&Command::Serve).unwrap().reply, Reply::Done));
        assert_eq!(thread.join().unwrap(), br#"{"command":"serve"}"#);
        let error = keeper.answer(PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "ask the keeper of instance 'web-1.0.0-1': it has ended");
    }

    #[test]
    fn a_refusal_is_the_keepers_own_error() {
        let refusal = r#"{"reply":"failed","error":{"kind":"State","operation":"serve","cause":"not ready","next":null,"errno":null}}"#;
        let (root, instance, thread) = answering(refusal);
        let keeper = Keeper::connect(root.path(), &instance).unwrap().unwrap();
        let error = keeper.ask(&Command::Serve).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::State, "serve: not ready"));
        thread.join().unwrap();
    }

    #[test]
    fn sockets_come_with_their_names() {
        let reply = r#"{"reply":"sockets","listen":[{"name":"web","address":"unix:/run/web"}]}"#;
        let (root, instance, thread) = answering(reply);
        let sockets = Keeper::connect(root.path(), &instance).unwrap().unwrap().sockets().unwrap();
        assert_eq!(sockets.len(), 1);
        assert_eq!(sockets[0].0.address.to_string(), "unix:/run/web");
        thread.join().unwrap();
    }

    #[test]
    fn words_that_mean_nothing_are_an_error_and_not_a_state() {
        for nonsense in ["{}", r#"{"reply":"maybe"}"#] {
            let (root, instance, thread) = answering(nonsense);
            let keeper = Keeper::connect(root.path(), &instance).unwrap().unwrap();
            assert_eq!(keeper.ask(&Command::Status).unwrap_err().kind(), Kind::Damaged, "{nonsense}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_keeper_that_is_gone_is_nobody_and_its_directory_is_listed() {
        let (root, instance, thread) = answering(r#"{"reply":"done"}"#);
        Keeper::connect(root.path(), &instance).unwrap().unwrap().ask(&Command::Status).unwrap();
        thread.join().unwrap();
        assert!(Keeper::connect(root.path(), &instance).unwrap().is_none(), "a socket at which nobody listens");
        assert!(Keeper::connect(root.path(), &"other".parse().unwrap()).unwrap().is_none());
        assert_eq!(list(root.path()).unwrap(), [instance]);
        assert!(list(&root.path().join("nowhere")).unwrap().is_empty());
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for_for_ever() {
        let (near, _far) = Channel::pair().unwrap();
        let keeper = Keeper::at(near, "web-1.0.0-1".parse().unwrap());
        keeper.tell(&Command::Status).unwrap();
        let error = keeper.answer(Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
    }
}
