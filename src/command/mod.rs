//! The verbs: one file each opens the world, calls the room that does the work, and prints.
//!
//! What goes to standard output is the verb's answer. An error is one line on standard error and, with `--log`, one
//! entry in that file; the exit status is in [`crate::error::Error::exit_code`].

mod answer;
mod argument;
mod call;
mod checkpoint;
mod clone;
mod completions;
mod create;
mod delete;
mod doctor;
mod events;
mod exec;
mod features;
mod handover;
mod install;
mod invoke;
mod keeper;
mod kill;
mod list;
mod log;
mod man;
mod node;
mod op;
mod pause;
mod progress;
mod ps;
mod resolve;
mod restore;
mod ring;
mod rootless;
mod run;
mod saved;
mod sender;
mod serve;
mod service;
mod snapshots;
mod spec;
mod start;
mod state;
mod table;
mod template;
mod update;
mod waker;
mod worker;
mod world;

use std::process::ExitCode;

use clap::Parser;
use nix::unistd::geteuid;

use crate::cli::{Cli, Command};
use crate::error::{Error, Kind, Result};
use crate::ops::{keep, warm};
use crate::runtime::first_closed;
use crate::sys::exe;
use crate::sys::process::{check_preserved_fds, close_inherited};
use crate::sys::supervisor::first_unpassed;

pub use world::World;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let privileged = geteuid().is_root();
    let early = if privileged { seal_where_needed() } else { Ok(()) };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain_usage(&error),
    };
    let log = log::Log::new(&cli.global);
    let result = early
        .and_then(|()| close_what_is_not_preserved(&cli.command))
        .and_then(|()| if privileged { Ok(()) } else { rootless::enter(&cli).and_then(|()| seal_where_needed()) })
        .and_then(|()| log.start(loudness(&cli.command)))
        .and_then(|()| dispatch(&cli));
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            log.report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Help and version as they are; a mistake in one line, like every other error.
fn explain_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that has gone away has seen enough.
            let _ = error.print();
            ExitCode::from(u8::from(error.exit_code() != 0) * 2)
        }
        _ => {
            let text = error.render().to_string();
            let others = ["Usage:", "tip:", "For more information"];
            let lines = text.lines().map(str::trim);
            let lines = lines.take_while(|line| !others.iter().any(|other| line.starts_with(other)));
            let words: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
            let cause = words.join(" ").trim_start_matches("error: ").to_owned();
            let error = Error::new(Kind::Usage, "read the command line", cause).next("see 'regen --help'");
            log::Log::guess(std::env::args_os().skip(1)).report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The verbs that put a process of ours into a container run from a sealed binary. Looked for before parsing, which
/// would be done twice: a verb that merely has such a word as its argument loses a millisecond.
fn seal_where_needed() -> Result<()> {
    let enters = |argument: std::ffi::OsString| {
        ["create", "run", "exec", keep::VERB, warm::KEEPER, warm::WORKER].into_iter().any(|verb| argument == verb)
    };
    if std::env::args_os().skip(1).any(enters) { exe::seal() } else { Ok(()) }
}

/// What our caller left open by carelessness is nothing to us, and must be nothing to a container: even a process that
/// only waits for its start has the container's privileges, and its neighbours can look into it. Done before anything
/// of ours is open.
fn close_what_is_not_preserved(command: &Command) -> Result<()> {
    let preserved = match command {
        Command::Create(arguments) => arguments.making.preserve_fds,
        Command::Run(arguments) => arguments.making.preserve_fds,
        Command::Exec(arguments) => arguments.preserve_fds,
        Command::Keeper(_) | Command::TemplateKeeper(_) | Command::TemplateWorker(_) => 0,
        Command::Serve(_) => return close_inherited(first_unpassed()),
        _ => return Ok(()),
    };
    check_preserved_fds(preserved)?;
    close_inherited(first_closed(preserved))
}

/// A daemon tells what it does to nobody but its log.
fn loudness(command: &Command) -> log::Loudness {
    match command {
        Command::Serve(_) => log::Loudness::Events,
        _ => log::Loudness::Warnings,
    }
}

/// The exit status of a verb that succeeded.
fn dispatch(cli: &Cli) -> Result<u8> {
    // Verbs that only print need no places, nor the variables that name them.
    let world = || World::open(&cli.global);
    match &cli.command {
        Command::Create(arguments) => create::run(&world()?, arguments).map(|()| 0),
        Command::Start(arguments) => start::run(&world()?, arguments).map(|()| 0),
        Command::State(arguments) => state::run(&world()?, arguments).map(|()| 0),
        Command::Kill(arguments) => kill::run(&world()?, arguments).map(|()| 0),
        Command::Delete(arguments) => delete::run(&world()?, arguments).map(|()| 0),
        Command::Run(arguments) => run::run(&world()?, arguments),
        Command::Exec(arguments) => exec::run(&world()?, arguments),
        Command::List(arguments) => list::run(&world()?, arguments).map(|()| 0),
        Command::Ps(arguments) => ps::run(&world()?, arguments).map(|()| 0),
        Command::Pause(arguments) => pause::pause(&world()?, arguments).map(|()| 0),
        Command::Resume(arguments) => pause::resume(&world()?, arguments).map(|()| 0),
        Command::Update(arguments) => update::run(&world()?, arguments).map(|()| 0),
        Command::Events(arguments) => events::run(&world()?, arguments).map(|()| 0),
        Command::Checkpoint(arguments) => checkpoint::run(&world()?, arguments).map(|()| 0),
        Command::Restore(arguments) => restore::run(&world()?, arguments),
        Command::Spec(arguments) => spec::run(arguments).map(|()| 0),
        Command::Features => features::run().map(|()| 0),
        Command::Ring(arguments) => ring::run(&world()?, arguments),
        Command::Serve(arguments) => serve::run(&world()?, arguments).map(|()| 0),
        Command::Service(arguments) => service::run(&world()?, arguments.clone()).map(|()| 0),
        Command::Template(arguments) => template::run(&world()?, arguments.clone()).map(|()| 0),
        Command::Clone(arguments) => clone::run(&world()?, arguments),
        Command::Invoke(arguments) => invoke::run(&world()?, arguments),
        Command::Node(arguments) => node::run(&world()?, arguments.clone()).map(|()| 0),
        Command::Op(arguments) => op::run(&world()?, arguments.clone()),
        Command::Call(arguments) => call::run(&world()?, arguments).map(|()| 0),
        Command::Resolve(arguments) => resolve::run(&world()?, arguments).map(|()| 0),
        Command::Install(arguments) => install::run(&world()?, &cli.global, arguments).map(|()| 0),
        Command::Doctor(arguments) => doctor::run(&cli.global, *arguments),
        Command::Completions(arguments) => completions::run(*arguments).map(|()| 0),
        Command::Man(arguments) => man::run(arguments).map(|()| 0),
        Command::Worker => worker::run(&world()?).map(|()| 0),
        Command::Sender => sender::run(&world()?).map(|()| 0),
        Command::Waker(arguments) => waker::run(&world()?, arguments).map(|()| 0),
        Command::Snapshots(arguments) => snapshots::run(&world()?, arguments).map(|()| 0),
        Command::Handover(arguments) => handover::run(&world()?, arguments).map(|()| 0),
        Command::Keeper(_) => keeper::run().map(|()| 0),
        Command::TemplateKeeper(_) => warm::run().map(|()| 0),
        Command::TemplateWorker(_) => warm::run_worker().map(|()| 0),
    }
}
