//! `keeper`: what the detached process does that keeps an instance of a service.

use crate::error::Result;
use crate::ops::keep;

/// Everything that it has to know is in its order.
pub(super) fn run() -> Result<()> {
    keep::run()
}
