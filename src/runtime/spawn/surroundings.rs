//! What the caller may do, decided once and in one place.

use crate::cgroup::Refusal;
use crate::sys::user_namespace::is_initial;

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
        if nix::unistd::geteuid().is_root() && is_initial() { Self::Host } else { Self::Limited }
    }

    /// What to do where cgroups may not be made.
    pub(in crate::runtime) fn refusal(self) -> Refusal {
        match self {
            Self::Host => Refusal::Fails,
            Self::Limited => Refusal::Skips,
        }
    }
}
