//! A client's copy of who serves, kept by what Watch tells.

use std::collections::{BTreeMap, BTreeSet};

use semver::Version;

use super::{Change, Member, News, What};
use crate::ids::Name;
use crate::service::choice::{Wanted, newest};

/// Who serves, as far as one has heard.
#[derive(Debug, Clone, Default)]
pub struct Copy {
    members: BTreeMap<Name, BTreeMap<Version, Member>>,
}

impl Copy {
    /// Takes in one answer of Watch, and says what it changes here: of a state, which may come at any time, what is
    /// different from what was known.
    pub fn hear(&mut self, news: News) -> Vec<Change> {
        let changes = match news.state {
            Some(state) => self.differences(state),
            None => news.changes.unwrap_or_default(),
        };
        for Change { change, member } in &changes {
            let versions = self.members.entry(member.name.clone()).or_default();
            match change {
                What::Added => versions.insert(member.version.clone(), member.clone()),
                What::Withdrawn => versions.remove(&member.version),
            };
        }
        changes
    }

    /// The newest that satisfy, oldest build first; a client takes them in turn.
    #[must_use]
    pub fn find(&self, wanted: &Wanted) -> Vec<&Member> {
        let sorted: Vec<&Member> = self.members.get(&wanted.name).into_iter().flat_map(BTreeMap::values).collect();
        newest(&sorted, |member| &member.version, &wanted.requirement).to_vec()
    }

    fn differences(&self, state: Vec<Member>) -> Vec<Change> {
        let there: BTreeSet<_> = state.iter().map(|member| (&member.name, &member.version)).collect();
        let known = self.members.values().flat_map(BTreeMap::values);
        let gone = known.filter(|old| !there.contains(&(&old.name, &old.version))).cloned();
        let gone: Vec<Change> = gone.map(|member| Change { change: What::Withdrawn, member }).collect();
        let is_known = |new: &Member| self.members.get(&new.name).and_then(|all| all.get(&new.version)) == Some(new);
        let new = state.into_iter().filter(|new| !is_known(new)).map(|member| Change { change: What::Added, member });
        // Who comes is told before who goes: there is always one to take.
        new.chain(gone).collect()
    }
}
