//! Device rules: which device nodes the processes of a container may open and make.
//!
//! Everything is denied at first. The rules of the specification follow in their order, then those that every container
//! needs; for each kind of access the last rule that matches decides. On version 1 that becomes two files, on version 2 a
//! program that the kernel runs at each access.

mod program;
mod v1;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::bpf;

/// Which sort of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sort {
    Block,
    Character,
}

/// Making a node (1), reading (2), writing (4): linux/bpf.h, `BPF_DEVCG_ACC_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(pub u32);

impl Access {
    pub(super) const MAKE: u32 = 1;
    pub(super) const READ: u32 = 2;
    pub(super) const WRITE: u32 = 4;
    pub(super) const ALL: Self = Self(7);

    fn parse(text: &str) -> Result<Self> {
        let mut bits = 0;
        for letter in text.chars() {
            bits |= match letter {
                'm' => Self::MAKE,
                'r' => Self::READ,
                'w' => Self::WRITE,
                _ => {
                    let cause = format!("access {} is none of r, w and m", quote(text));
                    return Err(Error::new(Kind::Invalid, "read linux.resources.devices", cause));
                }
            };
        }
        Ok(Self(bits))
    }

    /// As version 1 and systemd write it.
    pub(super) fn letters(self) -> String {
        let all = [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MAKE, 'm')];
        all.into_iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, letter)| letter).collect()
    }
}

/// One rule; what is `None` matches everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub verdict: Verdict,
    pub sort: Option<Sort>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Deny,
}

impl Rule {
    /// Whether it speaks of every device and every access, so that nothing before it matters.
    pub(super) fn is_total(&self) -> bool {
        self.sort.is_none() && self.major.is_none() && self.minor.is_none() && self.access == Access::ALL
    }

    fn allow(sort: Sort, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { verdict: Verdict::Allow, sort: Some(sort), major, minor, access }
    }
}

/// What every container may do, as with runc: make nodes (opening them is another matter), and use the harmless ones
/// and its terminals.
fn always() -> Vec<Rule> {
    let node = |major, minor| Rule::allow(Sort::Character, Some(major), Some(minor), Access::ALL);
    let mut rules: Vec<Rule> =
        [Sort::Character, Sort::Block].map(|sort| Rule::allow(sort, None, None, Access(Access::MAKE))).into();
    // null, zero, full, random, urandom, tty, console, ptmx.
    rules.extend(
        [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)].map(|(major, minor)| node(major, minor)),
    );
    // Every pseudo-terminal.
    rules.push(Rule::allow(Sort::Character, Some(136), None, Access::ALL));
    rules
}

/// The whole list for a container, the first rule being that everything is denied.
///
/// # Errors
/// [`Kind::Invalid`] for a rule that means nothing.
pub(super) fn parse(devices: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let first = Rule { verdict: Verdict::Deny, sort: None, major: None, minor: None, access: Access::ALL };
    let mut rules = vec![first];
    for device in devices {
        rules.push(parse_rule(device)?);
    }
    rules.extend(always());
    // Nothing before a rule about everything matters.
    let start = rules.iter().rposition(Rule::is_total).unwrap_or(0);
    rules.drain(..start);
    // A list that allows everything needs no exceptions that allow something.
    if rules[0].verdict == Verdict::Allow && rules.iter().all(|rule| rule.verdict == Verdict::Allow) {
        rules.truncate(1);
    }
    Ok(rules)
}

fn parse_rule(device: &LinuxDeviceCgroup) -> Result<Rule> {
    let sort = match device.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(Sort::Block),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(Sort::Character),
        LinuxDeviceType::P => {
            return Err(Error::new(Kind::Invalid, "read linux.resources.devices", "type 'p' is no device"));
        }
    };
    let number = |value: Option<i64>| match value {
        // Engines write -1 for all of them.
        None | Some(i64::MIN..=-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| {
            Error::new(Kind::Invalid, "read linux.resources.devices", format!("{value} is no device number"))
        }),
    };
    Ok(Rule {
        verdict: if device.allow() { Verdict::Allow } else { Verdict::Deny },
        sort,
        major: number(device.major())?,
        minor: number(device.minor())?,
        access: device.access().as_deref().filter(|text| !text.is_empty()).map_or(Ok(Access::ALL), Access::parse)?,
    })
}

/// Sets the rules of a container that has no process yet.
///
/// # Errors
/// [`Kind::Invalid`] for a rule that means nothing, [`Kind::Unsupported`] for one that version 1 cannot express; those
/// of the kernel, except where we are in a user namespace: there it grants no device anyway.
pub(super) fn restrict(cgroup: &Cgroup, devices: &[LinuxDeviceCgroup]) -> Result<()> {
    let rules = parse(devices)?;
    if let Some(directory) = cgroup.unified() {
        let Some(instructions) = program::generate(&rules) else { return Ok(()) };
        let operation = || format!("restrict the devices of cgroup {}", quote(directory));
        let directory_file = std::fs::File::open(directory).context(operation)?;
        return match bpf::attach_device_program(&instructions, &directory_file) {
            Err(_) if super::in_user_namespace() => Ok(()),
            other => other.context(operation),
        };
    }
    match cgroup.directory("devices") {
        Some(directory) if !super::in_user_namespace() => v1::write(directory, &rules),
        // Without the right to make cgroups, or without the controller, there is nobody to ask; runc goes on too.
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn rules(devices: Value) -> Vec<Rule> {
        let devices: Vec<LinuxDeviceCgroup> = serde_json::from_value(devices).unwrap();
        parse(&devices).unwrap()
    }

    /// What the list means, as plainly as it can be said.
    pub(crate) fn decide(rules: &[Rule], sort: Sort, major: u32, minor: u32, access: u32) -> bool {
        [1, 2, 4].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            let matches = |rule: &&Rule| {
                rule.sort.is_none_or(|one| one == sort)
                    && rule.major.is_none_or(|one| one == major)
                    && rule.minor.is_none_or(|one| one == minor)
                    && rule.access.0 & bit != 0
            };
            rules.iter().rfind(matches).is_some_and(|rule| rule.verdict == Verdict::Allow)
        })
    }

    #[test]
    fn a_container_without_rules_has_the_harmless_devices() {
        let rules = rules(json!([]));
        assert!(decide(&rules, Sort::Character, 1, 3, 6), "null");
        assert!(decide(&rules, Sort::Character, 136, 42, 6), "a terminal");
        assert!(decide(&rules, Sort::Block, 8, 0, Access::MAKE), "making a node");
        assert!(!decide(&rules, Sort::Block, 8, 0, Access::READ), "a disk");
        assert!(!decide(&rules, Sort::Block, 8, 0, Access::READ | Access::MAKE), "a disk");
    }

    #[test]
    fn a_privileged_container_has_every_device() {
        assert_eq!(rules(json!([{"allow": false}, {"allow": true, "access": "rwm"}])).len(), 1);
        let but_one =
            rules(json!([{"allow": true}, {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "w"}]));
        assert!(decide(&but_one, Sort::Block, 8, 0, Access::READ));
        assert!(!decide(&but_one, Sort::Block, 8, 0, Access::WRITE));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for device in [json!({"allow": true, "type": "p"}), json!({"allow": true, "access": "x"})] {
            let device: LinuxDeviceCgroup = serde_json::from_value(device).unwrap();
            assert_eq!(parse(&[device]).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
