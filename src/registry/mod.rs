//! What outlives a process: keys with values, in the shape of etcd's store (<https://etcd.io/docs/v3.5/learning/api/>).
//!
//! Every transaction has a number, its *revision*, which only grows; every key knows the revision that made it and the one
//! that changed it last; a transaction is applied only if nobody changed what it is based on; keys may hang on a *lease*
//! and go when nobody renews that; and who watches hears every change after a revision, in order, once.
//!
//! ```text
//! Registry (trait)
//!    ├─ Sqlite   one file on a local disk; several processes of this machine at once
//!    └─ Etcd     many machines (feature `etcd`)
//! ```
//!
//! No process that makes a container opens one.

mod counted;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod sqlite;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::error::{Error, Kind};

pub use counted::Counted;
#[cfg(feature = "etcd")]
pub use etcd::Etcd;
pub use sqlite::{FILE, Sqlite};

/// The longest value.
pub const VALUE_MAX: usize = 1 << 20;
/// The most compares of a transaction, and the most changes: etcd's own bound (`--max-txn-ops`).
pub const CHANGES_MAX: usize = 128;

/// What a registry answers.
pub type Answer<T> = Result<T, Failure>;

/// A key with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key: parts separated by `/`.
    pub key: String,
    /// The value, of at most a mebibyte.
    pub value: Vec<u8>,
    /// The revision that made the key.
    pub created: u64,
    /// The revision that changed its value last.
    pub modified: u64,
}

/// What a prefix has, all at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The registry's revision then: a watch after it misses nothing.
    pub revision: u64,
    /// In the order of keys.
    pub entries: Vec<Entry>,
}

/// Changes that are made together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// What has to be so.
    pub compares: Vec<Compare>,
    /// Keys that get a value. No key is named twice in a transaction.
    pub puts: Vec<Put>,
    /// Keys that go; one that is not there is no error.
    pub deletes: Vec<String>,
}

/// A key that has to be as its reader saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// The revision that changed it last; 0 if it must not be there.
    pub modified: u64,
}

/// A key that gets a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// What the key goes with; none if it stays.
    pub lease: Option<Lease>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It is on disk, as this revision.
    Committed(u64),
    /// Something that it compares is different; nothing was changed.
    Refused,
}

/// The right to have keys for a while, which is prolonged by renewing it. When its time is over, its keys go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease(pub u64);

/// What became of renewing a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// It has its whole time again, from when this was asked.
    Yes,
    /// There is none any more, and none of its keys.
    Gone,
}

/// A change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: String,
    /// Its entry now; `None` if it went: deleted, or with its lease.
    pub entry: Option<Entry>,
    /// The revision that did it. All events of one revision come together.
    pub revision: u64,
}

/// Why there is no answer.
#[derive(Debug, Clone)]
pub enum Failure {
    /// A change was asked for, and may or may not have been made: look before it is asked for again.
    Indeterminate(Error),
    /// The changes after that revision are not all known any more: list, and watch after the listing's revision.
    Compacted,
    /// Nobody answers; nothing was changed. It may be different later.
    Unavailable(Error),
    /// It cannot be done, now or later; nothing was changed.
    Refused(Error),
}

/// Keys with values. Threads may share it.
pub trait Registry: fmt::Debug + Send + Sync {
    /// What tells this registry from every other: revisions of two are not compared.
    ///
    /// # Errors
    /// [`Failure::Unavailable`], [`Failure::Refused`]
    fn identity(&self) -> Answer<String>;

    /// What a key has; `None` if it is not there. Nothing that was committed before is missed.
    ///
    /// # Errors
    /// [`Failure::Unavailable`], [`Failure::Refused`]
    fn get(&self, key: &str) -> Answer<Option<Entry>>;

    /// Every key that begins so.
    ///
    /// # Errors
    /// [`Failure::Unavailable`], [`Failure::Refused`]
    fn list(&self, prefix: &str) -> Answer<Listing>;

    /// Makes all changes of a transaction, or none. One that changes nothing has the revision of the last that did. A put with a lease that is gone is [`Failure::Refused`] with
    /// [`Kind::NotFound`].
    ///
    /// # Errors
    /// [`Failure::Indeterminate`], [`Failure::Unavailable`]; [`Failure::Refused`] with [`Kind::Invalid`] for more than
    /// [`VALUE_MAX`] or [`CHANGES_MAX`] and for a key that is changed twice, else those of writing.
    fn apply(&self, transaction: &Transaction) -> Answer<Applied>;

    /// A new lease for so long. One that nobody learnt of ([`Failure::Indeterminate`]) goes by itself.
    ///
    /// # Errors
    /// [`Failure::Indeterminate`], [`Failure::Unavailable`], [`Failure::Refused`]
    fn grant(&self, time: Duration) -> Answer<Lease>;

    /// Prolongs a lease.
    ///
    /// # Errors
    /// [`Failure::Indeterminate`], [`Failure::Unavailable`], [`Failure::Refused`]
    fn renew(&self, lease: Lease) -> Answer<Renewed>;

    /// Ends a lease, and its keys with it; one that is gone is no error.
    ///
    /// # Errors
    /// [`Failure::Indeterminate`], [`Failure::Unavailable`], [`Failure::Refused`]
    fn revoke(&self, lease: Lease) -> Answer<()>;

    /// Every change after a revision, of keys that begin so.
    ///
    /// # Errors
    /// [`Failure::Compacted`], [`Failure::Unavailable`], [`Failure::Refused`]
    fn watch(&self, prefix: &str, after: u64) -> Answer<Box<dyn Watch>>;
}

/// Changes, as they come.
pub trait Watch: fmt::Debug + Send {
    /// Those that came since the last call, in order; waits for one if there is none, and gives nothing if there is none
    /// until then. Changes of one revision are never torn apart.
    ///
    /// # Errors
    /// [`Failure::Compacted`] if so much came that some of it is not known any more; [`Failure::Unavailable`] if the
    /// connection broke: watch again after the last revision that was heard.
    fn next(&mut self, limit: Option<Duration>) -> Answer<Vec<Event>>;

    /// Readable when there may be something; for those who wait for several things.
    fn bell(&self) -> BorrowedFd<'_>;
}

impl Put {
    /// A key that stays.
    #[must_use]
    pub fn new(key: impl Into<String>, value: Vec<u8>) -> Self {
        Self { key: key.into(), value, lease: None }
    }

    /// A key that goes with a lease.
    #[must_use]
    pub fn leased(key: impl Into<String>, value: Vec<u8>, lease: Lease) -> Self {
        Self { key: key.into(), value, lease: Some(lease) }
    }
}

impl Compare {
    /// That a key is as it was when somebody changed it last.
    #[must_use]
    pub fn unchanged(key: impl Into<String>, modified: u64) -> Self {
        Self { key: key.into(), modified }
    }

    /// That there is no such key.
    #[must_use]
    pub fn absent(key: impl Into<String>) -> Self {
        Self { key: key.into(), modified: 0 }
    }
}

impl Transaction {
    /// Gives a key a value that nobody may have changed since it was read.
    #[must_use]
    pub fn replace(key: &str, modified: u64, value: Vec<u8>) -> Self {
        Self {
            compares: vec![Compare::unchanged(key, modified)],
            puts: vec![Put::new(key, value)],
            deletes: Vec::new(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Indeterminate(error) | Failure::Unavailable(error) | Failure::Refused(error) => error,
            Failure::Compacted => {
                Error::new(Kind::State, "watch the registry", "the changes since then are not known any more")
                    .next("list, and watch from there")
            }
        }
    }
}
