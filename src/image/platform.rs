//! Which of an index's images is for this machine.

use super::manifest::{Descriptor, Platform};

/// This machine in Go's words, and the variants of its processor that it can run, best first (`""`: none named).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// `amd64`, `arm64`, …
    pub architecture: &'static str,
    /// `linux`.
    pub os: &'static str,
    variants: &'static [&'static str],
}

/// The machine that this program was built for.
#[must_use]
pub fn machine() -> Machine {
    // amd64's v3 and v4 need processors that not every machine has; an image for them is not taken unasked.
    let (architecture, variants): (_, &[_]) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", &["", "v1", "v2"]),
        "x86" => ("386", &[""]),
        "aarch64" => ("arm64", &["v8", ""]),
        "arm" => ("arm", &["v7", "", "v6", "v5"]),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", &[""]),
        "loongarch64" => ("loong64", &[""]),
        other => (other, &[""]),
    };
    Machine { architecture, os: "linux", variants }
}

impl Machine {
    /// The entry that runs best on this machine, if any does.
    #[must_use]
    pub fn choose<'a>(&self, entries: &'a [&'a Descriptor]) -> Option<&'a Descriptor> {
        let fits = |entry: &Descriptor, variant: &str| {
            entry.platform.as_ref().is_some_and(|platform| {
                platform.os == self.os
                    && platform.architecture == self.architecture
                    && platform.variant.as_deref().unwrap_or_default() == variant
            })
        };
        self.variants.iter().find_map(|variant| entries.iter().copied().find(|entry| fits(entry, variant)))
    }
}

/// `os/architecture[/variant]`.
#[must_use]
pub fn show(platform: &Platform) -> String {
    let variant = platform.variant.as_deref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os, platform.architecture)
}
