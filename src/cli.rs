//! The command line, as types. No I/O, no decisions: what was typed, checked for form.
//!
//! Flags may stand before or after positional arguments. The command of `exec` is everything from its first word on;
//! that of `run` follows `--`.

#![allow(rustdoc::broken_intra_doc_links, reason = "help shows optional parts in brackets, as they are typed")]

pub mod checkpoint;
pub mod daemon;
pub mod doctor;
mod duration;
pub mod events;
pub mod exec;
pub mod handover;
pub mod install;
pub mod look;
pub mod node;
pub mod op;
pub mod ps;
pub mod resolve;
pub mod ring;
pub mod service;
pub mod template;
pub mod update;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ids::ContainerId;
use crate::sys::signal::Signal;

/// An OCI container runtime whose containers can be regenerated.
#[derive(Debug, Parser)]
#[command(name = "regen", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What every verb takes.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Where the states of containers lie [default: /run/regen, rootless $XDG_RUNTIME_DIR/regen]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Where layers, rings and images lie [default: /var/lib/regen, rootless $XDG_DATA_HOME/regen]
    #[arg(long, global = true, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The configuration file [default: /etc/regen/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where errors are logged beside standard error
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// The form of the log
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Logs what is done, not only what fails
    #[arg(long, global = true)]
    pub debug: bool,
    /// Lets systemd make the cgroups (cgroupsPath is then SLICE:PREFIX:NAME)
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Who makes the cgroups
    #[arg(long, global = true, value_enum, value_name = "MANAGER")]
    pub cgroup_manager: Option<CgroupManager>,
    /// Whether to work without privileges
    #[arg(long, value_enum, default_value_t = Rootless::Auto, value_name = "WHETHER")]
    pub rootless: Rootless,
    /// The ring of a container that is created and names none: for engines that give a runtime flags only
    #[arg(long = "ring", id = "default_ring", value_name = "RING[@SEL]")]
    pub ring: Option<String>,
    /// The most entries of that ring, from now on
    #[arg(long = "depth", id = "default_depth", value_name = "N", requires = "default_ring")]
    pub depth: Option<String>,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of name=value.
    Text,
    /// One JSON object per line.
    Json,
}

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupManager {
    /// We do.
    Cgroupfs,
    /// systemd does.
    Systemd,
    /// Nobody does.
    Disabled,
}

/// Whether to work without privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    /// Yes.
    True,
    /// No.
    False,
    /// As the caller's user id says.
    Auto,
}

/// The verbs.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Create a container, whose program then waits for start
    Create(Create),
    /// Start the program of a created container
    Start(Container),
    /// Print the state of a container
    State(Container),
    /// Send a signal to a container
    Kill(Kill),
    /// Delete a container and what it holds
    Delete(Delete),
    /// Create a container and start it
    Run(Run),
    /// Run one more process in a container
    Exec(exec::Exec),
    /// List containers
    List(List),
    /// List the processes of a container
    Ps(ps::Ps),
    /// Stop every process of a container where it is
    Pause(Container),
    /// Let a paused container go on
    Resume(Container),
    /// Change the limits of a container
    Update(update::Update),
    /// Tell what a container uses, and when it ran out of memory
    Events(events::Events),
    /// Save the processes of a container to files, and stop it
    Checkpoint(checkpoint::Checkpoint),
    /// Create a container from processes that were saved
    Restore(checkpoint::Restore),
    /// Write a config.json to begin with
    Spec(Spec),
    /// Print what this runtime can do
    Features,
    /// Look at and change rings
    Ring(ring::Ring),
    /// Run services, and replace their instances without losing a connection
    Service(service::Service),
    /// Keep containers warm, to be cloned
    Template(template::Template),
    /// Make a container from a template, in the time of a fork
    Clone(template::Clone),
    /// Call a function in a clone of a template, and print what it returns
    Invoke(template::Invoke),
    /// Look at what the daemon was asked to do, wait for it, or give it up
    Op(op::Op),
    /// The nodes of a cluster: list them, and take one out of use (see regen-serve(8))
    Node(node::Node),
    /// Run the daemon
    Serve(daemon::Serve),
    /// Call a method of the daemon
    Call(daemon::Call),
    /// Find the newest version of a service that satisfies, or connect to it
    Resolve(resolve::Resolve),
    /// Make this runtime known to an engine
    Install(install::Install),
    /// Say what this machine lacks, and what crashes left
    Doctor(doctor::Doctor),
    /// Print a shell's completion script
    Completions(Completions),
    /// Write the manual pages
    Man(Man),
    /// Pack what was sealed (the runtime's own use)
    #[command(hide = true)]
    Worker,
    /// Send what was packed where the configuration says (the runtime's own use)
    #[command(hide = true)]
    Sender,
    /// Let a container go on if whoever froze it dies (the runtime's own use)
    #[command(hide = true)]
    Waker(handover::Waker),
    /// Make entries of a container every so often (the runtime's own use)
    #[command(hide = true)]
    Snapshots(handover::Snapshots),
    /// Pass a container's ring on to one that is to follow it (the runtime's own use)
    #[command(hide = true, subcommand)]
    Handover(handover::Handover),
    /// Keep an instance of a service (the runtime's own use)
    #[command(hide = true)]
    Keeper(Container),
    /// Keep a template (the runtime's own use)
    #[command(hide = true)]
    TemplateKeeper(template::Kept),
    /// Make and remove containers of a template (the runtime's own use)
    #[command(hide = true)]
    TemplateWorker(template::Kept),
}

