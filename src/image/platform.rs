//! Which of an index's images is for this machine.

use super::manifest::{Descriptor, Platform};

/// A machine in Go's words, and the variants of its processor that it can run, best first (`""`: none named).
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AMD64: Machine = Machine { architecture: "amd64", os: "linux", variants: &["", "v1", "v2"] };
    const ARM: Machine = Machine { architecture: "arm", os: "linux", variants: &["v7", "", "v6", "v5"] };

    /// The index of the entry that is chosen among `os/architecture/variant`.
    fn chosen(machine: Machine, platforms: &[[&str; 3]]) -> Option<u64> {
        let entry = |(index, [os, architecture, variant]): (usize, &[&str; 3])| -> Descriptor {
            let mut entry = json!({"digest": "x", "size": index, "platform": {"os": os, "architecture": architecture}});
            if !variant.is_empty() {
                entry["platform"]["variant"] = json!(variant);
            }
            serde_json::from_value(entry).unwrap()
        };
        let entries: Vec<_> = platforms.iter().enumerate().map(entry).collect();
        machine.choose(&entries.iter().collect::<Vec<_>>()).map(|entry| entry.size)
    }

    #[test]
    fn the_best_variant_that_the_machine_can_run_is_chosen() {
        let amd64 =
            [["linux", "amd64", "v3"], ["linux", "amd64", "v2"], ["linux", "amd64", ""], ["linux", "arm", "v7"]];
        assert_eq!(chosen(AMD64, &amd64), Some(2));
        assert_eq!(chosen(AMD64, &amd64[..2]), Some(1));
        assert_eq!(chosen(AMD64, &amd64[..1]), None);
        let arm = [["linux", "arm", "v5"], ["linux", "arm", "v6"], ["linux", "arm", "v7"], ["linux", "arm", "v8"]];
        assert_eq!(chosen(ARM, &arm), Some(2));
        assert_eq!(chosen(ARM, &arm[..2]), Some(1));
    }

    #[test]
    fn another_system_and_attestations_are_passed_over() {
        assert_eq!(chosen(AMD64, &[["windows", "amd64", ""], ["unknown", "unknown", ""]]), None);
        assert_eq!(chosen(AMD64, &[["unknown", "unknown", ""], ["linux", "amd64", ""]]), Some(1));
        assert_eq!(chosen(AMD64, &[]), None);
    }
}
