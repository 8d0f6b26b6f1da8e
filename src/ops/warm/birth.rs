//! From an order to a keeper that loads its template.

use super::home::Home;
use super::keeper::Keeper;
use super::{leftover, snapshot};
use crate::error::{Context, Error, Kind, Result};
use crate::ops::{Place, order};
use crate::sys::channel::Channel;
use crate::sys::exe;
use crate::sys::user_namespace::is_initial;
use crate::template::definition::{Mode, Order};
use crate::template::message::{Report, decode, encode};

/// What the keeper process does, from its order to its end.
///
/// # Errors
/// Why it could not take its order; what becomes of the template is told to whoever gave it.
pub fn run() -> Result<()> {
    let (channel, order) = receive_order("take the order of a template's keeper")?;
    // For a retry: the channel is the keeper's once there is one.
    let second = channel.duplicate()?;
    let begun = check(&order).and_then(|()| match order.definition.mode {
        Mode::Zygote => begin(channel, order).map(Box::new).map(Begun::Zygote),
        Mode::Snapshot => snapshot::Keeper::begin(channel, order).map(Box::new).map(Begun::Snapshot),
    });
    match begun {
        Ok(keeper) => {
            drop(second);
            exe::forget_code();
            match keeper {
                Begun::Zygote(keeper) => keeper.keep(),
                Begun::Snapshot(keeper) => keeper.keep(),
            }
        }
        Err(error) => {
            tracing::debug!("{error}");
            second.send(&encode(&Report::Failed { error })?, &[])?;
        }
    }
    Ok(())
}

/// A keeper, by the mode of its template.
enum Begun {
    Zygote(Box<Keeper>),
    Snapshot(Box<snapshot::Keeper>),
}

fn check(order: &Order) -> Result<()> {
    order.check()?;
    if is_initial() {
        return Ok(());
    }
    let cause = "only root of the machine itself can have templates, not that of a user namespace";
    Err(Error::new(Kind::Unsupported, format!("keep template '{}'", order.definition), cause))
}

fn begin(channel: Channel, order: Order) -> Result<Keeper> {
    let place = place(&order)?;
    place.open_store()?;
    let home = Home::enter(&order)?;
    let left = leftover::find(&order, &place, &home)?;
    Keeper::new(order, place, home, channel, left)
}

/// Takes the order from descriptor 0.
pub(super) fn receive_order(operation: &str) -> Result<(Channel, Order)> {
    let (channel, received) = order::receive(operation, "keepers of templates are started by 'regen serve' alone")?;
    Ok((channel, decode(&received.bytes).context(|| operation)?))
}

/// Where and for whom containers are made.
pub(super) fn place(order: &Order) -> Result<Place> {
    Place::of_order(&order.root, &order.store, order.config.as_deref())
}
