//! `features`: what this runtime can do.

use std::io::Write;

use crate::error::{Context, Result};
use crate::runtime::features::features;

pub(super) fn run() -> Result<()> {
    let text = serde_json::to_string_pretty(&features()).context(|| "write the features")?;
    writeln!(std::io::stdout(), "{text}").context(|| "print the features")
}
