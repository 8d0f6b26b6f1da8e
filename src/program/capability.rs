//! The five capability sets: what is asked for, what can be had, and the order in which it is given up.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::{Context, Result};

/// Five sets, as bits by the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sets {
    pub bounding: CapabilitySet,
    pub effective: CapabilitySet,
    pub permitted: CapabilitySet,
    pub inheritable: CapabilitySet,
    pub ambient: CapabilitySet,
}

/// What the process asked for and will not have, with the reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub set: &'static str,
    pub capability: String,
    pub reason: &'static str,
}

/// Decides the sets. Left out is what the kernel would refuse as a whole otherwise: what it does not know, what we do
/// not have ourselves, what is effective or inheritable beyond permitted or bounding, and what is ambient without
/// being permitted and inheritable (capabilities(7)).
pub(super) fn plan(
    wanted: Option<&LinuxCapabilities>,
    known: CapabilitySet,
    own: CapabilitySet,
) -> (Sets, Vec<LeftOut>) {
    let mut left_out = Vec::new();
    let mut keep = |name: &'static str, set: Option<&Capabilities>, limits: &[(CapabilitySet, &'static str)]| {
        let mut kept = CapabilitySet::empty();
        for capability in set.into_iter().flatten() {
            let bit = bit_of(*capability);
            match limits.iter().find(|(limit, _)| !limit.contains(bit)) {
                None => kept |= bit,
                Some((_, reason)) => left_out.push(LeftOut { set: name, capability: name_of(*capability), reason }),
            }
        }
        kept
    };
    let wanted = |which: fn(&LinuxCapabilities) -> &Option<Capabilities>| wanted.and_then(|sets| which(sets).as_ref());
    let known = (known, "this kernel does not know it");
    let own = (own, "regen does not have it itself");
    let bounding = keep("bounding", wanted(LinuxCapabilities::bounding), &[known, own]);
    let permitted = keep("permitted", wanted(LinuxCapabilities::permitted), &[known, own]);
    let within = |set, reason| [known, own, (set, reason)];
    let effective = keep("effective", wanted(LinuxCapabilities::effective), &within(permitted, "it is not permitted"));
    let inheritable =
        keep("inheritable", wanted(LinuxCapabilities::inheritable), &within(bounding, "it is not in the bounding set"));
    let possible = (permitted & inheritable, "it is not both permitted and inheritable");
    let ambient = keep("ambient", wanted(LinuxCapabilities::ambient), &[known, own, possible]);
    (Sets { bounding, effective, permitted, inheritable, ambient }, left_out)
}

fn name_of(capability: Capability) -> String {
    format!("CAP_{capability}")
}

fn bit_of(capability: Capability) -> CapabilitySet {
    // Every name of the specification is one of the kernel's; a newer one was left out when it was read.
    let number = name_of(capability).parse::<caps::Capability>().map_or(63, |known| known.index());
    CapabilitySet::from_bits_retain(1 << number)
}

/// One by one, also those that are too new to have a name in this build.
fn each(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..63).map(|number| CapabilitySet::from_bits_retain(1 << number)).filter(move |bit| set.contains(*bit))
}

/// The capabilities that this kernel knows.
pub(super) fn known() -> CapabilitySet {
    each(CapabilitySet::all())
        .take_while(|capability| capability_is_in_bounding_set(*capability) != Err(Errno::INVAL))
        .fold(CapabilitySet::empty(), |known, capability| known | capability)
}

/// The capabilities that the caller has and may keep.
pub(super) fn own() -> Result<CapabilitySet> {
    Ok(capabilities(None).context(|| "read our capabilities")?.permitted)
}

impl Sets {
    /// Takes everything else out of the bounding set, for which CAP_SETPCAP is needed.
    pub(super) fn bound(&self, known: CapabilitySet) -> Result<()> {
        for capability in each(known & !self.bounding) {
            let result = match remove_capability_from_bounding_set(capability) {
                Err(Errno::PERM) if capability_is_in_bounding_set(capability) == Ok(false) => Ok(()),
                result => result,
            };
            result.context(|| "drop capabilities from the bounding set")?;
        }
        Ok(())
    }

    /// Sets the four others; `extra` stays permitted and effective until execve(2), which makes the permitted set anew
    /// from the inheritable, bounding and ambient ones.
    pub(super) fn apply(&self, extra: CapabilitySet) -> Result<()> {
        let operation = || "set capabilities";
        let sets = CapabilitySets {
            effective: self.effective | extra,
            permitted: self.permitted | extra,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).context(operation)?;
        clear_ambient_capability_set().context(operation)?;
        for capability in each(self.ambient) {
            configure_capability_in_ambient_set(capability, true).context(operation)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(names: &[(&str, &[&str])]) -> LinuxCapabilities {
        let object: serde_json::Map<_, _> =
            names.iter().map(|(set, names)| ((*set).to_owned(), serde_json::json!(names))).collect();
        serde_json::from_value(object.into()).unwrap()
    }

    #[test]
    fn every_name_of_the_specification_has_the_kernels_number() {
        for capability in caps::all() {
            let name = serde_json::Value::String(capability.to_string());
            let parsed: Capability = serde_json::from_value(name).unwrap();
            assert_eq!(bit_of(parsed).bits(), 1 << capability.index(), "{capability}");
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_left_out_with_a_reason() {
        let wanted = sets(&[
            ("bounding", &["CAP_KILL", "CAP_SYS_RESOURCE", "CAP_BPF"]),
            ("permitted", &["CAP_KILL", "CAP_CHOWN"]),
            ("effective", &["CAP_KILL", "CAP_FOWNER"]),
            ("inheritable", &["CAP_KILL", "CAP_CHOWN"]),
            ("ambient", &["CAP_KILL", "CAP_CHOWN"]),
        ]);
        let known = CapabilitySet::from_bits_retain((1 << 39) - 1);
        let own = known & !CapabilitySet::SYS_RESOURCE;
        let (sets, left_out) = plan(Some(&wanted), known, own);
        assert_eq!(sets.bounding, CapabilitySet::KILL);
        assert_eq!(sets.permitted, CapabilitySet::KILL | CapabilitySet::CHOWN);
        for set in [sets.effective, sets.inheritable, sets.ambient] {
            assert_eq!(set, CapabilitySet::KILL);
        }
        let mut reasons: Vec<_> = left_out.iter().map(|left| format!("{} {}", left.set, left.capability)).collect();
        reasons.sort();
        assert_eq!(
            reasons,
            [
                "ambient CAP_CHOWN",
                "bounding CAP_BPF",
                "bounding CAP_SYS_RESOURCE",
                "effective CAP_FOWNER",
                "inheritable CAP_CHOWN"
            ]
        );
    }

    #[test]
    fn no_sets_mean_no_capabilities() {
        let (sets, left_out) = plan(None, CapabilitySet::all(), CapabilitySet::all());
        assert!(left_out.is_empty() && sets.bounding.is_empty() && sets.permitted.is_empty());
    }

    #[test]
    fn this_kernel_knows_at_least_what_we_have() {
        assert!(known().contains(own().unwrap()) && known().contains(CapabilitySet::KILL));
    }
}
