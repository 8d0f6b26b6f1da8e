//! What an operation does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What an operation does. New kinds have to say which classes they take ([`super::class`]), and whether they may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A new service.
    ServiceAdd,
    /// … whose first instance runs already.
    ServiceAdopt,
    /// A new instance in the place of the old one.
    ServiceRestart,
    /// … of another version.
    ServiceUpgrade,
    /// The end of a service.
    ServiceRemove,
    /// A new template.
    TemplateCreate,
    /// The end of one.
    TemplateRemove,
    /// A container from a template.
    Clone,
    /// Where the next run of a ring starts.
    RingRollback,
    /// An entry of the container that runs.
    RingSnapshot,
    /// An entry that eviction passes over.
    RingPin,
    /// … no longer.
    RingUnpin,
    /// The limits of a ring.
    RingSet,
    /// The end of a ring.
    RingRemove,
    /// What is sealed is packed.
    RingPack,
    /// A ring goes to another node.
    RingMove,
    /// A node gets no new work.
    NodeDrain,
    /// Nothing but some waiting, to measure all the rest.
    Probe,
}

/// What sort of thing a kind is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubjectKind {
    /// `service/NAME@VERSION`, or `service/NAME` for all versions.
    Service,
    /// `template/NAME`
    Template,
    /// `container/ID`
    Container,
    /// `ring/OWNER/NAME`
    Ring,
    /// `node`
    Node,
    /// `probe/N`
    Probe,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::ServiceAdd,
        Self::ServiceAdopt,
        Self::ServiceRestart,
        Self::ServiceUpgrade,
        Self::ServiceRemove,
        Self::TemplateCreate,
        Self::TemplateRemove,
        Self::Clone,
        Self::RingRollback,
        Self::RingSnapshot,
        Self::RingPin,
        Self::RingUnpin,
        Self::RingSet,
        Self::RingRemove,
        Self::RingPack,
        Self::RingMove,
        Self::NodeDrain,
        Self::Probe,
    ];

    /// As it is typed and written down.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::ServiceAdd => "service-add",
            Self::ServiceAdopt => "service-adopt",
            Self::ServiceRestart => "service-restart",
            Self::ServiceUpgrade => "service-upgrade",
            Self::ServiceRemove => "service-remove",
            Self::TemplateCreate => "template-create",
            Self::TemplateRemove => "template-remove",
            Self::Clone => "clone",
            Self::RingRollback => "ring-rollback",
            Self::RingSnapshot => "ring-snapshot",
            Self::RingPin => "ring-pin",
            Self::RingUnpin => "ring-unpin",
            Self::RingSet => "ring-set",
            Self::RingRemove => "ring-remove",
            Self::RingPack => "ring-pack",
            Self::RingMove => "ring-move",
            Self::NodeDrain => "node-drain",
            Self::Probe => "probe",
        }
    }

    /// What it is about.
    #[must_use]
    pub fn subject(self) -> SubjectKind {
        match self {
            Self::ServiceAdd
            | Self::ServiceAdopt
            | Self::ServiceRestart
            | Self::ServiceUpgrade
            | Self::ServiceRemove => SubjectKind::Service,
            Self::TemplateCreate | Self::TemplateRemove => SubjectKind::Template,
            Self::Clone => SubjectKind::Container,
            Self::RingRollback
            | Self::RingSnapshot
            | Self::RingPin
            | Self::RingUnpin
            | Self::RingSet
            | Self::RingRemove
            | Self::RingPack
            | Self::RingMove => SubjectKind::Ring,
            Self::NodeDrain => SubjectKind::Node,
            Self::Probe => SubjectKind::Probe,
        }
    }

    /// Whether something is there afterwards that was not there before: what is not to be on a node that is drained.
    #[must_use]
    pub fn places(self) -> bool {
        match self {
            Self::ServiceAdd | Self::ServiceAdopt | Self::TemplateCreate | Self::Clone => true,
            Self::ServiceRestart
            | Self::ServiceUpgrade
            | Self::ServiceRemove
            | Self::TemplateRemove
            | Self::RingRollback
            | Self::RingSnapshot
            | Self::RingPin
            | Self::RingUnpin
            | Self::RingSet
            | Self::RingRemove
            | Self::RingPack
            | Self::RingMove
            | Self::NodeDrain
            | Self::Probe => false,
        }
    }

    /// Whether doing it twice is as good as doing it once, so that it may be tried again where it may have happened.
    #[must_use]
    pub fn repeatable(self) -> bool {
        match self {
            Self::RingPin | Self::RingUnpin | Self::RingSet | Self::RingPack | Self::NodeDrain | Self::Probe => true,
            // A selector like @-1, a second instance, a second entry: not what was asked for.
            Self::ServiceAdd
            | Self::ServiceAdopt
            | Self::ServiceRestart
            | Self::ServiceUpgrade
            | Self::ServiceRemove
            | Self::TemplateCreate
            | Self::TemplateRemove
            | Self::Clone
            | Self::RingRollback
            | Self::RingSnapshot
            | Self::RingRemove
            | Self::RingMove => false,
        }
    }
}

impl SubjectKind {
    /// What subjects of this sort look like.
    #[must_use]
    pub fn spelling(self) -> &'static str {
        match self {
            Self::Service => "service/NAME@VERSION or service/NAME",
            Self::Template => "template/NAME",
            Self::Container => "container/ID",
            Self::Ring => "ring/OWNER/NAME",
            Self::Node => "node",
            Self::Probe => "probe/NUMBER",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            let operation = format!("read the kind of operation '{}'", shown.escape_debug());
            let all = Self::ALL.map(Self::word).join(", ");
            Error::new(crate::error::Kind::Invalid, operation, "there is no such kind").next(format!("one of: {all}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_one_word_each_for_people_and_for_json() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
            assert_eq!(kind.word().parse::<Kind>().unwrap(), kind);
        }
        assert!("service".parse::<Kind>().is_err());
    }
}
