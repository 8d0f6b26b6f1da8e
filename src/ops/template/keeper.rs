//! A keeper of a template, as its minder has it.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result};
use crate::ops::warm::KEEPER;
use crate::sys::channel::Channel;
use crate::sys::detach::spawn_self_with;
use crate::sys::signal::Signal;
use crate::template::client::Controller;
use crate::template::definition::Order;
use crate::template::message::{Command, Phase, Reply, Report, Status, decode, encode};

/// How long one that was killed may take to be gone.
const KILLED: Duration = Duration::from_secs(20);

/// A keeper that lives, as far as is known.
#[derive(Debug)]
pub(super) struct Keeper {
    pub generation: u64,
    pub link: Link,
    /// What it said last.
    pub status: Option<Status>,
    /// Whether it was told to retire.
    pub retires: bool,
}

/// How it is heard.
#[derive(Debug)]
pub(super) enum Link {
    /// It is ours, and not ready yet.
    Birth(Channel),
    /// It is one of those that are found.
    Control(Controller),
}

/// What a keeper said.
#[derive(Debug)]
pub(super) enum Heard {
    Step(String),
    Status(Box<Status>),
    Nothing,
    End(Option<Error>),
}

impl Keeper {
    pub(super) fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.phase == Phase::Ready)
    }

    /// Whether it makes no clones any more though nobody has told it so.
    pub(super) fn has_given_up(&self) -> bool {
        let retiring = |status: &Status| matches!(status.phase, Phase::Retiring | Phase::Ended);
        !self.retires && self.status.as_ref().is_some_and(retiring)
    }

    /// Why it has given up, if it says so.
    pub(super) fn reason(&self) -> Option<Error> {
        let status = self.status.as_ref()?;
        let reason = status.reason.as_deref()?;
        // It is an error of the keeper's, as that is told.
        let (operation, cause) = reason.split_once(": ").unwrap_or(("keep the template", reason));
        Some(Error::new(Kind::State, operation, cause))
    }

    /// Has it end as soon as nobody waits for anything of it: a newer one is ready.
    pub(super) fn retire(&mut self) {
        if std::mem::replace(&mut self.retires, true) {
            return;
        }
        if let Link::Control(controller) = &self.link
            && let Err(error) = controller.tell(Command::Retire)
        {
            tracing::warn!("{error}");
        }
    }

    pub(super) fn stop(&self, directory: &Path) {
        let told = match &self.link {
            Link::Control(controller) => controller.tell(Command::Stop),
            Link::Birth(_) => Controller::connect(directory, self.generation)
                .and_then(|controller| controller.map_or(Ok(()), |controller| controller.tell(Command::Stop))),
        };
        if let Err(error) = told {
            tracing::warn!("{error}");
        }
    }

    /// One that does not end.
    pub(super) fn kill(self) -> Result<()> {
        let Some(identity) = self.status.map(|status| status.keeper) else {
            return Err(Error::new(Kind::Busy, format!("stop keeper {}", self.generation), "it does not answer"));
        };
        let Some(process) = identity.open()? else { return Ok(()) };
        process.signal(Signal::KILL)?;
        process.wait_end(KILLED).map(drop)
    }

    /// The next thing that it says.
    pub(super) fn hear(&self) -> Heard {
        match &self.link {
            Link::Birth(channel) => hear_birth(channel),
            Link::Control(controller) => hear_control(controller),
        }
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.link {
            Link::Birth(channel) => channel.as_fd(),
            Link::Control(controller) => controller.as_fd(),
        }
    }
}

fn hear_birth(channel: &Channel) -> Heard {
    let received = match channel.receive() {
        Ok(Some(received)) => received,
        Ok(None) => return Heard::End(None),
        Err(error) => return Heard::End(Some(error)),
    };
    match decode(&received.bytes) {
        Ok(Report::Progress { step }) => Heard::Step(step),
        Ok(Report::Ready(status)) => Heard::Status(status),
        Ok(Report::Failed { error }) => Heard::End(Some(error)),
        Err(error) => Heard::End(Some(error)),
    }
}

fn hear_control(controller: &Controller) -> Heard {
    match controller.next() {
        Ok(Some(Reply::Status(status))) => Heard::Status(status),
        Ok(Some(Reply::Ended { error })) => Heard::End(error),
        Ok(Some(Reply::Done)) => Heard::Nothing,
        Ok(Some(Reply::Failed { error })) => {
            tracing::warn!("{error}");
            Heard::Nothing
        }
        Ok(None) => Heard::End(None),
        // A keeper of another version may say more than is understood here.
        Err(error) if error.kind() == Kind::Damaged => {
            tracing::debug!("{error}");
            Heard::Nothing
        }
        Err(error) => Heard::End(Some(error)),
    }
}

/// Starts a keeper. What it has to say comes over the channel, which then ends.
///
/// # Errors
/// Those of fork, exec and sendmsg(2).
pub(super) fn spawn(order: &Order) -> Result<Channel> {
    let operation = || format!("start the keeper of template '{}'", order.definition);
    let (ours, theirs) = Channel::pair()?;
    // Said before anybody listens: what is on its way is read after the end of who said it, too.
    ours.send(&encode(order)?, &[]).context(operation)?;
    let arguments = [KEEPER.into(), OsString::from(order.definition.to_string())];
    spawn_self_with(theirs, &arguments).context(operation)?;
    Ok(ours)
}
