//! The keeper: one process per instance of a service, which makes it, holds its sockets and sees it to its end.
//!
//! ```text
//! run      order off descriptor 0                                                    birth
//!          directory, sockets, container, start ──> Reply::Status, or Reply::Failed and the end
//! watch    one poll(2) over everything:                                              watch
//!            its output ──> log             its end ──> saved, deleted, outcome      end
//!            READY=1, probes ──> ready      binds ──> answered                       proof, holding
//!            commands ──> serve, drain, stop, hand out, release                      answer
//! ```
//!
//! The daemon may die and come back: it finds the keeper by its directory and asks how things are. A keeper whose
//! instance ended stays, with the sockets that clients still connect to, until the daemon has another instance that has
//! them. If somebody has killed the instance or deleted its container, it stays only as long as anybody is connected to
//! it. One that is killed leaves an instance that goes on, which [`stop`] and `delete --force` end, and a directory
//! that [`clear`] takes away.

mod answer;
mod birth;
mod connection;
mod end;
mod family;
mod holding;
mod home;
mod orphan;
mod phase;
mod predecessor;
mod proof;
mod signal;
mod stage;
mod stall;
mod watch;

use std::ffi::OsString;
use std::os::fd::BorrowedFd;

pub use home::clear;
pub use orphan::stop;

use birth::{Commission, bear, place};
use home::Home;
use watch::Keeper;

use crate::error::{Context, Error, Kind, Result};
use crate::service::log::{Limits, Writer};
use crate::service::message::{Order, Reply};
use crate::sys::channel::Channel;
use crate::sys::detach::spawn_self_with;
use crate::sys::exe;

/// The verb that a keeper is started with; the instance behind it is for those who look at processes.
pub const VERB: &str = "keeper";

/// Starts a keeper, for the daemon. What it has to say ([`Reply::Status`] or [`Reply::Failed`]) comes over the channel, which
/// then ends. `sockets` are those of [`Order::inherited`].
///
/// # Errors
/// Those of fork, exec and sendmsg(2).
pub fn start(order: &Order, sockets: &[BorrowedFd<'_>]) -> Result<Channel> {
    let operation = || format!("start the keeper of instance '{}'", order.instance);
    let text = serde_json::to_vec(order).context(operation)?;
    let (ours, theirs) = Channel::pair()?;
    // Said before anybody listens: what is on its way is read after the end of who said it, too.
    ours.send(&text, sockets).context(operation)?;
    let arguments = [VERB.into(), OsString::from(order.instance.as_str())];
    spawn_self_with(theirs, &arguments).context(operation)?;
    Ok(ours)
}

/// What the keeper process does, from its order to its end.
///
/// # Errors
/// Why there is no instance; the daemon was told, too.
pub fn run() -> Result<()> {
    let Commission { channel, order, sockets } = Commission::receive()?;
    match begin(&channel, order, sockets) {
        Ok(keeper) => {
            // A daemon that is gone will ask for it.
            let _ = say(&channel, &Reply::Status(Box::new(keeper.status())));
            drop(channel);
            exe::forget_code();
            keeper.watch();
            Ok(())
        }
        Err(error) => {
            let text = error.to_string();
            say(&channel, &Reply::Failed { error })?;
            tracing::debug!("{text}");
            Ok(())
        }
    }
}

fn begin(channel: &Channel, order: Order, sockets: Vec<std::os::fd::OwnedFd>) -> Result<Keeper> {
    let place = place(&order)?;
    let (home, control) = Home::make(&order)?;
    // Now this keeper is found by whoever looks. A daemon that looked before has given it up, and nobody would know it.
    if !channel.is_open()? {
        home.remove();
        let operation = format!("start instance '{}'", order.instance);
        return Err(Error::new(Kind::State, operation, "the daemon that ordered it is gone"));
    }
    let mut log = Writer::new(&order.log, &order.instance, Limits::default());
    match bear(&order, &place, &home, sockets) {
        Ok(newborn) => Ok(Keeper::new(order, place, (home, control), log, newborn)),
        Err(error) => {
            log.note(&format!("it could not be started: {error}"));
            home.remove();
            Err(error)
        }
    }
}

fn say(channel: &Channel, reply: &Reply) -> Result<bool> {
    let text = serde_json::to_vec(reply).context(|| "tell what came of the order")?;
    channel.send(&text, &[])
}
