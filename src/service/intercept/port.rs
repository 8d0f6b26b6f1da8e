//! What a program has at a declared address.

use super::decide::{Held, Protocol, Reuse, Versions};
use crate::sys::socket::{Address, Socket};
use crate::sys::socket_table::{Descriptor, descriptor_of};

/// A socket of the program's, or one of the host's that it has in place of its own.
#[derive(Debug)]
pub(super) struct Port {
    /// A duplicate.
    pub(super) socket: Socket,
    /// Its number.
    pub(super) inode: u64,
    /// Where the program has it, or had: the first to look at.
    pub(super) holder: Descriptor,
    pub(super) protocol: Protocol,
    pub(super) versions: Versions,
    /// What the program allowed by itself.
    pub(super) reuse: Reuse,
    /// The declared addresses that it serves, by index.
    pub(super) listen: Vec<usize>,
    /// Whether it takes connections, or messages.
    pub(super) listens: bool,
    /// Whether the program knows that it is bound.
    pub(super) answered: Answered,
}

/// Whether a program got the answer to a bind that was made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// It has, or will with the call at hand.
    Yes,
    /// It was interrupted, and calls again.
    No,
}

impl Port {
    /// For decisions; `None` for one without a port.
    pub(super) fn held(&self) -> Option<Held> {
        let Ok(Address::Internet(address)) = self.socket.local() else { return None };
        let Self { protocol, versions, reuse, listens, .. } = *self;
        Some(Held { protocol, address, versions, reuse, listens })
    }

    /// Whether the program still has it: our own duplicate keeps it alive without anybody who would accept.
    pub(super) fn is_open(&mut self) -> bool {
        match descriptor_of(self.inode, self.holder) {
            Ok(Some(holder)) => {
                self.holder = holder;
                true
            }
            Ok(None) => false,
            // Who cannot look keeps it.
            Err(_) => true,
        }
    }
}
