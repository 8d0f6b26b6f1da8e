//! A member of an etcd, and the connection to it: made when it is needed, anew after it broke.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use etcd_client::Client;
use tokio::sync::OnceCell;

/// A connection, perhaps one that is still being made.
pub(super) type Link = Arc<OnceCell<Client>>;

/// A member.
pub(super) struct Member {
    /// `HOST:PORT`
    pub address: String,
    /// The same as a URL.
    pub url: String,
    link: Mutex<Link>,
}

impl Member {
    pub(super) fn new(address: String, url: String) -> Self {
        Self { address, url, link: Mutex::default() }
    }

    /// The connection that everybody uses for now.
    pub(super) fn link(&self) -> Link {
        Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the next one make a new connection, unless somebody has seen to that since.
    pub(super) fn forget(&self, broken: &Link) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&link, broken) {
            *link = Link::default();
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("url", &self.url).finish_non_exhaustive()
    }
}
