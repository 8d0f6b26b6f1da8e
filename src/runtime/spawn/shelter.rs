//! A container's first process that does not become the program: it lets another process have what the program would
//! have had, and then looks after that one for the rest of the container's life.
//!
//! Until the verdict nothing is final: its standard streams are still open, and it takes its terminal back if it has to
//! become the program after all. Signals that come meanwhile wait for whoever is the program in the end.

use std::convert::Infallible;
use std::os::fd::AsFd;

use rustix::process::ioctl_tiocsctty;
use rustix::stdio::{stderr, stdin, stdout};

use super::init::{Init, orphaned};
use super::message::{Adoption, Report, Shelter, Verdict, hear_verdict};
use crate::error::{Context, Result};
use crate::sys::clone::{close_all_but, replace_stream};
use crate::sys::reaper;
use crate::sys::tty::give_up;

impl Init<'_> {
    /// Returns if it is to become the program all the same.
    pub(super) fn shelter(&mut self) -> Result<()> {
        let operation = || "hand over what the program is to have";
        reaper::block_signals()?;
        let terminal = self.plan.terminal.is_some();
        if terminal {
            give_up()?;
        }
        let copy = |stream: std::os::fd::BorrowedFd<'_>| stream.try_clone_to_owned().context(operation);
        let stdio = [copy(stdin())?, copy(stdout())?, copy(stderr())?];
        let directory = crate::sys::fs::open_path(".".as_ref())?.into();
        self.tell(&Report::Sheltering(Shelter { stdio, directory }))?;
        match hear_verdict(&self.channel)? {
            Some(Verdict::Start) if terminal => {
                ioctl_tiocsctty(stdin()).context(|| "take the terminal back as the controlling one")
            }
            Some(Verdict::Start) => Ok(()),
            Some(Verdict::Adopt(adoption)) => match self.look_after(adoption)? {},
            None => Err(orphaned()),
        }
    }

    /// The rest of the container's life. Whoever has started it hears of it first: without anybody to put it on record,
    /// it ends.
    fn look_after(&self, adoption: Adoption) -> Result<Infallible> {
        // Something that can neither be read nor written, and that every container has.
        let nothing = crate::sys::fs::open_path("/".as_ref())?;
        (0..=2).try_for_each(|stream| replace_stream(nothing.as_fd(), stream))?;
        self.tell(&Report::Adopted)?;
        close_all_but(3, adoption.status.as_ref().map(AsFd::as_fd).as_slice())?;
        reaper::look_after(adoption.pid, adoption.status)
    }
}
