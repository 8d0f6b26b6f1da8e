//! Which kinds of operation conflict: those that share a class of one resource. The table is closed, and reading is not in it.
//!
//! | resource | classes | taken by |
//! |---|---|---|
//! | service, template, container, probe | change | every kind |
//! | ring | content | rollback, snapshot, remove, move |
//! | | limits | set, remove, move |
//! | | pins | pin, unpin, remove, move |
//! | | packs | pack, remove, move |
//! | | existence | remove, move (on both nodes) |
//! | node | placement | drain |

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Kind;

/// A part of a resource that one operation has at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Which instance, generation or container there is.
    Change,
    /// The entries of a ring, and where it starts.
    Content,
    /// How much of it is kept.
    Limits,
    /// What eviction passes over.
    Pins,
    /// In which form its layers are.
    Packs,
    /// That it is there.
    Existence,
    /// Whether a node gets work.
    Placement,
}

const ALL_OF_A_RING: &[Class] = &[Class::Content, Class::Limits, Class::Pins, Class::Packs, Class::Existence];

/// What a kind takes of each of its resources. Never nothing.
#[must_use]
pub fn class(kind: Kind) -> &'static [Class] {
    match kind {
        Kind::ServiceAdd
        | Kind::ServiceAdopt
        | Kind::ServiceRestart
        | Kind::ServiceUpgrade
        | Kind::ServiceRemove
        | Kind::TemplateCreate
        | Kind::TemplateRemove
        | Kind::Clone
        | Kind::Probe => &[Class::Change],
        Kind::RingRollback | Kind::RingSnapshot => &[Class::Content],
        Kind::RingPin | Kind::RingUnpin => &[Class::Pins],
        Kind::RingSet => &[Class::Limits],
        Kind::RingPack => &[Class::Packs],
        Kind::RingRemove | Kind::RingMove => ALL_OF_A_RING,
        Kind::NodeDrain => &[Class::Placement],
    }
}

/// Whether two kinds on one resource contradict each other.
#[must_use]
pub fn conflict(one: Kind, other: Kind) -> bool {
    class(one).iter().any(|class_of_one| class(other).contains(class_of_one))
}

impl Class {
    /// As keys of the registry have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Content => "content",
            Self::Limits => "limits",
            Self::Pins => "pins",
            Self::Packs => "packs",
            Self::Existence => "existence",
            Self::Placement => "placement",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SubjectKind;
    use super::*;

    fn pairs() -> impl Iterator<Item = (Kind, Kind)> {
        Kind::ALL.into_iter().flat_map(|one| Kind::ALL.into_iter().map(move |other| (one, other)))
    }

    #[test]
    fn conflicts_are_mutual_and_every_kind_conflicts_with_itself() {
        for (one, other) in pairs() {
            assert_eq!(conflict(one, other), conflict(other, one), "{one} and {other}");
            assert!(conflict(one, one), "two of {one} at once");
        }
    }

    #[test]
    fn what_removes_a_thing_conflicts_with_all_that_is_done_to_it() {
        let removes = [Kind::ServiceRemove, Kind::TemplateRemove, Kind::RingRemove, Kind::RingMove];
        for (one, other) in pairs().filter(|(one, other)| removes.contains(one) && one.subject() == other.subject()) {
            assert!(conflict(one, other), "{one} and {other}");
        }
    }

    #[test]
    fn kinds_that_are_about_different_things_may_share_a_class_but_no_resource() {
        for (one, other) in pairs().filter(|(one, other)| one.subject() != other.subject()) {
            let spelled = (one.subject().spelling(), other.subject().spelling());
            assert_ne!(spelled.0, spelled.1);
        }
    }

    #[test]
    fn restart_and_upgrade_of_a_service_conflict_and_a_pin_goes_beside_a_rollback() {
        assert!(conflict(Kind::ServiceRestart, Kind::ServiceUpgrade));
        assert!(conflict(Kind::RingSnapshot, Kind::RingRollback));
        assert!(!conflict(Kind::RingPin, Kind::RingRollback));
        assert!(!conflict(Kind::RingSet, Kind::RingPack));
    }

    #[test]
    fn classes_and_their_words_are_one_to_one() {
        let mut words = Vec::new();
        for kind in Kind::ALL {
            let classes = class(kind);
            assert!(!classes.is_empty() && (classes.len() == 1 || kind.subject() == SubjectKind::Ring), "{kind}");
            words.extend(classes.iter().map(|class| (class.word(), serde_json::to_value(class).unwrap())));
        }
        assert!(words.iter().all(|(word, json)| json == word));
    }
}
