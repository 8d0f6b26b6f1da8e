//! What is asked of the keeper, and what it answers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use chrono::Utc;

use super::connection::Heard;
use super::phase::{Permission, permit};
use super::stage::{Draining, Stage};
use super::watch::Keeper;
use crate::error::{Error, Kind, Result};
use crate::service::message::{Command, Reply};

impl Keeper {
    /// Takes what a caller has to say, and answers.
    pub(super) fn answer(&mut self, index: usize) {
        let Some(caller) = self.callers.get(index) else { return };
        let kept = match caller.hear() {
            Heard::Command(command) => self.obey(index, &command),
            Heard::Nonsense(cause) => {
                let error = Error::new(Kind::Invalid, "read a command", cause);
                caller.say(&Reply::Failed { error }, &[])
            }
            Heard::End => false,
        };
        if let Some(caller) = self.callers.get_mut(index) {
            caller.ended |= !kept;
        }
    }

    /// Whether the caller took the answer.
    fn obey(&mut self, index: usize, command: &Command) -> bool {
        let answer = match permit(self.stage.phase(), command) {
            Permission::Do => self.act(index, command),
            Permission::Already => Ok((Reply::Done, Vec::new())),
            Permission::Refuse(cause) => {
                let operation = format!("{} instance '{}'", verb(command), self.order.instance);
                Err(Error::new(Kind::State, operation, cause))
            }
        };
        let (reply, sockets) = answer.unwrap_or_else(|error| (Reply::Failed { error }, Vec::new()));
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        self.callers.get(index).is_some_and(|caller| caller.say(&reply, &sockets))
    }

    /// The answer, and what goes with it.
    fn act(&mut self, index: usize, command: &Command) -> Result<(Reply, Vec<OwnedFd>)> {
        match command {
            Command::Status => return Ok((Reply::Status(Box::new(self.status())), Vec::new())),
            Command::Watch => {
                if let Some(caller) = self.callers.get_mut(index) {
                    caller.watches = true;
                }
                return Ok((Reply::Status(Box::new(self.status())), Vec::new()));
            }
            Command::Sockets => {
                let (listen, sockets) = self.holding.hand_out()?.into_iter().unzip();
                return Ok((Reply::Sockets { listen }, sockets));
            }
            Command::Targets => {
                let (addresses, maps) = self.holding.targets()?.into_iter().unzip();
                return Ok((Reply::Targets { addresses }, maps));
            }
            Command::Serve => {
                self.holding.serve()?;
                self.serving_since.get_or_insert_with(Utc::now);
                self.enter(Stage::Serving);
            }
            Command::Drain { timeout, grace, succeeded } => {
                self.succeeded = *succeeded;
                self.enter(Stage::Draining(Draining::begin(Instant::now(), *timeout, *grace)));
            }
            Command::Stop => self.stop(),
            Command::Release => self.released = true,
        }
        Ok((Reply::Done, Vec::new()))
    }

    /// Everybody who wants to know hears how it is now, once for all that happened.
    pub(super) fn tell_watchers(&mut self) {
        if !std::mem::take(&mut self.changed) || !self.callers.iter().any(|caller| caller.watches) {
            return;
        }
        let reply = Reply::Status(Box::new(self.status()));
        for caller in self.callers.iter_mut().filter(|caller| caller.watches) {
            caller.ended |= !caller.say(&reply, &[]);
        }
        self.callers.retain(|caller| !caller.ended);
    }
}

fn verb(command: &Command) -> &'static str {
    match command {
        Command::Status | Command::Watch => "look at",
        Command::Serve => "send connections to",
        Command::Drain { .. } => "drain",
        Command::Stop => "stop",
        Command::Sockets | Command::Targets => "take the sockets of",
        Command::Release => "release",
    }
}
