//! `regen service …`

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use semver::Version;

use super::Origin;
use super::duration::{parse_duration, parse_interval};
use super::op::{On, Patience, Waiting};
use super::ring::Output;
use crate::error::Error;
use crate::ids::Name;
use crate::service::address::Listen;
use crate::service::definition::Readiness;
use crate::service::settings::Place;
use crate::sys::signal::Signal;

/// Run services, and replace their instances without losing a connection
#[derive(Debug, Clone, Args)]
pub struct Service {
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with services.
#[derive(Debug, Clone, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// Add a version of a service, and start it
    Add(Box<Add>),
    /// List services
    Ls(Output),
    /// Print all that is known of a service
    Show(Show),
    /// Remove a service: its clients are let finish
    Rm(Remove),
    /// Put a new instance in the place of the old one, without losing a connection
    Restart(Restart),
    /// Put another version in the place of the old one, without losing a connection
    Upgrade(Box<Upgrade>),
    /// Make a program that runs already the first instance of a service
    Adopt(Adopt),
    /// Print what the instances of a service have printed
    Logs(Logs),
}

/// A service, and its version if that is said: `NAME` or `NAME@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// The name.
    pub name: Name,
    /// The version.
    pub version: Option<Version>,
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(parse_version(version)?)),
            None => (text, None),
        };
        Ok(Self { name: name.parse().map_err(|error: Error| error.to_string())?, version })
    }
}

fn parse_version(text: &str) -> Result<Version, String> {
    Version::parse(text).map_err(|error| format!("'{text}' is no version like 1.2.3 (semver.org): {error}"))
}

/// `[NAME=]ADDR`
fn parse_place(text: &str) -> Result<Place, String> {
    // A name of its own is told from the service's by being said.
    let unnamed: Name = "unnamed".parse().map_err(|error: Error| error.to_string())?;
    let named = text.split_once('=').is_some_and(|(name, _)| !name.contains([':', '/']));
    let listen = Listen::parse(text, &unnamed).map_err(|error| error.to_string())?;
    Ok(Place { name: named.then_some(listen.name), address: listen.address })
}

fn parse_readiness(text: &str) -> Result<Readiness, String> {
    text.parse().map_err(|error: Error| error.to_string())
}

/// How sockets reach an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Handover {
    /// As descriptors 3 and up (LISTEN_FDS)
    ListenFds,
    /// It binds them itself and knows nothing of it
    Intercept,
}

/// What to do when an instance ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RestartPolicy {
    /// Nothing
    No,
    /// Start another one unless it ended with 0
    OnFailure,
    /// Start another one
    Always,
}

/// How instances are.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Start from a ring, and save to it at the end
    #[arg(long, value_name = "RING[@SEL]")]
    pub ring: Option<String>,
    /// Start from an entry that was made over another root, too
    #[arg(long)]
    pub rebase: bool,
    /// Set a variable (may be given again)
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The working directory inside
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The user, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// How sockets reach an instance [default: listen-fds]
    #[arg(long, value_enum, value_name = "HOW")]
    pub handover: Option<Handover>,
    /// When an instance is ready: notify, tcp, http:/PATH or none [default: tcp if it has a TCP address, else none]
    #[arg(long, value_name = "WHEN", value_parser = parse_readiness)]
    pub ready: Option<Readiness>,
    /// How long it may take until then [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_interval)]
    pub ready_timeout: Option<Duration>,
    /// How long an old instance may take to end its connections [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub drain_timeout: Option<Duration>,
    /// What tells an instance to end [default: SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<Signal>,
    /// What to do when an instance ends by itself [default: on-failure]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub restart: Option<RestartPolicy>,
}

