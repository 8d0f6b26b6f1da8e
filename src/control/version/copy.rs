//! A client's copy of who serves, kept by what Watch tells.

use std::collections::{BTreeMap, BTreeSet};

use semver::Version;

use super::{Change, Member, News, What};
use crate::ids::{Name, NodeName};
use crate::service::choice::{Wanted, newest};

/// Which version, and on which node, if that is another one.
type Key = (Version, Option<NodeName>);

fn key(member: &Member) -> Key {
    (member.version.clone(), member.node.clone())
}

/// Who serves, as far as one has heard.
#[derive(Debug, Clone, Default)]
pub struct Copy {
    /// Of one version those of the daemon's own node first, then others by their nodes.
    members: BTreeMap<Name, BTreeMap<Key, Member>>,
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
                What::Added => versions.insert(key(member), member.clone()),
                What::Withdrawn => versions.remove(&key(member)),
            };
        }
        changes
    }

    /// The newest that satisfy, oldest build first, on the daemon's own node or else on others; a client takes them in turn.
    #[must_use]
    pub fn find(&self, wanted: &Wanted) -> Vec<&Member> {
        let all = || self.members.get(&wanted.name).into_iter().flat_map(BTreeMap::values);
        let (own, others): (Vec<&Member>, Vec<&Member>) = all().partition(|member| member.node.is_none());
        let choose = |sorted: &[_]| newest(sorted, |member: &&Member| &member.version, &wanted.requirement).to_vec();
        Some(choose(&own)).filter(|found| !found.is_empty()).unwrap_or_else(|| choose(&others))
    }

    fn differences(&self, state: Vec<Member>) -> Vec<Change> {
        let there: BTreeSet<_> = state.iter().map(|member| (&member.name, key(member))).collect();
        let known = self.members.values().flat_map(BTreeMap::values);
        let gone = known.filter(|old| !there.contains(&(&old.name, key(old)))).cloned();
        let gone: Vec<Change> = gone.map(|member| Change { change: What::Withdrawn, member }).collect();
        let is_known = |new: &Member| self.members.get(&new.name).and_then(|all| all.get(&key(new))) == Some(new);
        let new = state.into_iter().filter(|new| !is_known(new)).map(|member| Change { change: What::Added, member });
        // Who comes is told before who goes: there is always one to take.
        new.chain(gone).collect()
    }
}
