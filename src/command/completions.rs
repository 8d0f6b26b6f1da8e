//! `completions`: what a shell needs to complete our words.

use std::io::Write;

use clap::CommandFactory;

use crate::cli::{self, Cli};
use crate::error::{Context, Result};

pub(super) fn run(arguments: cli::Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut for_people(), "regen", &mut script);
    match std::io::stdout().write_all(&script) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context(|| "print the completion script"),
    }
}

/// The program without the verbs that only it itself uses: the generator would offer them.
fn for_people() -> clap::Command {
    let all = Cli::command();
    let verbs = all.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    clap::Command::new("regen")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(all.get_arguments().cloned())
        .subcommands(verbs)
}
