//! What may be asked of a keeper in which phase of its instance's life. Pure.

use crate::service::message::{Command, Phase};

/// What to do about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// Do it.
    Do,
    /// It is so already, or on its way.
    Already,
    /// It cannot be done: why.
    Refuse(&'static str),
}

/// Decides by the phase alone.
pub(super) fn permit(phase: Phase, command: &Command) -> Permission {
    use Permission::{Already, Do, Refuse};
    match (command, phase) {
        (Command::Status | Command::Watch | Command::Sockets | Command::Targets, _) => Do,
        // Somebody else may have had the connections meanwhile, and gives them back.
        (Command::Serve, Phase::Ready | Phase::Serving) => Do,
        (Command::Serve, Phase::Starting) => Refuse("it is not ready"),
        (Command::Serve, Phase::Draining | Phase::Stopping) => Refuse("it is about to end"),
        (Command::Serve, Phase::Ended) => Refuse("it has ended"),
        // A second drain has the last word about time and succession.
        (Command::Drain { .. }, Phase::Starting | Phase::Ready | Phase::Serving | Phase::Draining) => Do,
        (Command::Drain { .. }, Phase::Stopping | Phase::Ended) => Already,
        (Command::Stop, Phase::Starting | Phase::Ready | Phase::Serving | Phase::Draining) => Do,
        (Command::Stop, Phase::Stopping | Phase::Ended) => Already,
        (Command::Release, Phase::Ended) => Do,
        (Command::Release, Phase::Starting | Phase::Ready | Phase::Serving | Phase::Draining | Phase::Stopping) => {
            Refuse("it has not ended")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PHASES: [Phase; 6] =
        [Phase::Starting, Phase::Ready, Phase::Serving, Phase::Draining, Phase::Stopping, Phase::Ended];

    fn permitted(command: &Command) -> Vec<Phase> {
        PHASES.into_iter().filter(|phase| permit(*phase, command) == Permission::Do).collect()
    }

    #[test]
    fn only_what_is_ready_serves_and_only_what_has_ended_is_let_go() {
        assert_eq!(permitted(&Command::Serve), [Phase::Ready, Phase::Serving]);
        assert_eq!(permitted(&Command::Release), [Phase::Ended]);
    }

    #[test]
    fn an_end_that_has_begun_is_not_begun_again() {
        let drain = Command::Drain { timeout: Duration::ZERO, grace: Duration::ZERO, succeeded: true };
        assert_eq!(permitted(&Command::Stop), PHASES[..4]);
        assert_eq!(permitted(&drain), PHASES[..4]);
    }

    #[test]
    fn questions_are_answered_at_any_time() {
        for command in [Command::Status, Command::Watch, Command::Sockets, Command::Targets] {
            assert_eq!(permitted(&command), PHASES);
        }
    }
}
