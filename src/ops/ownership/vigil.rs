//! The thread that hears who has which ring, and makes that so on this node: for what happened while its daemon was not
//! there, or was out of reach.

use std::time::Duration;

use super::{Owner, Ownership, RINGS, read_key};
use crate::error::{Context, Error, Result};
use crate::registry::{Answer, Entry, Failure};

/// The pauses between tries, as they grow.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

impl Ownership {
    /// Begins to listen, as long as the process lives.
    ///
    /// # Errors
    /// If no thread is left.
    pub fn watch(&self) -> Result<()> {
        let ownership = self.clone();
        let thread = std::thread::Builder::new().name("cluster-rings".to_owned());
        thread.spawn(move || run(&ownership)).map(drop).context(|| "start the thread 'cluster-rings'")
    }

    /// Lists, and hears what comes after that; until the registry is away.
    fn listen(&self, failed: &mut usize) -> Answer<()> {
        let listing = self.0.registry.list(RINGS)?;
        let mut watch = self.0.registry.watch(RINGS, listing.revision)?;
        listing.entries.iter().for_each(|entry| self.obey(entry));
        *failed = 0;
        loop {
            let events = watch.next(None)?;
            events.iter().filter_map(|event| event.entry.as_ref()).for_each(|entry| self.obey(entry));
        }
    }

    /// What fails here is tried again when the key changes, and when the daemon starts.
    fn obey(&self, entry: &Entry) {
        let Some(name) = read_key(&entry.key) else { return };
        let settled = Owner::read(entry).and_then(|told| {
            let concerns_us = told.node == self.0.node || told.without.iter().any(|bereft| bereft.node == self.0.node);
            if !concerns_us && self.here(&name)?.is_none() {
                return Ok(());
            }
            // What is told may be over by now.
            self.find(&name)?.owner.map_or(Ok(()), |owner| self.settle(&name, &owner))
        });
        if let Err(error) = settled {
            tracing::error!("make ring '{name}' what '{}' says: {error}", entry.key);
        }
    }
}

fn run(ownership: &Ownership) -> ! {
    let mut failed = 0;
    loop {
        if let Err(failure) = ownership.listen(&mut failed)
            && !matches!(failure, Failure::Compacted)
        {
            tracing::debug!("who has which ring is not heard: {}", Error::from(failure));
        }
        std::thread::sleep(PAUSES[failed.min(PAUSES.len() - 1)]);
        failed += 1;
    }
}
