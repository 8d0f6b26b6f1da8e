//! One line of the doctor.

use serde::Serialize;

use crate::error::Error;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something will not work, or is not tidy; the rest works.
    Warn,
    /// Containers cannot be run, or states are in danger.
    Fail,
}

/// What was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `kernel`, `engine podman`, `ring root/alice`.
    pub subject: String,
    /// How bad it is.
    pub status: Status,
    /// What was found, in one line.
    pub text: String,
    /// The command that mends it; never there if nothing is wrong.
    pub mend: Option<String>,
}

impl Finding {
    /// Nothing is wrong.
    pub(super) fn ok(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), status: Status::Ok, text: text.into(), mend: None }
    }

    /// Something does not work, or is not tidy.
    pub(super) fn warn(subject: impl Into<String>, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { subject: subject.into(), status: Status::Warn, text: text.into(), mend: Some(mend.into()) }
    }

    /// Something is broken.
    pub(super) fn fail(subject: impl Into<String>, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { subject: subject.into(), status: Status::Fail, text: text.into(), mend: Some(mend.into()) }
    }

    /// It could not be looked at, which as a rule is a matter of privileges.
    pub(super) fn unseen(subject: impl Into<String>, error: &Error) -> Self {
        Self::warn(subject, error.without_next_step(), "sudo regen doctor")
    }
}
