//! What a process of ours was started to do: the order that whoever started it gives on descriptor 0.

use std::fs::File;
use std::os::fd::AsFd;

use crate::error::{Context, Error, Kind, Result};
use crate::sys::channel::{Channel, Received};

/// Takes the order, and puts `/dev/null` in the place of descriptor 0: whoever gave it hears of our end by the end of the
/// channel. `next` tells people who start such a process by hand.
///
/// # Errors
/// [`Kind::State`] if whoever gave it is gone, else that there is no channel.
pub(super) fn receive(operation: &str, next: &str) -> Result<(Channel, Received)> {
    let context = || operation.to_owned();
    let channel = std::io::stdin().as_fd().try_clone_to_owned().map(Channel::from).context(context)?;
    let null = File::open("/dev/null").context(|| "open '/dev/null'")?;
    rustix::stdio::dup2_stdin(null).context(context)?;
    let received = channel.receive().map_err(|error| error.during(context()).next(next))?;
    let received = received.ok_or_else(|| Error::new(Kind::State, context(), "whoever gave it is gone"))?;
    Ok((channel, received))
}
