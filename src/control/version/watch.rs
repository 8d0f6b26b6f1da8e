//! Answers to those who want to hear of every change: those of this node as they happen, those of others as the registry tells
//! them.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use semver::Version;

use super::{Change, Member, News, Question, What};
use crate::control::{Answer, Call, Fault};
use crate::error::Error;
use crate::ids::{Name, NodeName};
use crate::ops::cluster::{Cluster, Directory};
use crate::service::roster::{self, Heard, Roster};
use crate::sys::bell::Bell;

/// Until the caller or the daemon goes.
pub(super) fn watch((roster, cluster): (&Arc<Roster>, Option<&Cluster>), call: &Call<'_>) -> Result<Answer, Fault> {
    call.expect_more()?;
    let question: Question = call.parameters()?;
    let mut here = roster.subscribe()?;
    let mut elsewhere = cluster.map(|cluster| Elsewhere::new(cluster.directory())).transpose()?;
    loop {
        let others = elsewhere.as_mut().map(|elsewhere| elsewhere.hear(&question)).unwrap_or_default();
        let all = elsewhere.as_ref().map(|elsewhere| elsewhere.told.values()).into_iter().flatten();
        if let Some(news) = tell(&question, here.hear(), (others, all)) {
            call.send(&news)?;
        }
        match &elsewhere {
            Some(elsewhere) => call.wait_any(&[here.as_fd(), elsewhere.bell.as_fd()])?,
            None => call.wait_any(&[here.as_fd()])?,
        }
    }
}

/// What was told of other nodes.
struct Elsewhere<'a> {
    directory: &'a Directory,
    bell: Arc<Bell>,
    told: BTreeMap<(Name, Version, NodeName), Member>,
}

impl<'a> Elsewhere<'a> {
    fn new(directory: &'a Directory) -> Result<Self, Error> {
        Ok(Self { directory, bell: directory.bell()?, told: BTreeMap::new() })
    }

    /// What is different from what was told. Who comes is told before who goes: there is always one to take.
    fn hear(&mut self, question: &Question) -> Vec<Change> {
        self.bell.silence();
        let known = self.directory.snapshot();
        let member = |node: &NodeName, offer: &roster::Member| {
            shown(question, offer).map(|member| Member { node: Some(node.clone()), ..member })
        };
        let placed = known.members().filter_map(|placed| member(&placed.node, &placed.offer).map(|m| (placed, m)));
        let key = |node: &NodeName, member: &Member| (member.name.clone(), member.version.clone(), node.clone());
        let now: BTreeMap<_, _> = placed.map(|(placed, member)| (key(&placed.node, &member), member)).collect();
        let new = now.iter().filter(|(key, member)| self.told.get(*key) != Some(*member));
        let added = new.map(|(_, member)| Change { change: What::Added, member: member.clone() });
        let gone = self.told.iter().filter(|(key, _)| !now.contains_key(*key));
        let withdrawn = gone.map(|(_, member)| Change { change: What::Withdrawn, member: member.clone() });
        let changes = added.chain(withdrawn).collect();
        self.told = now;
        changes
    }
}

/// What a watcher is told; `None` if nothing of it concerns them. Of other nodes: what has changed, and everybody.
fn tell<'a>(
    question: &Question,
    heard: Heard,
    (others, all): (Vec<Change>, impl Iterator<Item = &'a Member>),
) -> Option<News> {
    match heard {
        Heard::State(state) => {
            let members = state.members().filter_map(|member| shown(question, member));
            Some(News { number: state.number(), state: Some(members.chain(all.cloned()).collect()), changes: None })
        }
        Heard::Changes(changes, number) => {
            let changes = changes.iter().filter_map(|change| shown_change(question, change));
            let changes: Vec<_> = changes.chain(others).collect();
            (!changes.is_empty()).then_some(News { number, state: None, changes: Some(changes) })
        }
    }
}

fn shown_change(question: &Question, change: &roster::Change) -> Option<Change> {
    let (what, member) = match change {
        roster::Change::Added(member) => (What::Added, member),
        roster::Change::Withdrawn(member) => (What::Withdrawn, member),
    };
    shown(question, member).map(|member| Change { change: what, member })
}

fn shown(question: &Question, member: &roster::Member) -> Option<Member> {
    let named = |name: &Name| *name == member.name;
    let concerned = question.name.as_ref().is_none_or(named)
        && question.requirement.as_ref().is_none_or(|requirement| requirement.is_satisfied_by(&member.version));
    let listen = member.find(question.listen.as_ref()).ok()?;
    concerned.then(|| Member::of(member, listen))
}