// A container, and nothing else.
#[expect(missing_docs, reason = "it would be the help of each verb that takes this")]
#[derive(Debug, Args)]
pub struct Container {
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}

/// How a container's first process is made; of `create` and `run`.
#[derive(Debug, Args)]
pub struct Making {
    /// A socket that gets the other end of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// A file that gets the pid of the container's first process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Pass N more file descriptors into the container (from 3 on)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Do not use pivot_root: for a root file system on the initial ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Leave the caller's session keyring to the container
    #[arg(long)]
    pub no_new_keyring: bool,
}

/// Create a container, whose program then waits for start
#[derive(Debug, Args)]
pub struct Create {
    /// The bundle's directory
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// How.
    #[command(flatten)]
    pub making: Making,
    /// The new container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}

/// What a container is made from.
#[derive(Debug, Clone, Args)]
pub struct Origin {
    /// A bundle's directory; `run` takes the current one if nothing is given
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// A directory as root file system instead of a bundle; it is never written
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    pub rootfs: Option<PathBuf>,
    /// An image instead of a bundle: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["bundle", "rootfs"])]
    pub image: Option<String>,
}

/// Create a container and start it
#[derive(Debug, Args)]
pub struct Run {
    /// What from.
    #[command(flatten)]
    pub origin: Origin,
    /// Start from a ring, and save to it at the end
    #[arg(long, value_name = "RING[@SEL]")]
    pub ring: Option<String>,
    /// The most entries of the ring, from now on
    #[arg(long, value_name = "N", requires = "ring")]
    pub depth: Option<String>,
    /// Leave the ring to others: the container goes on in a ring of its own, RING.ID, which begins with that entry
    #[arg(long, requires = "ring")]
    pub fork: bool,
    /// A bind mount of the container that belongs to the ring, by its path inside (may be given again)
    #[arg(long, requires = "ring", value_name = "PATH")]
    pub ring_volume: Vec<String>,
    /// Start from an entry that was made over another base
    #[arg(long, requires = "ring")]
    pub rebase: bool,
    /// Save what it has changed every so often, too: 30s, 5m, 1h30m
    #[arg(long, value_name = "D", requires = "ring")]
    pub snapshot_every: Option<String>,
    /// Return only when the new entry is packed
    #[arg(long, conflicts_with = "detach")]
    pub wait_pack: bool,
    /// Set a variable (may be given again)
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The working directory inside
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The user, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]", conflicts_with = "bundle")]
    pub user: Option<String>,
    /// How.
    #[command(flatten)]
    pub making: Making,
    /// Return once the program runs
    #[arg(long, short)]
    pub detach: bool,
    /// Keep the container after its program has ended
    #[arg(long)]
    pub keep: bool,
    /// Give the program a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Taken for compatibility: orphans are never ours to reap
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    /// The new container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
    /// The command, in place of the specification's
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Send a signal to a container
#[derive(Debug, Args)]
pub struct Kill {
    /// Send it to every process of the container
    #[arg(long, short)]
    pub all: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
    /// A name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub signal: Signal,
}

/// Delete a container and what it holds
#[derive(Debug, Args)]
pub struct Delete {
    /// Kill the container if it runs; none of that id is no error
    #[arg(long, short)]
    pub force: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}

/// List containers
#[derive(Debug, Args)]
pub struct List {
    /// The form of the list
    #[arg(long, short, value_enum, default_value_t = ListFormat::Table, value_name = "FORMAT")]
    pub format: ListFormat,
    /// The same as --format json
    #[arg(long)]
    pub json: bool,
    /// Print ids only
    #[arg(long, short)]
    pub quiet: bool,
}

/// The form of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// Aligned columns.
    Table,
    /// A JSON array.
    Json,
}

