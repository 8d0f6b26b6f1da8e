//! What the caller may do, decided once and in one place.

use std::fs;

use crate::cgroup::Refusal;

/// Whose rights the caller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Privilege {
    /// The host's root: what fails is an error.
    Host,
    /// An ordinary user, or the root of a user namespace: what such a caller may not do, but a container can live
    /// without, is left out (cgroups, device nodes, groups), and id maps are written by newuidmap(1).
    Limited,
}

impl Privilege {
    /// The calling process's.
    pub(in crate::runtime) fn of_caller() -> Self {
        if nix::unistd::geteuid().is_root() && is_initial(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
        {
            Self::Host
        } else {
            Self::Limited
        }
    }

    /// What to do where cgroups may not be made.
    pub(in crate::runtime) fn refusal(self) -> Refusal {
        match self {
            Self::Host => Refusal::Fails,
            Self::Limited => Refusal::Skips,
        }
    }
}

/// The map of the initial user namespace: every id is itself.
fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_map_of_every_id_to_itself_is_the_hosts() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0       1000          1\n"));
        assert!(!is_initial("         0          0      65536\n"));
    }
}
