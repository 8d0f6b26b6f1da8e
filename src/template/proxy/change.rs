//! From the rights that we have to those of a container, as a list of system calls (pure): for the template itself and
//! for its copies alike.
//!
//! The order is that of a process that does it by itself (`program`): what needs a right comes before its loss.

use rustix::thread::CapabilitySet;

use crate::program::{Confinement, Gain, Persona};
use crate::sys::trace::Call;

/// What a process of this persona calls to become it, but for its filters. Its limits are set from outside.
pub(super) fn plan_change(persona: &Persona, keep: CapabilitySet, scratch: u64) -> Vec<Call> {
    let rights = &persona.rights;
    let mut calls: Vec<Call> = numbers(rights.dropped).map(Call::drop_bounding).collect();
    calls.extend([
        Call::set_umask(persona.umask),
        Call::keep_capabilities(true),
        Call::set_groups(&persona.groups, scratch),
        Call::set_group(persona.gid),
        Call::set_user(persona.uid),
        Call::keep_capabilities(false),
        Call::set_capabilities(rights.effective | keep, rights.permitted | keep, rights.inheritable, scratch),
        Call::clear_ambient(),
    ]);
    calls.extend(numbers(rights.ambient).map(Call::raise_ambient));
    match persona.gain {
        Gain::Forbidden => calls.push(Call::forbid_new_privileges()),
        Gain::Allowed => {}
    }
    calls.push(Call::be_dumpable());
    calls
}

/// What it calls to be confined: the filters in this order, and then the rights go that were kept for that.
pub(super) fn plan_confinement(
    persona: &Persona,
    filters: &[&Confinement],
    keep: CapabilitySet,
    scratch: u64,
) -> Vec<Call> {
    let mut calls: Vec<Call> =
        filters.iter().map(|filter| Call::load_filter(&filter.program, filter.flags, scratch)).collect();
    let rights = &persona.rights;
    if !rights.permitted.contains(keep) {
        calls.push(Call::set_capabilities(rights.effective, rights.permitted, rights.inheritable, scratch));
        // A change of capabilities hides the process again.
        calls.push(Call::be_dumpable());
    }
    calls
}

/// The right that loading a filter takes, where nothing else allows it.
pub(super) fn kept(persona: &Persona, filters: usize) -> CapabilitySet {
    match (filters, persona.gain) {
        (0, _) | (_, Gain::Forbidden) => CapabilitySet::empty(),
        (_, Gain::Allowed) => CapabilitySet::SYS_ADMIN,
    }
}

/// What /proc/PID/status says of a process of this persona, with what it keeps for its confinement.
pub(super) fn expected_status(persona: &Persona, keep: CapabilitySet) -> Vec<(&'static str, String)> {
    let rights = &persona.rights;
    let set = |set: CapabilitySet| format!("{:016x}", set.bits());
    let four = |id: u32| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join("\t");
    let mut groups = persona.groups.clone();
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let mut expected = vec![
        ("Umask", format!("{:04o}", persona.umask)),
        ("Uid", four(persona.uid)),
        ("Gid", four(persona.gid)),
        ("Groups", groups.join(" ")),
        ("CapInh", set(rights.inheritable)),
        ("CapPrm", set(rights.permitted | keep)),
        ("CapEff", set(rights.effective | keep)),
        ("CapAmb", set(rights.ambient)),
    ];
    if persona.gain == Gain::Forbidden {
        expected.push(("NoNewPrivs", "1".to_owned()));
    }
    expected
}

