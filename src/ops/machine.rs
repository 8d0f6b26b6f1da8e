//! The machine that saved processes can come back on.

use std::fs;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;

/// What a saved program depends on besides its files: it has chosen its code by what the processor can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// A digest of what the processor can.
    pub processor: String,
}

impl Machine {
    /// This one.
    pub(super) fn here() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).context(|| format!("read '{path}'"));
        let release = read("/proc/sys/kernel/osrelease")?;
        Ok(Self { kernel: release.trim().to_owned(), processor: digest_of(&read("/proc/cpuinfo")?) })
    }

    /// Refuses what was saved on another machine than `now`.
    ///
    /// # Errors
    /// [`Kind::State`], with what differs.
    pub(super) fn check(&self, now: &Self) -> Result<()> {
        let refuse = |cause: String| Err(Error::new(Kind::State, "compare the machine", cause));
        if self.kernel != now.kernel {
            return refuse(format!("it was taken under Linux {}, this is {}", self.kernel, now.kernel));
        }
        if self.processor != now.processor {
            return refuse("it was taken on another processor".to_owned());
        }
        Ok(())
    }
}

/// Only the lines of abilities: speeds change all the time.
fn digest_of(cpuinfo: &str) -> String {
    let ability = |line: &&str| ["vendor_id", "flags", "Features", "CPU part"].iter().any(|key| line.starts_with(key));
    let mut lines: Vec<&str> = cpuinfo.lines().filter(ability).collect();
    lines.sort_unstable();
    lines.dedup();
    let digest = Digest::from_bytes(Sha256::digest(lines.join("\n")).into());
    digest.hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_what_it_can_and_not_how_fast() {
        let cpu = |mhz: u32, flags: &str| format!("processor: 0\nvendor_id: x\ncpu MHz: {mhz}\nflags: {flags}\n");
        let one = digest_of(&cpu(1000, "sse avx"));
        assert_eq!(digest_of(&format!("{}\n{}", cpu(2000, "sse avx"), cpu(900, "sse avx"))), one);
        assert_ne!(digest_of(&cpu(1000, "sse")), one);
    }
}
