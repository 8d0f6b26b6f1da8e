//! What only the creator may do, before the first process exists.

use super::plan::Plan;
use crate::error::Result;

impl Plan {
    /// Opens the sources of bind mounts that the first process may not reach or not map, because it will be in a user
    /// namespace. To be called by the creator, before the clone; the descriptors are inherited.
    ///
    /// # Errors
    /// A missing source, by its path.
    pub fn open_sources(&mut self) -> Result<()> {
        Ok(())
    }
}
