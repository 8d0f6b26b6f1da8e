//! What others have.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{MARKER, Marker, WIDE, Wish, read};
use crate::error::{Error, Kind as Fault};
use crate::operation::Resource;
use crate::operation::class::{class, conflict};
use crate::operation::dense;
use crate::operation::resource::overlap;
use crate::operation::target::Runs;
use crate::registry::Listing;

/// Who has what somebody else wished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub marker: Marker,
    /// What.
    pub resource: Resource,
}

impl Holder {
    /// What is said to who wished it.
    #[must_use]
    pub fn error(&self, wish: &Marker, now: DateTime<Utc>) -> Error {
        let Marker { operation, kind, node, since } = &self.marker;
        // Clocks of two nodes may differ.
        let age = (now - since).num_milliseconds().max(0);
        let cause = format!(
            "operation {operation} has it: {kind}, on node '{node}', for {}.{} s",
            age / 1000,
            age % 1000 / 100
        );
        Error::new(Fault::Busy, format!("submit {} of '{}'", wish.kind, self.resource), cause)
            .next(format!("wait for it: 'regen op wait {operation}'"))
    }
}

/// The value of a wide marker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct WideValue<S = String> {
    #[serde(flatten)]
    pub marker: Marker,
    pub resources: Runs<S>,
}

/// Resources by node and root, so that one is found among many.
#[derive(Debug)]
pub(super) struct Set<'a>(HashMap<(&'a str, &'a str), Vec<&'a Resource>>);

impl<'a> Set<'a> {
    pub(super) fn new(resources: &'a [Resource]) -> Self {
        let mut set: HashMap<_, Vec<&'a Resource>> = HashMap::with_capacity(resources.len());
        for resource in resources {
            set.entry((resource.node.as_str(), resource.root())).or_default().push(resource);
        }
        Self(set)
    }

    /// One that overlaps.
    pub(super) fn find(&self, resource: &Resource) -> Option<&'a Resource> {
        let same = self.0.get(&(resource.node.as_str(), resource.root()))?;
        same.iter().find(|other| overlap(other.subject(), resource.subject(), true)).copied()
    }
}

/// A wide operation.
#[derive(Debug)]
struct WideHeld {
    marker: Marker,
    resources: Vec<Resource>,
}

/// All wide operations at one revision.
#[derive(Debug)]
pub(super) struct View {
    pub revision: u64,
    /// The revision that changed `wide` last; 0 if there never was a wide operation.
    pub modified: u64,
    wides: Vec<WideHeld>,
}

impl View {
    pub(super) fn read(listing: &Listing) -> Self {
        let (mut modified, mut wides) = (0, Vec::new());
        for entry in &listing.entries {
            if entry.key == WIDE {
                modified = entry.modified;
            } else if let Some(WideValue { marker, resources }) =
                dense::read(&entry.value).ok().and_then(|text| serde_json::from_slice(&text).ok())
            {
                let resource = |target: crate::operation::Target| Resource::parse(&target.to_string());
                let resources = resources.into_targets().into_iter().filter_map(resource).collect();
                wides.push(WideHeld { marker, resources });
            }
        }
        Self { revision: listing.revision, modified, wides }
    }

    /// A wide operation that is in the way.
    pub(super) fn holder(&self, wish: &Wish<'_>) -> Option<Holder> {
        let others = self.wides.iter().filter(|held| {
            held.marker.operation != wish.marker.operation && conflict(held.marker.kind, wish.marker.kind)
        });
        let mut set = None;
        for held in others {
            let set = set.get_or_insert_with(|| Set::new(wish.resources));
            if let Some(resource) = held.resources.iter().find_map(|resource| set.find(resource)) {
                return Some(Holder { marker: held.marker.clone(), resource: resource.clone() });
            }
        }
        None
    }
}

/// A narrow operation that is in the way of a wide one.
pub(super) fn narrow_holder(listing: &Listing, wish: &Wish<'_>) -> Option<Holder> {
    if listing.entries.is_empty() {
        return None;
    }
    let set = Set::new(wish.resources);
    let classes = class(wish.marker.kind);
    listing.entries.iter().find_map(|entry| {
        let (resource, word) = entry.key.strip_prefix(MARKER)?.rsplit_once('/')?;
        if !classes.iter().any(|class| class.word() == word) {
            return None;
        }
        let resource = set.find(&Resource::parse(resource)?)?.clone();
        let marker = read(entry).filter(|marker| marker.operation != wish.marker.operation)?;
        Some(Holder { marker, resource })
    })
}