/// The first field that says something else.
pub(super) fn find_difference(
    status: &str,
    expected: &[(&'static str, String)],
    allowed: CapabilitySet,
) -> Option<String> {
    let field = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.map(str::trim).unwrap_or_default()
    };
    for (name, value) in expected {
        if field(name) != value {
            return Some(format!("{name} is {:?} and not {value:?}", field(name)));
        }
    }
    let bounding = u64::from_str_radix(field("CapBnd"), 16).unwrap_or(u64::MAX);
    let beyond = bounding & !allowed.bits();
    (beyond != 0).then(|| format!("CapBnd is {bounding:x}, which is more than {:x}", allowed.bits()))
}

/// The kernel's numbers of capabilities.
fn numbers(set: CapabilitySet) -> impl Iterator<Item = u32> {
    (0..64).filter(move |number| set.bits() & (1 << number) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Rights;

    fn persona(gain: Gain) -> Persona {
        let (kill, chown) = (CapabilitySet::KILL, CapabilitySet::CHOWN);
        let rights = Rights {
            dropped: chown,
            bounding: kill,
            permitted: kill,
            effective: kill,
            inheritable: kill,
            ambient: kill,
        };
        let (limits, oom_score_adj, filter) = (Vec::new(), None, None);
        Persona { uid: 7, gid: 8, groups: vec![10, 9], umask: 0o27, rights, gain, limits, oom_score_adj, filter }
    }

    #[test]
    fn what_needs_a_right_comes_before_its_loss() {
        let none = CapabilitySet::empty();
        let calls = plan_change(&persona(Gain::Forbidden), none, 0x1000);
        let at = |wanted: &Call| calls.iter().position(|call| call == wanted).unwrap();
        let capset = Call::set_capabilities(CapabilitySet::KILL, CapabilitySet::KILL, CapabilitySet::KILL, 0x1000);
        let order = [
            at(&Call::drop_bounding(0)),
            at(&Call::set_groups(&[10, 9], 0x1000)),
            at(&Call::set_group(8)),
            at(&Call::set_user(7)),
            at(&capset),
            at(&Call::raise_ambient(5)),
            at(&Call::forbid_new_privileges()),
            at(&Call::be_dumpable()),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert!(!plan_change(&persona(Gain::Allowed), none, 0).contains(&Call::forbid_new_privileges()));
    }

    #[test]
    fn what_a_filter_takes_is_kept_until_it_is_loaded() {
        let filter = Confinement { program: Vec::new(), flags: 0 };
        assert_eq!(kept(&persona(Gain::Forbidden), 1), CapabilitySet::empty());
        assert_eq!(kept(&persona(Gain::Allowed), 0), CapabilitySet::empty());
        let (persona, keep) = (persona(Gain::Allowed), kept(&persona(Gain::Allowed), 1));
        assert_eq!(keep, CapabilitySet::SYS_ADMIN);
        let calls = plan_confinement(&persona, &[&filter], keep, 0);
        assert_eq!(calls.len(), 3);
        assert_eq!(calls[0], Call::load_filter(&[], 0, 0));
        assert_eq!(plan_confinement(&persona, &[], CapabilitySet::empty(), 0), []);
    }

    #[test]
    fn every_field_that_is_not_as_ordered_is_found() {
        let persona = persona(Gain::Forbidden);
        let expected = expected_status(&persona, CapabilitySet::empty());
        let status = "Umask:\t0027\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t9 10 \nCapInh:\t0000000000000020\n\
            CapPrm:\t0000000000000020\nCapEff:\t0000000000000020\nCapBnd:\t0000000000000020\n\
            CapAmb:\t0000000000000020\nNoNewPrivs:\t1\n";
        let difference = |status: &str| find_difference(status, &expected, persona.rights.bounding);
        assert_eq!(difference(status), None);
        for (from, to) in [
            ("0027", "0022"),
            ("7\t7\t7\t7", "7\t0\t7\t7"),
            ("8\t8\t8\t8", "8\t8\t8\t0"),
            ("9 10", "9 10 27"),
            ("CapInh:\t0000000000000020", "CapInh:\t0000000000000021"),
            ("CapPrm:\t0000000000000020", "CapPrm:\t0000000000000021"),
            ("CapEff:\t0000000000000020", "CapEff:\t0000000000000021"),
            ("CapBnd:\t0000000000000020", "CapBnd:\t0000000000000021"),
            ("CapAmb:\t0000000000000020", "CapAmb:\t0000000000000000"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("NoNewPrivs", "Other"),
        ] {
            assert!(difference(&status.replacen(from, to, 1)).is_some(), "{from}");
        }
    }
}
