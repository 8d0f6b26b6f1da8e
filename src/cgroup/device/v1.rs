//! Device rules of version 1: a default, and exceptions from it, in two files.
//!
//! The kernel keeps one list of exceptions. An exception from an exception ("all of major 8, but not 8:1") cannot be
//! said, and is refused here, because the kernel would ignore it without a word.

use std::fs;
use std::path::Path;

use super::{Access, Rule, Sort, Verdict};
use crate::error::{Context, Error, Kind, Result, quote};

/// The default, and what is excepted from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub default: Verdict,
    pub exceptions: Vec<Exception>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exception {
    pub sort: Sort,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

/// Writes the rules.
pub(super) fn write(directory: &Path, rules: &[Rule]) -> Result<()> {
    let table = plan(rules)?;
    let set = |file: &str, line: &str| {
        let path = directory.join(file);
        fs::write(&path, line).context(|| format!("write '{line}' to {}", quote(&path)))
    };
    let (default, other) = match table.default {
        Verdict::Deny => ("devices.deny", "devices.allow"),
        Verdict::Allow => ("devices.allow", "devices.deny"),
    };
    set(default, "a")?;
    table.exceptions.iter().try_for_each(|exception| set(other, &line(exception)))
}

fn line(exception: &Exception) -> String {
    let sort = match exception.sort {
        Sort::Block => 'b',
        Sort::Character => 'c',
    };
    let number = |value: Option<u32>| value.map_or_else(|| "*".to_owned(), |value| value.to_string());
    let (major, minor) = (number(exception.major), number(exception.minor));
    format!("{sort} {major}:{minor} {}", exception.access.letters())
}

/// Turns a list in which the last match decides into a table.
pub(super) fn plan(rules: &[Rule]) -> Result<Table> {
    let mut table = Table { default: Verdict::Deny, exceptions: Vec::new() };
    for rule in rules {
        if rule.is_total() {
            table = Table { default: rule.verdict, exceptions: Vec::new() };
            continue;
        }
        let sorts = rule.sort.map_or_else(|| vec![Sort::Block, Sort::Character], |sort| vec![sort]);
        for sort in sorts {
            let one = Exception { sort, major: rule.major, minor: rule.minor, access: rule.access };
            if rule.verdict == table.default { table.withdraw(&one)? } else { table.add(one) }
        }
    }
    Ok(table)
}

impl Table {
    fn add(&mut self, one: Exception) {
        let same = |other: &&mut Exception| other.names(&one);
        match self.exceptions.iter_mut().find(same) {
            Some(other) => other.access.0 |= one.access.0,
            None => self.exceptions.push(one),
        }
    }

    /// Takes accesses out of every exception that the rule covers.
    fn withdraw(&mut self, one: &Exception) -> Result<()> {
        for other in &mut self.exceptions {
            if one.covers(other) {
                other.access.0 &= !one.access.0;
            } else if other.meets(one) && other.access.0 & one.access.0 != 0 {
                let cause = format!("'{}' is part of the earlier rule '{}'", line(one), line(other));
                let error = Error::new(Kind::Unsupported, "set linux.resources.devices", cause);
                return Err(error.next("cgroup version 1 knows no exception from an exception"));
            }
        }
        self.exceptions.retain(|other| other.access.0 != 0);
        Ok(())
    }
}

impl Exception {
    fn names(&self, other: &Self) -> bool {
        (self.sort, self.major, self.minor) == (other.sort, other.major, other.minor)
    }

    /// Whether every device that `other` speaks of is one of ours.
    fn covers(&self, other: &Self) -> bool {
        let within = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
        self.sort == other.sort && within(self.major, other.major) && within(self.minor, other.minor)
    }

    /// Whether there is a device that both speak of.
    fn meets(&self, other: &Self) -> bool {
        let both = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.sort == other.sort && both(self.major, other.major) && both(self.minor, other.minor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::parse;
    use super::super::tests::{decide, rules};
    use super::*;

    fn lines(table: &Table) -> Vec<String> {
        table.exceptions.iter().map(line).collect()
    }

    #[test]
    fn the_usual_list_becomes_exceptions_from_a_denial() {
        let table =
            plan(&rules(json!([{"allow": false}, {"allow": true, "type": "c", "major": 10, "minor": 200}]))).unwrap();
        assert_eq!(table.default, Verdict::Deny);
        let lines = lines(&table);
        assert_eq!(lines[0], "c 10:200 rwm");
        assert!(lines.contains(&"c 1:3 rwm".to_owned()) && lines.contains(&"b *:* m".to_owned()), "{lines:?}");
    }

    #[test]
    fn an_exception_from_an_exception_is_refused() {
        let devices =
            json!([{"allow": true, "type": "b", "major": 8}, {"allow": false, "type": "b", "major": 8, "minor": 1}]);
        let devices: Vec<oci_spec::runtime::LinuxDeviceCgroup> = serde_json::from_value(devices).unwrap();
        let error = plan(&parse(&devices).unwrap()).unwrap_err();
        assert!(error.to_string().contains("'b 8:1 rwm' is part of the earlier rule 'b 8:* rwm'"), "{error}");
    }

    proptest! {
        #[test]
        fn a_table_decides_as_its_list_does(
            list in prop::collection::vec((any::<bool>(), 0_u8..3, 0_i64..3, 0_i64..3, 1_u32..8), 0..8),
            block in any::<bool>(), major in 0_u32..3, minor in 0_u32..3, access in 1_u32..8,
        ) {
            let rules: Vec<Rule> = list
                .into_iter()
                .map(|(allow, sort, major, minor, access)| Rule {
                    verdict: if allow { Verdict::Allow } else { Verdict::Deny },
                    sort: [None, Some(Sort::Block), Some(Sort::Character)][usize::from(sort)],
                    major: u32::try_from(major - 1).ok(),
                    minor: u32::try_from(minor - 1).ok(),
                    access: Access(access),
                })
                .collect();
            // A refusal decides nothing.
            let Ok(table) = plan(&rules) else { return Ok(()) };
            let sort = if block { Sort::Block } else { Sort::Character };
            let asked = Exception { sort, major: Some(major), minor: Some(minor), access: Access(access) };
            // devcgroup_check_permission: with denial as default one exception has to hold all that is asked for, else
            // none may hold any of it. Several that hold a part each are not added up.
            let decided = match table.default {
                Verdict::Deny => table.exceptions.iter().any(|one| one.covers(&asked) && one.access.0 & access == access),
                Verdict::Allow => !table.exceptions.iter().any(|one| one.covers(&asked) && one.access.0 & access != 0),
            };
            let single = access.is_power_of_two();
            let meant = decide(&rules, sort, major, minor, access);
            let right = if single { decided == meant } else { !decided || meant };
            prop_assert!(right);
        }
    }
}
