//! `regen op …`, and what verbs take that make an operation.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration::parse_duration;
use super::ring::Output;
use crate::error::Error;
use crate::operation::{Kind, OperationId, State};

/// Look at what the daemon was asked to do, wait for it, or give it up
#[derive(Debug, Clone, Args)]
pub struct Op {
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with operations.
#[derive(Debug, Clone, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// List operations, newest first
    Ls(Ls),
    /// Print all that is known of an operation, with what came of each target
    Show(Show),
    /// Wait until an operation is over
    Wait(Wait),
    /// Give an operation up: what was not begun is not begun
    Cancel(Show),
    /// Print what operations do, as it happens
    Watch(Watch),
}

/// List operations, newest first
#[derive(Debug, Clone, Args)]
pub struct Ls {
    /// Only those in this state: queued, running, succeeded, failed, cancelled or unknown
    #[arg(long, value_name = "STATE", value_parser = parse::<State>)]
    pub state: Option<State>,
    /// Only those of this kind, such as service-restart
    #[arg(long, value_name = "KIND", value_parser = parse::<Kind>)]
    pub kind: Option<Kind>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u64,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

// `op show` and `op cancel`
#[expect(missing_docs, reason = "it would be the help of each verb that takes this")]
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// The operation
    #[arg(value_name = "ID", value_parser = parse::<OperationId>)]
    pub id: OperationId,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Wait until an operation is over
#[derive(Debug, Clone, Args)]
pub struct Wait {
    /// The operation
    #[arg(value_name = "ID", value_parser = parse::<OperationId>)]
    pub id: OperationId,
    /// Wait no longer than so long; the operation goes on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Print what operations do, as it happens
#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// The operation; without it all of them, until it is interrupted
    #[arg(value_name = "ID", value_parser = parse::<OperationId>)]
    pub id: Option<OperationId>,
    /// Print an object for each step
    #[arg(long)]
    pub json: bool,
}

/// How long a verb waits for the operation that it makes; of verbs whose `--wait` says more than that.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Patience {
    /// Print the operation's id at once in place of waiting for its end
    #[arg(long, conflicts_with_all = ["wait", "timeout"])]
    pub no_wait: bool,
    /// Wait no longer than so long, and end with status 1; the operation goes on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// How long a verb waits for the operation that it makes.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Waiting {
    /// Wait for the operation's end, as is done if nothing is said
    #[arg(long)]
    pub wait: bool,
    /// Or not.
    #[command(flatten)]
    pub patience: Patience,
}

/// On which nodes something is done.
#[derive(Debug, Clone, Default, Args)]
pub struct On {
    /// Where: node=NAME, label=KEY=VALUE or all (may be given again); asks the daemon
    #[arg(long, value_name = "NODES")]
    pub on: Vec<String>,
}

// … by verbs that need no daemon without it.
#[expect(missing_docs, reason = "it would be the help of each verb that takes this")]
#[derive(Debug, Clone, Default, Args)]
pub struct Elsewhere {
    /// Where: node=NAME, label=KEY=VALUE or all (may be given again); asks the daemon
    #[arg(long, value_name = "NODES")]
    pub on: Vec<String>,
    /// Wait for the operation's end, as is done if nothing is said
    #[arg(long, requires = "on")]
    pub wait: bool,
    /// Print the operation's id at once in place of waiting for its end
    #[arg(long, requires = "on", conflicts_with_all = ["wait", "timeout"])]
    pub no_wait: bool,
    /// Wait no longer than so long, and end with status 1; the operation goes on
    #[arg(long, requires = "on", value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

impl Elsewhere {
    /// How long to wait.
    #[must_use]
    pub fn patience(&self) -> Patience {
        Patience { no_wait: self.no_wait, timeout: self.timeout }
    }
}

fn parse<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: Error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(std::iter::once("regen").chain(line.split(' '))).map(|cli| cli.command)
    }

    #[test]
    fn operations_are_listed_by_state_and_kind_and_waited_for_by_id() {
        let Command::Op(Op { verb: Verb::Ls(ls) }) = parse("op ls --state unknown --kind ring-move").unwrap() else {
            panic!("not ls")
        };
        assert_eq!((ls.state, ls.kind), (Some(State::Unknown), Some(Kind::RingMove)));
        let line = format!("op wait {} --timeout 5s", "0a".repeat(16));
        let Command::Op(Op { verb: Verb::Wait(wait) }) = parse(&line).unwrap() else { panic!("not wait") };
        assert_eq!(wait.timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_says_nothing_is_refused_while_it_is_read() {
        for line in [
            "op",
            "op show",
            "op show 12",
            "op show ZZ0102030405060708090a0b0c0d0e0f",
            "op ls --state done",
            "op ls --kind restart",
            "op wait 000102030405060708090a0b0c0d0e0f --timeout 5",
            "service restart web --no-wait --timeout 5s",
            "service restart web --no-wait --wait",
            "service rm web --no-wait --wait",
            "ring pin a --no-wait",
            "ring rm a --on all --dry-run",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
