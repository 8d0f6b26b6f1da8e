//! `regen template …`, `clone` and `invoke`

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::duration::parse_interval;
use super::op::{Elsewhere, On, Waiting};
use super::ring::Output;
use crate::config::parse_bytes;
use crate::error::Error;
use crate::ids::{ContainerId, Name};

/// Keep containers warm, to be cloned
#[derive(Debug, Clone, Args)]
pub struct Template {
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with templates.
#[derive(Debug, Clone, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// Start a container once, and keep it to be cloned
    Create(Box<Create>),
    /// List templates
    Ls(Output),
    /// Print all that is known of a template
    Show(Show),
    /// Remove a template; its detached clones go on
    Rm(Remove),
}

/// How a template is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// As a process that forks
    Zygote,
    /// As a file, from which its processes are restored
    Snapshot,
}

/// Start a container once, and keep it to be cloned
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("source").required(true).multiple(true).args(["bundle", "rootfs", "image", "ring"]))]
pub struct Create {
    /// The template's name
    #[arg(value_name = "NAME")]
    pub name: Name,
    /// A bundle's directory
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// A directory as root file system; it is never written
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    pub rootfs: Option<PathBuf>,
    /// An image: oci:DIR[:TAG] or oci-archive:FILE[:TAG]. If another one gets the tag, the template is made anew
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["bundle", "rootfs"])]
    pub image: Option<String>,
    /// A saved state of a ring, over what it was made over or over what else is given. Without a selector, the template is made
    /// anew from each later one
    #[arg(long, value_name = "RING[@SEL]")]
    pub ring: Option<String>,
    /// How it is kept
    #[arg(long, value_enum, default_value_t = Mode::Zygote, value_name = "MODE")]
    pub mode: Mode,
    /// Sandboxes that wait for a clone, ready made
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub pool: u32,
    /// The most memory that they take together, such as 256MiB
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = parse_size)]
    pub pool_memory: u64,
    /// Set a variable (may be given again)
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The working directory inside
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The user, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]", conflicts_with = "bundle")]
    pub user: Option<String>,
    /// How long it may take to be ready
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_interval)]
    pub ready_timeout: Duration,
    /// Where.
    #[command(flatten)]
    pub on: On,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
    /// The command that loads what clones are to have, and says when it is ready
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Print all that is known of a template
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// The template
    #[arg(value_name = "NAME")]
    pub name: Name,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Remove a template; its detached clones go on
#[derive(Debug, Clone, Args)]
pub struct Remove {
    /// The template
    #[arg(value_name = "NAME")]
    pub name: Name,
    /// Kill its clones, too
    #[arg(long, short)]
    pub force: bool,
    /// Where.
    #[command(flatten)]
    pub on: On,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Make a container from a template, in the time of a fork
#[derive(Debug, Clone, Args)]
pub struct Clone {
    /// The template
    #[arg(value_name = "TEMPLATE")]
    pub template: Name,
    /// The new container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
    /// What it finds at /function: a directory, a tar file, or an image as oci:DIR[:TAG]
    #[arg(long, value_name = "DIR|TAR|IMAGE")]
    pub function: Option<PathBuf>,
    /// Return once the program runs
    #[arg(long, short)]
    pub detach: bool,
    /// Set a variable (may be given again)
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The working directory inside
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The most memory, such as 256MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Where, and how long to wait for that.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// The command, which finds what the template has loaded
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// What `invoke` calls: `MODULE:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler(String);

impl Handler {
    /// As it was typed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Handler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let dotted = |part: &str| part.split('.').all(is_identifier);
        match text.split_once(':') {
            Some((module, name)) if dotted(module) && dotted(name) => Ok(Self(text.to_owned())),
            Some(_) | None => Err(format!("'{}' is not of the form MODULE:NAME", text.escape_debug())),
        }
    }
}

fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    let begins = characters.next().is_some_and(|first| first.is_alphabetic() || first == '_');
    begins && characters.all(|other| other.is_alphanumeric() || other == '_')
}

/// Call a function in a clone of a template, and print what it returns
#[derive(Debug, Clone, Args)]
pub struct Invoke {
    /// The template
    #[arg(value_name = "TEMPLATE")]
    pub template: Name,
    /// The function: a directory, a tar file, or an image as oci:DIR[:TAG]
    #[arg(long, value_name = "DIR|TAR|IMAGE")]
    pub function: PathBuf,
    /// What is called with the event
    #[arg(long, value_name = "MODULE:NAME")]
    pub handler: Handler,
    /// The event [default: null]
    #[arg(long, value_name = "JSON", conflicts_with = "event_file")]
    pub event: Option<String>,
    /// A file that has the event, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub event_file: Option<PathBuf>,
    /// Set a variable (may be given again)
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// How long it may take
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_interval)]
    pub timeout: Duration,
    /// The most memory, such as 256MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// The longest result
    #[arg(long, value_name = "BYTES", default_value = "6MiB", value_parser = parse_size)]
    pub max_output: u64,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

fn parse_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Ok(0) => Err(format!("'{text}' is nothing")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(Error::to_string(&error)),
    }
}

// What a keeper of a template and its workers are called with: only for those who look at processes.
#[expect(missing_docs, reason = "it would be the help of each verb that takes this")]
#[derive(Debug, Clone, Args)]
pub struct Kept {
    /// The template
    #[arg(value_name = "TEMPLATE")]
    pub template: String,
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
    fn a_template_is_created_with_what_the_contract_has() {
        let line = "template create py --image oci:images:py --mode zygote --pool 8 --pool-memory 1GiB --env A=b \
            --workdir / --user 1000 --ready-timeout 1m -- python3 -m regen_zygote --import json,ssl";
        let Command::Template(Template { verb: Verb::Create(create) }) = parse(line).unwrap() else { panic!() };
        assert_eq!((create.name.as_str(), create.pool, create.pool_memory), ("py", 8, 1 << 30));
        assert_eq!(create.ready_timeout, Duration::from_secs(60));
        assert_eq!(create.command.last().unwrap(), "json,ssl");
    }

    #[test]
    fn a_clone_and_an_invocation_have_their_defaults() {
        let Command::Clone(clone) = parse("clone py box1 -d --function f.tar -- python3 -V").unwrap() else { panic!() };
        assert!(clone.detach && clone.command == ["python3", "-V"]);
        let line = "invoke py --function . --handler my.app:Class.main";
        let Command::Invoke(invoke) = parse(line).unwrap() else { panic!() };
        assert_eq!((invoke.timeout, invoke.max_output), (Duration::from_secs(30), 6 << 20));
        assert_eq!((invoke.handler.as_str(), invoke.event), ("my.app:Class.main", None));
    }

    #[test]
    fn what_says_nothing_is_refused_while_it_is_read() {
        for line in [
            "template create py -- python3",
            "template create py --rootfs /r --image oci:a -- python3",
            "template create a/b --rootfs /r -- python3",
            "template create py --rootfs /r --pool -1 -- python3",
            "template create py --rootfs /r --pool-memory 0 -- python3",
            "template create py --rootfs /r --ready-timeout 0s -- python3",
            "template create py --bundle /b --user 1 -- python3",
            "clone py",
            "clone py a/b -- python3",
            "invoke py --function .",
            "invoke py --handler a:b",
            "invoke py --function . --handler ab",
            "invoke py --function . --handler a:",
            "invoke py --function . --handler a:b-c",
            "invoke py --function . --handler a:b --event 1 --event-file f",
            "invoke py --function . --handler a:b --timeout 5",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
