//! What a daemon that starts makes of a service: decided from what is written down and from what is there.
//!
//! ```text
//! pending, and the new instance serves      ──> committed, the old one goes
//! pending, and it does not                  ──> the new one goes, everything is as before, its ring the old one's
//! the instance serves                       ──> clients are sent to it
//! it has ended, or its keeper is gone       ──> as the service's policy says; without a keeper it serves until then
//! another boot                              ──> started anew, whatever the policy
//! on its way out                            ──> it goes on, or begins again
//! ```

use super::record::{ChangeKind, Record, Wanted};
use super::ring::GiveBack;
use crate::ids::ContainerId;
use crate::service::message::Phase;

/// How an instance that is written down is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Its keeper says so.
    Kept(Phase),
    /// It has no keeper.
    Gone,
}

/// Whether the machine was started anew since a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boot {
    /// No: what is written down may be there.
    Same,
    /// Yes: nothing is.
    Another,
}

/// How an instance is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It finishes what it has. Another one serves in its place.
    Succeeded,
    /// It finishes what it has. Nobody serves in its place.
    Withdrawn,
    /// It is told to end.
    Stop,
    /// It has ended, and its keeper may go.
    Release,
    /// Its keeper is gone: what is left of it is taken away.
    Clear,
    /// It is on its way.
    Wait,
}

/// What comes next for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Clients are sent to its instance.
    Serve,
    /// … once it was told that it serves.
    Steer,
    /// Its instance has ended, or was left alone: its policy decides.
    Policy,
    /// It gets an instance.
    Start,
    /// Nothing.
    Rest,
    /// It goes once its instances are gone.
    Remove,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    /// The record as it is from now on.
    pub record: Record,
    /// What is said to instances.
    pub farewells: Vec<(ContainerId, Farewell)>,
    /// What comes next.
    pub next: Next,
}

/// Decides.
pub(super) fn judge(mut record: Record, boot: Boot, found: impl Fn(&ContainerId) -> Found) -> Judgement {
    let found = |instance: &ContainerId| match boot {
        Boot::Same => found(instance),
        Boot::Another => Found::Gone,
    };
    settle_pending(&mut record, found);
    if record.wanted == Wanted::Removed {
        let current = record.instance.take();
        record.leaving.extend(current);
    }
    let next = next(&mut record, boot, found);
    let way = if record.wanted == Wanted::Removed { Farewell::Withdrawn } else { Farewell::Succeeded };
    let farewells = record.leaving.iter().map(|instance| (instance.clone(), farewell(found(instance), way))).collect();
    Judgement { record, farewells, next }
}

/// Takes the new state if it has come about, else the old one.
fn settle_pending(record: &mut Record, found: impl Fn(&ContainerId) -> Found) {
    let Some(pending) = record.pending.take() else { return };
    let adopted = pending.change.kind == ChangeKind::Adopt;
    let serves = match found(&pending.instance) {
        Found::Kept(Phase::Serving) => true,
        // A program that was there before us is not ended because we were.
        Found::Kept(Phase::Ready) => adopted,
        Found::Kept(Phase::Starting | Phase::Draining | Phase::Stopping | Phase::Ended) | Found::Gone => false,
    };
    if serves {
        let old = record.instance.replace(pending.instance);
        record.leaving.extend(old);
        record.definition = pending.to;
        if pending.change.kind != ChangeKind::Recover {
            record.done = Some(pending.change.id);
        }
        record.wanted = Wanted::Running;
        record.restarts += u64::from(pending.change.kind == ChangeKind::Recover);
    } else {
        // A change begins with what was left of the one before.
        record.giving_back = record.giving_back.take().or_else(|| GiveBack::of(&pending, record.instance.as_ref()));
        record.leaving.push(pending.instance);
    }
}

