//! Rings that no run may start from here: one that is still on its way, and one that belongs to another node.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Locked;
use super::entry::timestamp;
use crate::error::{Error, Kind, Result};

/// Why no run may start from a ring here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Elsewhere {
    /// It is still being fetched for the first time: what is here is not all of it.
    Arriving {
        /// From where.
        from: String,
    },
    /// It was given to another node, which may have it by now.
    Away {
        /// To whom.
        to: String,
        /// Where it can be fetched.
        reference: String,
        /// When it was given away.
        since: DateTime<Utc>,
    },
}

impl Locked {
    /// Refuses what may only be done where the ring is at home. `verb` is that: `start from`.
    ///
    /// # Errors
    /// [`Kind::State`], naming where it is.
    pub fn check_here(&self, verb: &str) -> Result<()> {
        let name = self.ring().name();
        let refuse = |cause: String, next: String| {
            Err(Error::new(Kind::State, format!("{verb} ring '{name}'"), cause).next(next))
        };
        match &self.state.elsewhere {
            None => Ok(()),
            Some(Elsewhere::Arriving { from }) => {
                // What is no registry is a place on this machine.
                let verb = if from.starts_with("docker://") { "pull" } else { "import" };
                refuse(format!("it has not arrived from {from} yet"), format!("'regen ring {verb} {from} {name}'"))
            }
            Some(Elsewhere::Away { to, since, .. }) => {
                let cause = format!("it moved to node '{to}' at {}", timestamp(*since));
                refuse(cause, "run it there, or let it move back".to_owned())
            }
        }
    }
}