/// Write a config.json to begin with
#[derive(Debug, Args)]
pub struct Spec {
    /// Where to write it [default: the current directory]
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// For a container of an ordinary user
    #[arg(long = "rootless", id = "spec_rootless")]
    pub rootless: bool,
}

/// Print a shell's completion script
#[derive(Debug, Clone, Copy, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Write the manual pages
#[derive(Debug, Args)]
pub struct Man {
    /// Where to write them; made if it is not there
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(std::iter::once("regen").chain(line.split(' '))).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// A verb is defined when it is called: what it says of itself must be what the list of verbs says of it.
    #[test]
    fn a_verb_is_described_as_it_is_listed() {
        fn check<Verbs: Subcommand>() {
            let listed = Verbs::augment_subcommands(clap::Command::new("regen"));
            let mut defined = listed.clone();
            defined.build();
            for verb in listed.get_subcommands() {
                let said = defined.find_subcommand(verb.get_name()).unwrap();
                assert_eq!(verb.get_about(), said.get_about(), "{}", verb.get_name());
                assert_eq!(verb.get_long_about(), said.get_long_about(), "{}", verb.get_name());
            }
        }
        check::<Command>();
        check::<ring::Verb>();
        check::<service::Verb>();
        check::<template::Verb>();
        check::<op::Verb>();
        check::<node::Verb>();
        check::<handover::Handover>();
    }

    #[test]
    fn options_may_follow_the_id_and_the_commands_own_are_left_alone() {
        let Command::Exec(exec) = parse("exec box1 -t --env A=1 sh -c x --env").unwrap() else { panic!("not exec") };
        assert!(exec.tty);
        assert_eq!(exec.env, ["A=1"]);
        assert_eq!(exec.command, ["sh", "-c", "x", "--env"]);
        let Command::Create(create) = parse("create box1 --bundle /b --pid-file /p").unwrap() else { panic!() };
        assert_eq!(create.bundle, PathBuf::from("/b"));
        let Command::Delete(delete) = parse("delete box1 --force").unwrap() else { panic!() };
        assert!(delete.force);
    }

    #[test]
    fn global_flags_may_stand_anywhere_before_a_command() {
        let cli = Cli::try_parse_from(["regen", "--root", "/r", "state", "a", "--log-format", "json"]).unwrap();
        assert_eq!(cli.global.root, Some(PathBuf::from("/r")));
        assert_eq!(cli.global.log_format, LogFormat::Json);
    }

    #[test]
    fn a_ring_before_the_verb_is_not_that_of_run() {
        let line = ["regen", "--ring", "a", "--depth", "2", "run", "--ring", "b", "box1"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!((cli.global.ring.as_deref(), cli.global.depth.as_deref()), (Some("a"), Some("2")));
        let Command::Run(run) = cli.command else { panic!() };
        assert_eq!((run.ring.as_deref(), run.depth), (Some("b"), None));
    }

    #[test]
    fn the_command_of_a_run_follows_two_dashes() {
        let Command::Run(run) = parse("run -d --bundle /b box1 -- sh -c -t").unwrap() else { panic!() };
        assert_eq!(run.command, ["sh", "-c", "-t"]);
        assert!(!run.tty);
    }

    #[test]
    fn users_are_numbers() {
        let Command::Exec(exec) = parse("exec -u 1:2 a b").unwrap() else { panic!() };
        assert_eq!(exec.user, Some((1, Some(2))));
        assert!(parse("exec -u root a b").is_err());
        assert!(parse("exec -u 1: a b").is_err());
    }

    #[test]
    fn signals_default_to_term() {
        let Command::Kill(kill) = parse("kill a").unwrap() else { panic!() };
        assert_eq!(kill.signal, Signal::TERM);
        assert!(parse("kill a NOPE").is_err());
    }
}
