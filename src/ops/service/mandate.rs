//! For whom a service is changed: an operation, which has to show that it still may once the service is claimed.

use std::fmt;

use super::record::{Change, ChangeId, ChangeKind};
use crate::error::Result;
use crate::operation::OperationId;

/// See the module.
pub struct Mandate<'a> {
    operation: Option<OperationId>,
    pass: &'a dyn Fn() -> Result<()>,
}

impl<'a> Mandate<'a> {
    /// That of an operation. `pass` is called under the claim of what is changed, before anything is done; what it refuses is not
    /// done.
    #[must_use]
    pub fn new(operation: OperationId, pass: &'a dyn Fn() -> Result<()>) -> Self {
        Self { operation: Some(operation), pass }
    }

    /// That of nobody else.
    #[must_use]
    pub fn own() -> Self {
        Self { operation: None, pass: &|| Ok(()) }
    }

    pub(super) fn pass(&self) -> Result<()> {
        (self.pass)()
    }

    /// The change, which has the operation's id.
    pub(super) fn begin(&self, kind: ChangeKind) -> Result<Change> {
        let change = Change::begin(kind)?;
        let id = self.operation.as_ref().map_or(change.id, ChangeId::of);
        Ok(Change { id, ..change })
    }
}

impl fmt::Debug for Mandate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mandate").field("operation", &self.operation).finish_non_exhaustive()
    }
}