fn next(record: &mut Record, boot: Boot, found: impl Fn(&ContainerId) -> Found) -> Next {
    match (&record.wanted, &record.instance, boot) {
        (Wanted::Removed, _, _) => Next::Remove,
        (Wanted::Rest(_), _, Boot::Same) => Next::Rest,
        (Wanted::Running | Wanted::Rest(_), current, Boot::Another) => {
            record.leaving.extend(current.clone());
            record.instance = None;
            record.wanted = Wanted::Running;
            Next::Start
        }
        (Wanted::Running, None, Boot::Same) => Next::Start,
        (Wanted::Running, Some(current), Boot::Same) => match found(current) {
            Found::Kept(Phase::Serving) => Next::Serve,
            Found::Kept(Phase::Ready) => Next::Steer,
            Found::Kept(Phase::Ended) | Found::Gone => Next::Policy,
            // Its end will be heard of.
            Found::Kept(Phase::Starting | Phase::Draining | Phase::Stopping) => Next::Rest,
        },
    }
}

fn farewell(found: Found, way: Farewell) -> Farewell {
    match found {
        Found::Kept(Phase::Serving) => way,
        Found::Kept(Phase::Starting | Phase::Ready) => Farewell::Stop,
        Found::Kept(Phase::Draining | Phase::Stopping) => Farewell::Wait,
        Found::Kept(Phase::Ended) => Farewell::Release,
        Found::Gone => Farewell::Clear,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::record::tests::{instance, pending, record};
    use super::*;

    const PHASES: [Phase; 6] =
        [Phase::Starting, Phase::Ready, Phase::Serving, Phase::Draining, Phase::Stopping, Phase::Ended];

    fn outcome() -> Box<crate::service::message::Outcome> {
        serde_json::from_value(serde_json::json!({"exit_code": 0, "requested": false, "cut": 0,
            "ended": "2026-11-22T15:24:48Z", "last_words": []}))
        .unwrap()
    }

    fn same(record: Record, found: &[(u64, Found)]) -> Judgement {
        let found: HashMap<_, _> = found.iter().map(|(number, found)| (instance(*number), *found)).collect();
        judge(record, Boot::Same, |id| found.get(id).copied().unwrap_or(Found::Gone))
    }

    fn kept(phase: Phase) -> Found {
        Found::Kept(phase)
    }

    #[test]
    fn a_service_that_serves_goes_on() {
        let judgement = same(record(), &[(1, kept(Phase::Serving))]);
        assert_eq!((judgement.record, judgement.next, judgement.farewells), (record(), Next::Serve, vec![]));
    }

    #[test]
    fn a_change_whose_new_instance_serves_is_committed() {
        let mut half = record();
        let mut change = pending(ChangeKind::Upgrade, 2);
        change.to.version = "1.3.0".parse().unwrap();
        half.pending = Some(change);
        let judgement = same(half, &[(1, kept(Phase::Serving)), (2, kept(Phase::Serving))]);
        assert_eq!(judgement.next, Next::Serve);
        assert_eq!(judgement.farewells, [(instance(1), Farewell::Succeeded)]);
        assert_eq!(judgement.record.definition.version.to_string(), "1.3.0");
        assert_eq!(judgement.record.instance, Some(instance(2)));
        assert_eq!(judgement.record.pending, None);
    }

    #[test]
    fn a_change_whose_new_instance_does_not_serve_is_undone() {
        for (found, farewell) in [
            (kept(Phase::Starting), Farewell::Stop),
            (kept(Phase::Ready), Farewell::Stop),
            (kept(Phase::Ended), Farewell::Release),
            (Found::Gone, Farewell::Clear),
        ] {
            let mut half = record();
            half.pending = Some(pending(ChangeKind::Restart, 2));
            let judgement = same(half, &[(1, kept(Phase::Serving)), (2, found)]);
            assert_eq!((judgement.next, judgement.record.instance), (Next::Serve, Some(instance(1))), "{found:?}");
            assert_eq!(judgement.farewells, [(instance(2), farewell)]);
        }
    }

    #[test]
    fn a_service_whose_first_instance_does_not_serve_was_never_added() {
        let mut half = record();
        half.instance = None;
        half.wanted = Wanted::Removed;
        half.pending = Some(pending(ChangeKind::Add, 1));
        let judgement = same(half.clone(), &[(1, kept(Phase::Ready))]);
        assert_eq!((judgement.next, judgement.farewells), (Next::Remove, vec![(instance(1), Farewell::Stop)]));
        assert_eq!(same(half, &[(1, kept(Phase::Serving))]).next, Next::Serve);
    }

    #[test]
    fn a_program_that_was_being_adopted_is_not_ended() {
        let mut half = record();
        half.instance = None;
        half.wanted = Wanted::Removed;
        half.pending = Some(pending(ChangeKind::Adopt, 1));
        let judgement = same(half, &[(1, kept(Phase::Ready))]);
        assert_eq!((judgement.next, judgement.farewells), (Next::Steer, vec![]));
    }

    #[test]
    fn an_instance_that_ended_or_has_no_keeper_is_a_matter_of_policy() {
        assert_eq!(same(record(), &[(1, kept(Phase::Ended))]).next, Next::Policy);
        assert_eq!(same(record(), &[]).next, Next::Policy);
    }

    #[test]
    fn after_another_boot_everything_is_started_that_was_not_removed() {
        let judged = |record| judge(record, Boot::Another, |_| kept(Phase::Serving));
        let judgement = judged(record());
        assert_eq!((judgement.next, judgement.record.instance), (Next::Start, None));
        assert_eq!(judgement.farewells, [(instance(1), Farewell::Clear)]);
        let mut rested = record();
        rested.instance = None;
        rested.wanted = Wanted::Rest(outcome());
        assert_eq!(judged(rested.clone()).next, Next::Start);
        assert_eq!(same(rested, &[]).next, Next::Rest);
        let mut half = record();
        half.pending = Some(pending(ChangeKind::Upgrade, 2));
        assert_eq!(judged(half).record.definition, record().definition);
    }

    #[test]
    fn a_removal_goes_on() {
        let mut removed = record();
        removed.wanted = Wanted::Removed;
        let judgement = same(removed.clone(), &[(1, kept(Phase::Serving))]);
        assert_eq!((judgement.next, judgement.farewells), (Next::Remove, vec![(instance(1), Farewell::Withdrawn)]));
        let judgement = same(removed, &[(1, kept(Phase::Draining))]);
        assert_eq!(judgement.farewells, [(instance(1), Farewell::Wait)]);
    }

    fn found() -> impl Strategy<Value = Found> {
        prop_oneof![Just(Found::Gone), proptest::sample::select(&PHASES[..]).prop_map(Found::Kept)]
    }

    proptest! {
        /// What serves is never lost, and nothing is forgotten.
        #[test]
        fn every_instance_is_the_one_that_serves_or_is_told_to_go(
            current in proptest::option::of(Just(1)), change in proptest::option::of(0..5_usize), leaving in 0..3_u64,
            wanted in 0..3, another in any::<bool>(), states in proptest::collection::vec(found(), 6),
        ) {
            let mut half = record();
            half.instance = current.map(instance);
            let kinds = [ChangeKind::Add, ChangeKind::Adopt, ChangeKind::Restart, ChangeKind::Upgrade, ChangeKind::Recover];
            half.pending = change.map(|kind| pending(kinds[kind], 2));
            half.leaving = (3..3 + leaving).map(instance).collect();
            half.wanted = match wanted {
                0 => Wanted::Running,
                1 => Wanted::Rest(outcome()),
                _ => Wanted::Removed,
            };
            let boot = if another { Boot::Another } else { Boot::Same };
            let before: Vec<_> = half.instances().cloned().collect();
            let state = |id: &ContainerId| states[(1..6).position(|number| instance(number) == *id).unwrap()];
            let judgement = judge(half.clone(), boot, state);
            let mut after: Vec<_> = judgement.farewells.iter().map(|(id, _)| id.clone()).collect();
            after.extend(judgement.record.instance.clone());
            after.sort();
            let mut sorted = before;
            sorted.sort();
            prop_assert_eq!(after, sorted);
            prop_assert_eq!(&judgement.record.pending, &None);
            let undisturbed = boot == Boot::Same && half.wanted == Wanted::Running;
            if let Some(current) = &half.instance && undisturbed && state(current) == Found::Kept(Phase::Serving) {
                prop_assert_eq!(judgement.next, Next::Serve, "something serves before, so something serves after");
            }
        }
    }
}
