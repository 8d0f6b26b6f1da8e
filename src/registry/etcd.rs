//! A registry that many machines share: an etcd of one or more members.
//!
//! ```text
//! caller's thread ──question──> the runtime's thread ──gRPC──> one member after the other (call)
//!        <────────answer──────         │  └─ a connection for each member, made when it is needed (member)
//!        <──events, bell── queue <─────┘ a task for each watch (watch)
//! ```
//!
//! Nobody else has to know of an async runtime: it is in one thread of this registry, which ends with it and sleeps while
//! nothing is asked. Keys lie below a prefix, so that an etcd may have others' keys too.

mod call;
mod entry;
mod fault;
mod member;
mod runtime;
mod settings;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare as ClientCompare, CompareOp, Error as ClientError, GetOptions, PutOptions, Txn, TxnOp,
};

use self::call::{Cluster, Effect};
use self::entry::Keys;
use self::fault::Fault;
use self::runtime::Runtime;
use super::{
    Answer, Applied, CHANGES_MAX, Entry, Failure, Lease, Listing, Put, Registry, Renewed, Transaction, VALUE_MAX, Watch,
};
use crate::error::{Kind, Result};

pub use settings::Settings;

/// Entries of the first page of a listing; the others are as long as is good for their bytes.
const PAGE: i64 = 256;
/// Bytes that a page should have, and the most it may have.
const PAGE_BYTES: usize = 4 << 20;
const PAGE_BYTES_MAX: usize = 1 << 30;
/// How often a listing is begun anew because a compaction came between two pages.
const LISTINGS: usize = 5;

/// An etcd. Threads may share it.
#[derive(Debug)]
pub struct Etcd {
    cluster: Arc<Cluster>,
    /// Shared with the watches, which may outlive this.
    runtime: Arc<Runtime>,
}

impl Etcd {
    /// Reads the files that the settings name; members are first spoken to when something is asked.
    ///
    /// # Errors
    /// Those of reading the files, and of beginning a thread.
    pub fn open(settings: Settings) -> Result<Self> {
        let cluster = Arc::new(Cluster::new(settings)?);
        Ok(Self { cluster, runtime: Arc::new(Runtime::begin()?) })
    }

    /// Asks in the runtime's thread, and waits for the answer in this one.
    fn ask<T, F>(&self, question: impl FnOnce(Arc<Cluster>) -> F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = Answer<T>> + Send + 'static,
    {
        let gone = || Failure::Indeterminate(self.cluster.error(Kind::System, Effect::Once, "its thread has ended"));
        self.runtime.wait(question(Arc::clone(&self.cluster))).unwrap_or_else(|| Err(gone()))
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.cluster.prefix())
    }

    fn refuse(&self, cause: String) -> Failure {
        Failure::Refused(self.cluster.error(Kind::Invalid, Effect::Once, cause))
    }

    fn check(&self, transaction: &Transaction) -> Answer<()> {
        let Transaction { compares, puts, deletes } = transaction;
        if let Some(Put { key, value, .. }) = puts.iter().find(|put| put.value.len() > VALUE_MAX) {
            return Err(
                self.refuse(format!("'{key}' would have {} bytes, at most {VALUE_MAX} are possible", value.len()))
            );
        }
        let most = compares.len().max(puts.len() + deletes.len());
        if most > CHANGES_MAX {
            return Err(self.refuse(format!("{most} compares or changes, at most {CHANGES_MAX} are possible")));
        }
        Ok(())
    }

    fn plan(&self, transaction: &Transaction) -> Txn {
        let compares = transaction.compares.iter().map(|compare| {
            ClientCompare::mod_revision(self.key(&compare.key), CompareOp::Equal, compare.modified.cast_signed())
        });
        let puts = transaction.puts.iter().map(|put| {
            let options = put.lease.map(|lease| PutOptions::new().with_lease(lease.0.cast_signed()));
            TxnOp::put(self.key(&put.key), put.value.clone(), options)
        });
        let deletes = transaction.deletes.iter().map(|key| TxnOp::delete(self.key(key), None));
        Txn::new().when(compares.collect::<Vec<_>>()).and_then(puts.chain(deletes).collect::<Vec<_>>())
    }
}

impl Registry for Etcd {
    fn identity(&self) -> Answer<String> {
        self.ask(|cluster| async move {
            // Whoever is connected to has told it.
            cluster.call(Effect::Read, |_| async { Ok(()) }).await?;
            Ok(format!("{:016x}", cluster.identity()))
        })
    }

    fn get(&self, key: &str) -> Answer<Option<Entry>> {
        let key = self.key(key);
        self.ask(|cluster| async move {
            let response = cluster.call(Effect::Read, |client| get(client, key.clone(), GetOptions::new())).await?;
            Ok(response.kvs().first().and_then(|found| entry::read(found, cluster.prefix())))
        })
    }

    fn list(&self, prefix: &str) -> Answer<Listing> {
        let keys = Keys::below(&self.key(prefix));
        self.ask(|cluster| async move {
            for _ in 0..LISTINGS {
                match list(&cluster, keys.clone()).await {
                    Err(Failure::Compacted) => {}
                    other => return other,
                }
            }
            let cause = "it is compacted all the time";
            Err(Failure::Unavailable(cluster.error(Kind::System, Effect::Read, cause)))
        })
    }

