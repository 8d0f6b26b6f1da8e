//! What the keeper of the instance before has that ours needs: the maps by which the kernel chooses among sockets.
//!
//! A socket is in one map at most, and a group of sockets has one program. So who takes over sockets takes over their map,
//! and who comes up beside others asks probes of itself through a program that has their map, too.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::service::address::Address;
use crate::service::message::{Command, KEEPERS, Reply};
use crate::sys::channel::Channel;
use crate::sys::fs::open_path;
use crate::sys::steer::Targets;

/// A keeper answers at once, or is stuck.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The maps of another keeper, by address.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such keeper, [`Kind::Busy`] if it does not answer.
pub(super) fn targets_of(root: &Path, instance: &ContainerId) -> Result<Vec<(Address, Targets)>> {
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
        Reply::Targets { addresses } if addresses.len() == received.descriptors.len() => addresses
            .into_iter()
            .zip(received.descriptors)
            .map(|(address, map)| Ok((address, Targets::try_from(map)?)))
            .collect(),
        Reply::Failed { error } => Err(error.during(operation())),
        Reply::Targets { .. } | Reply::Sockets { .. } | Reply::Status(_) | Reply::Done => {
            Err(Error::new(Kind::Damaged, operation(), "its answer is none"))
        }
    }
}