/// Add a version of a service, and start it
#[derive(Debug, Clone, Args)]
#[command(disable_version_flag = true)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["bundle", "rootfs", "image"]))]
pub struct Add {
    /// The service's name
    #[arg(value_name = "NAME")]
    pub name: Name,
    /// Its version (semver.org)
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub version: Version,
    /// Where it listens: tcp://HOST:PORT, udp://HOST:PORT, unix:/PATH or auto (may be given again)
    #[arg(long, value_name = "[NAME=]ADDR", required = true, value_parser = parse_place)]
    pub listen: Vec<Place>,
    /// What runs.
    #[command(flatten)]
    pub program: Program,
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

/// What instances run.
#[derive(Debug, Clone, Args)]
pub struct Program {
    /// What from.
    #[command(flatten)]
    pub origin: Origin,
    /// How.
    #[command(flatten)]
    pub settings: Settings,
    /// The command, in place of the one of the source or of the version before
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Print all that is known of a service
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// The service
    #[arg(value_name = "NAME[@VERSION]")]
    pub service: ServiceName,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Remove a service: its clients are let finish
#[derive(Debug, Clone, Args)]
pub struct Remove {
    /// The service; without a version all of them
    #[arg(value_name = "NAME[@VERSION]")]
    pub service: ServiceName,
    /// Kill its instances in place of letting them finish
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

/// Put a new instance in the place of the old one, without losing a connection
#[derive(Debug, Clone, Args)]
pub struct Restart {
    /// The service
    #[arg(value_name = "NAME[@VERSION]")]
    pub service: ServiceName,
    /// Return only when the old instance is gone
    #[arg(long)]
    pub wait: bool,
    /// Where.
    #[command(flatten)]
    pub on: On,
    /// How long to wait.
    #[command(flatten)]
    pub patience: Patience,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Put another version in the place of the old one, without losing a connection
#[derive(Debug, Clone, Args)]
pub struct Upgrade {
    /// The service
    #[arg(value_name = "NAME[@OLD]")]
    pub service: ServiceName,
    /// The new version
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub to: Version,
    /// Let the new version be an older one
    #[arg(long)]
    pub allow_downgrade: bool,
    /// Return only when the old instance is gone
    #[arg(long)]
    pub wait: bool,
    /// What is different about what runs.
    #[command(flatten)]
    pub program: Program,
    /// Where.
    #[command(flatten)]
    pub on: On,
    /// How long to wait.
    #[command(flatten)]
    pub patience: Patience,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Make a program that runs already the first instance of a service
#[derive(Debug, Clone, Args)]
#[command(disable_version_flag = true)]
pub struct Adopt {
    /// The service's name
    #[arg(value_name = "NAME")]
    pub name: Name,
    /// Its version (semver.org)
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    pub version: Version,
    /// The process that has the sockets
    #[arg(long, value_name = "PID")]
    pub pid: i32,
    /// Where it listens: tcp://HOST:PORT, udp://HOST:PORT or unix:/PATH (may be given again)
    #[arg(long, value_name = "[NAME=]ADDR", required = true, value_parser = parse_place)]
    pub listen: Vec<Place>,
    /// How long it may take to end its connections, once it is replaced [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub drain_timeout: Option<Duration>,
    /// What tells it to end [default: SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<Signal>,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Print what the instances of a service have printed
#[derive(Debug, Clone, Args)]
pub struct Logs {
    /// The service
    #[arg(value_name = "NAME[@VERSION]")]
    pub service: ServiceName,
    /// Go on with what is printed from now on
    #[arg(long, short)]
    pub follow: bool,
    /// Print an object for each line, with its time and instance
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        let cli = Cli::try_parse_from(["regen", "service"].into_iter().chain(line.split(' ')))?;
        let Command::Service(service) = cli.command else { panic!("not service") };
        Ok(service.verb)
    }

    #[test]
    fn a_service_is_added_with_what_the_contract_has() {
        let line = "add web --version 1.2.3 --listen tcp://127.0.0.1:80 --listen admin=unix:/run/a --rootfs /r \
            --ready http:/up --handover intercept --drain-timeout 0s --ready-timeout 1m --restart on-failure -- serve -x";
        let Verb::Add(add) = parse(line).unwrap() else { panic!("not add") };
        assert_eq!((add.name.as_str(), add.version.to_string().as_str()), ("web", "1.2.3"));
        assert_eq!(add.listen[0].name, None);
        assert_eq!(add.listen[1].name.as_ref().unwrap().as_str(), "admin");
        assert_eq!(add.program.settings.drain_timeout, Some(Duration::ZERO));
        assert_eq!(add.program.command, ["serve", "-x"]);
    }

    #[test]
    fn flags_may_follow_the_name_and_a_name_may_have_a_version() {
        let Verb::Restart(restart) = parse("restart web@1.0.0-rc.1 --wait").unwrap() else { panic!("not restart") };
        assert_eq!(restart.service.version.unwrap().to_string(), "1.0.0-rc.1");
        let Verb::Logs(logs) = parse("logs web -f").unwrap() else { panic!("not logs") };
        assert!(logs.follow && logs.service.version.is_none());
    }

    #[test]
    fn what_says_nothing_is_refused_while_it_is_read() {
        for line in [
            "add web --version 1 --listen auto --rootfs /r",
            "add web --version v1.0.0 --listen auto --rootfs /r",
            "add web --version 1.0.0 --listen nowhere --rootfs /r",
            "add web --version 1.0.0 --listen auto",
            "add web --version 1.0.0 --rootfs /r",
            "add web --version 1.0.0 --listen auto --rootfs /r --bundle /b",
            "add web/x --version 1.0.0 --listen auto --rootfs /r",
            "restart web@1",
            "upgrade web",
            "adopt web --version 1.0.0 --listen auto",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
