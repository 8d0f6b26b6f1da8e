//! What a node that does not come back has begun is ended by the others, as `unknown`: nobody waits for it for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{Cluster, LEASE, Shared, start};
use crate::error::Result;
use crate::ids::NodeName;
use crate::ops::operation::Engine;
use crate::sys::bell::Bell;

/// So long a node is gone before it is given up, beside its lease: it knows by then itself that it has lost its markers.
const GRACE: Duration = LEASE;
/// Whoever is given up is so when this is looked at again.
const MARGIN: Duration = Duration::from_millis(10);

/// Watches over the nodes, as long as the cluster is there.
///
/// # Errors
/// If no descriptor or thread is left.
pub fn mourn(cluster: &Cluster, engine: &Engine) -> Result<()> {
    let bell = cluster.directory().bell()?;
    let (shared, engine) = (Arc::downgrade(&cluster.0), engine.clone());
    start("cluster-mourning", move || run(&shared, &engine, &bell))
}

fn run(shared: &Weak<Shared>, engine: &Engine, bell: &Bell) {
    let mut missed: BTreeMap<NodeName, Instant> = BTreeMap::new();
    let mut looked: Option<(Instant, BTreeSet<NodeName>)> = None;
    loop {
        // Nodes may have gone while no daemon was there to see it, so it is looked for from time to time.
        let due = missed.values().map(|since| (*since + GRACE).saturating_duration_since(Instant::now())).min();
        if bell.wait(Some(due.map_or(GRACE, |due| due + MARGIN))).is_err() {
            return;
        }
        bell.silence();
        let Some(shared) = shared.upgrade().filter(|shared| !shared.is_ended()) else { return };
        if shared.directory.stale_for().is_some() {
            // Nobody is known to be gone.
            missed.clear();
            continue;
        }
        let known = shared.directory.snapshot();
        let own = shared.node().name.clone();
        drop(shared);
        let names: BTreeSet<NodeName> = known.nodes().map(|node| node.name.clone()).collect();
        // All nodes hear of every change: not each is worth a question to the registry, which would get it from all of them.
        if looked.as_ref().is_some_and(|(at, before)| at.elapsed() < GRACE && before.is_subset(&names)) {
            continue;
        }
        looked = Some((Instant::now(), names));
        let busy = match engine.busy_nodes() {
            Ok(busy) => busy,
            Err(error) => {
                tracing::debug!("look for nodes that have operations: {error}");
                continue;
            }
        };
        if busy.contains(&own)
            && let Err(error) = engine.bury(&own)
        {
            tracing::debug!("end what an earlier daemon of this node had: {error}");
        }
        let gone: BTreeSet<NodeName> =
            busy.into_iter().filter(|name| *name != own && known.node(name).is_none()).collect();
        missed.retain(|name, _| gone.contains(name));
        for name in gone {
            let since = *missed.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() < GRACE {
                continue;
            }
            match engine.bury(&name) {
                Ok(count) => tracing::warn!("node '{name}' is gone: operations of it that nobody ends: {count}"),
                Err(error) => tracing::debug!("end what node '{name}' had: {error}"),
            }
            missed.remove(&name);
        }
    }
}
