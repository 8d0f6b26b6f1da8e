//! A container that waits for a program from elsewhere for as long as it has to, and for nobody in particular.
//!
//! [`super::Sheltered`] holds the container's lock: its program comes at once. A berth holds nothing but the way to the first
//! process, and can be passed to another process. Whoever has it may give the container its program and put that on record;
//! if nobody has it any more, the container ends. Until then it is `created`, and whoever deletes it is not kept waiting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::SigSet;

use crate::error::Result;
use crate::ids::ContainerId;
use crate::runtime::record::{self, Record};
use crate::runtime::{Sheltered, StateRoot, spawn, start};
use crate::sys::channel::Channel;
use crate::sys::process::Identity;

/// The way to the first process of a container that waits for its program.
#[derive(Debug)]
pub struct Berth {
    channel: Channel,
    directory: OwnedFd,
}

impl Sheltered {
    /// Lets others at the container while it waits. Its standard streams are not needed any more.
    #[must_use]
    pub fn moor(self) -> Berth {
        let (channel, directory) = self.into_way();
        Berth { channel, directory }
    }
}

impl Berth {
    /// From [`Self::files`], as another process has received them.
    #[must_use]
    pub fn from_files(channel: OwnedFd, directory: OwnedFd) -> Self {
        Self { channel: Channel::from(channel), directory }
    }

    /// What another process needs to have it: the way to the first process, and the program's working directory.
    #[must_use]
    pub fn files(&self) -> [BorrowedFd<'_>; 2] {
        [self.channel.as_fd(), self.directory.as_fd()]
    }

    /// The program's working directory, with `O_PATH`.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Becomes readable once the first process looks after the program, or if it ends before.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Tells the first process which child of its is the program, by the pid in the container; `status` gets a line once that
    /// has ended: `exit N` or `signal N`. It is not waited for: [`Self::hear_adopted`] has to follow before the berth is let
    /// go, or the container ends.
    ///
    /// # Errors
    /// [`crate::error::Kind::State`] if the first process is gone.
    pub fn adopt(&self, pid: i32, status: Option<BorrowedFd<'_>>) -> Result<()> {
        spawn::propose(&self.channel, pid, status)
    }

    /// Hears that the first process looks after the program. Waits for that if nothing was said yet.
    ///
    /// # Errors
    /// Why it does not, and [`crate::error::Kind::State`] if it is gone.
    pub fn hear_adopted(&self) -> Result<()> {
        spawn::hear_adopted(&self.channel)
    }
}

/// Puts on record that a container that waited has its program, and calls it otherwise if it is to have another name: which
/// it has only once everything else of it is right. Poststart hooks are left to [`finish_start`].
///
/// # Errors
/// [`crate::error::Kind::Exists`] if the name is another container's, [`crate::error::Kind::NotFound`] if this one was
/// deleted meanwhile.
pub fn record_program(root: &StateRoot, from: &ContainerId, to: &ContainerId, program: &Identity) -> Result<()> {
    let _lock = record::lock(root, from)?;
    record::note_program(root, from, program)?;
    if from == to { Ok(()) } else { record::rename(root, from, to) }
}

/// Runs the poststart hooks of a container that was started by [`record_program`]. `mask` is theirs; ours if none.
///
/// # Errors
/// As [`super::start()`].
pub fn finish_start(root: &StateRoot, id: &ContainerId, mask: Option<SigSet>) -> Result<()> {
    start::run_poststart(&Record::load(root, id)?, mask)
}
