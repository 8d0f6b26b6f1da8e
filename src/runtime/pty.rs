//! A container's terminal, held by us.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The near end of a container's terminal.
#[derive(Debug)]
pub struct Pty(OwnedFd);

impl Pty {
    /// The terminal that a container's process has handed out.
    pub(super) fn new(near: OwnedFd) -> Self {
        Self(near)
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