    fn apply(&self, transaction: &Transaction) -> Answer<Applied> {
        self.check(transaction)?;
        let planned = self.plan(transaction);
        self.ask(|cluster| async move {
            let ask = |client: Client| {
                let planned = planned.clone();
                async move { client.kv_client().txn(planned).await }
            };
            let response = cluster.call(Effect::Once, ask).await?;
            let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
            Ok(if response.succeeded() { Applied::Committed(revision.cast_unsigned()) } else { Applied::Refused })
        })
    }

    fn grant(&self, time: Duration) -> Answer<Lease> {
        // Whole seconds, and not less than was asked for.
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
        self.ask(|cluster| async move {
            let ask = |client: Client| async move { client.lease_client().grant(seconds, None).await };
            let response = cluster.call(Effect::Once, ask).await?;
            Ok(Lease(response.id().cast_unsigned()))
        })
    }

    fn renew(&self, lease: Lease) -> Answer<Renewed> {
        self.ask(|cluster| async move {
            let ask = |client: Client| async move {
                match client.lease_client().keep_alive(lease.0.cast_signed()).await {
                    Ok(_) => Ok(Renewed::Yes),
                    // The only one of this sort: the time that it has is none.
                    Err(ClientError::LeaseKeepAliveError(_)) => Ok(Renewed::Gone),
                    Err(error) => Err(error),
                }
            };
            cluster.call(Effect::Repeatable, ask).await
        })
    }

    fn revoke(&self, lease: Lease) -> Answer<()> {
        self.ask(|cluster| async move {
            let ask = |client: Client| async move { client.lease_client().revoke(lease.0.cast_signed()).await };
            match cluster.call(Effect::Repeatable, ask).await {
                Err(Failure::Refused(error)) if error.kind() == Kind::NotFound => Ok(()),
                other => other.map(|_| ()),
            }
        })
    }

    fn watch(&self, prefix: &str, after: u64) -> Answer<Box<dyn Watch>> {
        let keys = Keys::below(&self.key(prefix));
        let start = after.saturating_add(1).cast_signed();
        let first = keys.first.clone();
        let client = self.ask(|cluster| async move {
            let ask = |client: Client| {
                let first = first.clone();
                async move {
                    // etcd tells late that a watch is too late; who asks what was then hears it at once.
                    let options = GetOptions::new().with_revision(start).with_count_only().with_serializable();
                    match get(client.clone(), first, options).await {
                        Err(error) if is_to_come(&error) => Ok(client),
                        other => other.map(|_| client),
                    }
                }
            };
            cluster.call(Effect::Read, ask).await
        })?;
        let stream = watch::Stream::begin(Arc::clone(&self.runtime), Arc::clone(&self.cluster), client, keys, start);
        Ok(Box::new(stream.map_err(Failure::Unavailable)?))
    }
}

/// Whether the revision that was asked for is one that nobody has made yet.
fn is_to_come(error: &ClientError) -> bool {
    matches!(fault::read(error), Fault::Refused(refusal) if refusal.cause.contains("future revision"))
}

async fn get(
    client: Client,
    key: impl Into<Vec<u8>>,
    options: GetOptions,
) -> std::result::Result<etcd_client::GetResponse, ClientError> {
    client.kv_client().max_decoding_message_size(PAGE_BYTES_MAX).get(key, Some(options)).await
}

/// Page after page, all at the revision of the first.
async fn list(cluster: &Cluster, mut keys: Keys) -> Answer<Listing> {
    let mut listing = Listing::default();
    let mut page = PAGE;
    loop {
        let revision = listing.revision.cast_signed();
        let ask = |client: Client| {
            let options = GetOptions::new().with_range(keys.end.clone()).with_limit(page).with_revision(revision);
            get(client, keys.first.clone(), options)
        };
        let response = cluster.call(Effect::Read, ask).await?;
        if revision == 0 {
            listing.revision = response.header().map_or(0, |header| header.revision().cast_unsigned());
        }
        let found = response.kvs();
        listing.entries.extend(found.iter().filter_map(|found| entry::read(found, cluster.prefix())));
        let Some(last) = found.last().filter(|_| response.more()) else { return Ok(listing) };
        let bytes: usize = found.iter().map(|found| found.key().len() + found.value().len()).sum();
        page = plan_page(found.len(), bytes);
        keys = keys.after(last.key());
    }
}

/// The entries of the next page, if it is like the one before.
fn plan_page(entries: usize, bytes: usize) -> i64 {
    let fit = PAGE_BYTES * entries.max(1) / bytes.max(1);
    i64::try_from(fit.clamp(16, 8192)).unwrap_or(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_long_as_is_good_for_its_bytes() {
        assert_eq!(plan_page(256, 256 << 20), 16, "entries of a mebibyte");
        assert_eq!(plan_page(256, 256 << 10), 4096, "entries of a kibibyte");
        assert_eq!(plan_page(256, 2560), 8192, "small ones");
        assert_eq!(plan_page(0, 0), 8192);
    }
}
