//! Keepers of services' instances that died before what they keep.

use super::Finding;
use crate::error::Result;
use crate::ids::ContainerId;
use crate::ops::Place;
use crate::service::definition::Handover;
use crate::service::keeper::{Keeper, directory, list, order};
use crate::service::message::Order;

pub(super) fn examine(place: &Place) -> Vec<Finding> {
    match look(place) {
        Ok(left) if left.is_empty() => vec![Finding::ok("keepers", "every instance of a service has its keeper")],
        Ok(left) => left.iter().map(judge).collect(),
        Err(error) => vec![Finding::unseen("keepers", &error)],
    }
}

/// An instance without a keeper.
#[derive(Debug)]
struct Left {
    instance: ContainerId,
    /// What it was to keep, if that can be read.
    order: Option<Order>,
}

fn look(place: &Place) -> Result<Vec<Left>> {
    let root = place.root.path();
    let mut left = Vec::new();
    for instance in list(root)? {
        // One that ends just now takes its directory away.
        if Keeper::connect(root, &instance)?.is_some() || !directory(root, &instance).exists() {
            continue;
        }
        let order = order(root, &instance).ok();
        left.push(Left { instance, order });
    }
    Ok(left)
}

fn judge(left: &Left) -> Finding {
    let subject = format!("keeper {}", left.instance);
    let Some(order) = &left.order else {
        return Finding::warn(subject, "it is dead", format!("regen delete --force {}", left.instance));
    };
    let lost = match order.definition.handover {
        Handover::ListenFds => "nobody keeps its log or sees its end",
        Handover::Intercept => "nobody keeps its log or sees its end, and its next bind fails (ENOSYS)",
    };
    Finding::warn(subject, format!("it is dead: {lost}"), format!("regen service restart {}", order.definition))
}
