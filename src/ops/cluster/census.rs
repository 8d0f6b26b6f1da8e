//! How much there is on this node.

use std::path::PathBuf;
use std::sync::Arc;

use crate::node::Counts;
use crate::ops::template;
use crate::ring::Ring;
use crate::service::roster::Roster;
use crate::store::Store;

/// More rings than that are not counted, one by one every ten seconds.
const RINGS: usize = 10_000;

/// Who knows it.
#[derive(Debug, Clone)]
pub struct Census {
    roster: Arc<Roster>,
    templates: Option<template::Manager>,
    store: PathBuf,
}

impl Census {
    /// Of services that serve, templates that are looked after, and rings in a store.
    #[must_use]
    pub fn new(roster: Arc<Roster>, templates: Option<template::Manager>, store: PathBuf) -> Self {
        Self { roster, templates, store }
    }

    /// As it is now. Rings that cannot be listed are none: `ring ls` says why.
    #[must_use]
    pub fn count(&self) -> Counts {
        let store = Store::open_existing(&self.store).ok().flatten();
        let rings = store.and_then(|store| Ring::list_some(&store, RINGS).ok());
        Counts {
            services: self.roster.snapshot().members().count() as u64,
            templates: self.templates.as_ref().map_or(0, |templates| templates.list().len() as u64),
            rings: rings.map_or(0, |(rings, _)| rings.len() as u64),
        }
    }
}
