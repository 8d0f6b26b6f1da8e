//! What the keeper of the instance before has that ours needs: the maps by which the kernel sends it new connections. Who comes
//! up beside it is probed past it by them.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::service::message::{Command, KEEPERS, Reply};
use crate::service::steer::Serving;
use crate::sys::channel::Channel;
use crate::sys::fs::open_path;

/// A keeper answers at once, or is stuck.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The maps of another keeper.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such keeper, [`Kind::Busy`] if it does not answer.
pub(super) fn serving(root: &Path, instance: &ContainerId) -> Result<Serving> {
    let operation = || format!("ask the keeper of instance '{instance}' for its maps of sockets");
    let channel = Channel::connect(open_path(&root.join(KEEPERS).join(instance.as_str()))?, "control")?;
    let question = serde_json::to_vec(&Command::Targets).context(operation)?;
    channel.send(&question, &[]).context(operation)?;
    let mut polled = [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)];
    if poll(&mut polled, Some(&PATIENCE)).context(operation)? == 0 {
        return Err(Error::new(Kind::Busy, operation(), "it does not answer"));
    }
    let gone = || Error::new(Kind::NotFound, operation(), "it has ended");
    let received = channel.receive().context(operation)?.ok_or_else(gone)?;
    match serde_json::from_slice(&received.bytes).context(operation)? {
        Reply::Targets { addresses } => Serving::new(addresses, received.descriptors),
        Reply::Failed { error } => Err(error.during(operation())),
        Reply::Sockets { .. } | Reply::Status(_) | Reply::Done => {
            Err(Error::new(Kind::Damaged, operation(), "its answer is none"))
        }
    }
}
