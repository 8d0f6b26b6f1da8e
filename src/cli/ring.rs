//! `regen ring …`

use clap::{Args, Subcommand};

use super::look::{Cat, Log, Mount, Restore, Rules, Unmount};
use super::node::parse_node;
use super::op::{Elsewhere, Waiting};
use crate::ids::NodeName;

/// Look at and change rings
#[derive(Debug, Args)]
pub struct Ring {
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with rings.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// List rings
    Ls(Output),
    /// List the entries of a ring, newest first
    Log(Log),
    /// Print one entry whole
    Show(Show),
    /// Print a file of a saved state
    Cat(Cat),
    /// Put a file or a directory of a saved state back
    Restore(Restore),
    /// Mount a saved state read-only
    Mount(Mount),
    /// Unmount a saved state
    #[command(name = "umount")]
    Unmount(Unmount),
    /// Print what differs between two states
    Diff(Diff),
    /// Let the next run start from another entry
    Rollback(Rollback),
    /// Make a ring that begins with an entry of another; nothing is copied
    Fork(Fork),
    /// Make an entry of the container that runs on a ring
    Snapshot(Snapshot),
    /// Keep an entry from being evicted
    Pin(Pin),
    /// Let an entry be evicted again
    Unpin(Pin),
    /// Set a ring's limits
    Set(Set),
    /// Check digests, layers and journal
    Verify(Some),
    /// Pack what is only sealed, now
    Pack(Pack),
    /// Write an entry to an image layout, an archive or a registry, as what changed or as an ordinary image
    Export(Export),
    /// Take entries from an image layout, an archive or a registry
    Import(Import),
    /// Send a ring, or one of its entries, to a registry
    Push(Push),
    /// Fetch a ring, or one of its entries, from a registry
    Pull(Pull),
    /// Move a ring to another node, which has it from then on
    Move(Move),
    /// Give a ring to another node: its entries to a registry, and no run here from then on
    #[command(hide = true)]
    Give(Give),
    /// Take a ring that another node gave
    #[command(hide = true)]
    Take(Take),
    /// Take back a ring that was given, and that nobody took
    #[command(hide = true)]
    Keep(Keep),
    /// Leave a ring to a node that took it without asking
    #[command(hide = true)]
    Disown(Disown),
    /// Remove a ring with all its entries
    Rm(Remove),
    /// Collect what nothing needs: layers, also of images, blobs, leftovers of dead runs
    Prune(Prune),
    /// Adopt what a crash left, and collect what nothing needs
    Recover(Output),
}

// How to print.
#[expect(missing_docs, reason = "it would be the help of each verb that takes this")]
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Check digests, layers and journal
#[derive(Debug, Args)]
pub struct Some {
    /// The ring [default: all]
    #[arg(value_name = "RING")]
    pub ring: Option<String>,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Print one entry whole
#[derive(Debug, Args)]
pub struct Show {
    /// The entry: RING for the newest, RING@42, RING@-1, RING@-5m, RING@2026-11-22T15:24:48Z
    #[arg(value_name = "RING[@SEL]")]
    pub target: String,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Make a ring that begins with an entry of another; nothing is copied
#[derive(Debug, Args)]
pub struct Fork {
    /// The entry: RING for where its next run would start, RING@42, RING@-1, RING@-5m, RING@2026-11-22T15:24:48Z
    #[arg(value_name = "RING[@SEL]")]
    pub source: String,
    /// The new ring, as NAME or OWNER/NAME; more of them are made from the same entry, all or none
    #[arg(value_name = "NEW", required = true)]
    pub names: Vec<String>,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Make an entry of the container that runs on a ring
#[derive(Debug, Args)]
pub struct Snapshot {
    /// The ring, as NAME or OWNER/NAME
    #[arg(value_name = "RING")]
    pub ring: String,
    /// Save its processes, too, which 'ring rollback' brings back (needs criu)
    #[arg(long, conflicts_with = "on")]
    pub with_memory: bool,
    /// Where, and how long to wait for that.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

// `ring pin` and `ring unpin`
#[expect(missing_docs, reason = "it would be the help of each verb that takes this")]
#[derive(Debug, Args)]
pub struct Pin {
    /// The entry: RING for the newest, RING@42, RING@-1, RING@-5m, RING@2026-11-22T15:24:48Z
    #[arg(value_name = "RING[@SEL]")]
    pub target: String,
    /// Where, and how long to wait for that.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Pack what is only sealed, now
#[derive(Debug, Args)]
pub struct Pack {
    /// The ring [default: all]
    #[arg(value_name = "RING")]
    pub ring: Option<String>,
    /// Where, and how long to wait for that.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Print what differs between two states
#[derive(Debug, Args)]
pub struct Diff {
    /// The first state; RING@base is the bare base
    #[arg(value_name = "RING@SEL")]
    pub first: String,
    /// The second; @SEL alone means the same ring
    #[arg(value_name = "RING@SEL")]
    pub second: String,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Let the next run start from another entry
#[derive(Debug, Args)]
pub struct Rollback {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// The entry: @-1, @42, …; @base for no saved state
    #[arg(long, value_name = "@SEL", allow_hyphen_values = true)]
    pub to: String,
    /// Start the program also where the entry was saved with its processes
    #[arg(long, conflicts_with = "on")]
    pub without_memory: bool,
    /// Only say what would be done
    #[arg(long, conflicts_with = "on")]
    pub dry_run: bool,
    /// Where, and how long to wait for that.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Set a ring's limits
#[derive(Debug, Args)]
pub struct Set {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// The most entries
    #[arg(long, value_name = "N")]
    pub depth: Option<String>,
    /// The most bytes on disk, such as 2GiB; 'none' for no limit
    #[arg(long, value_name = "BYTES")]
    pub max_bytes: Option<String>,
    /// What is kept whatever the depth.
    #[command(flatten)]
    pub keep: Rules,
    /// Only say what would be evicted
    #[arg(long, conflicts_with = "on")]
    pub dry_run: bool,
    /// Where, and how long to wait for that.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, Args)]
pub struct Tls {
    /// Whether the registry has to prove who it is; 'false' also for one without TLS
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub tls_verify: bool,
}

/// How layers of an export are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportCompression {
    /// zstd
    Zstd,
    /// gzip, for tools that know no zstd
    Gzip,
}

/// Write an entry to an image layout, an archive or a registry, as what changed or as an ordinary image
#[derive(Debug, Args)]
pub struct Export {
    /// The entry: RING for the newest, RING@42, RING@-1, RING@-5m, RING@2026-11-22T15:24:48Z
    #[arg(value_name = "RING[@SEL]")]
    pub target: String,
    /// Where to: oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://HOST[:PORT]/REPOSITORY[:TAG] [default tag: the entry's]
    #[arg(value_name = "TO")]
    pub to: String,
    /// With what the entry stands on, as an ordinary image
    #[arg(long)]
    pub full: bool,
    /// How layers are compressed [default: as they are]
    #[arg(long, value_enum)]
    pub compression: Option<ExportCompression>,
    /// How.
    #[command(flatten)]
    pub tls: Tls,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Take entries from an image layout, an archive or a registry
#[derive(Debug, Args)]
pub struct Import {
    /// Where from: oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://HOST[:PORT]/REPOSITORY[:TAG]
    #[arg(value_name = "FROM")]
    pub from: String,
    /// The ring that gets it; made if it is not there
    #[arg(value_name = "RING")]
    pub ring: String,
    /// How.
    #[command(flatten)]
    pub tls: Tls,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Send a ring, or one of its entries, to a registry
#[derive(Debug, Args)]
pub struct Push {
    /// The ring, for all of its entries; or one entry of it
    #[arg(value_name = "RING[@SEL]")]
    pub target: String,
    /// Where to; a tag only for one entry
    #[arg(value_name = "docker://HOST[:PORT]/REPOSITORY[:TAG]")]
    pub reference: String,
    /// How.
    #[command(flatten)]
    pub tls: Tls,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Fetch a ring, or one of its entries, from a registry
#[derive(Debug, Args)]
pub struct Pull {
    /// Where from; with a tag, that entry alone
    #[arg(value_name = "docker://HOST[:PORT]/REPOSITORY[:TAG]")]
    pub reference: String,
    /// The ring that gets it; made if it is not there
    #[arg(value_name = "RING")]
    pub ring: String,
    /// How.
    #[command(flatten)]
    pub tls: Tls,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Move a ring to another node, which has it from then on
#[derive(Debug, Args)]
pub struct Move {
    /// The ring, as NAME or OWNER/NAME
    #[arg(value_name = "RING")]
    pub ring: String,
    /// The node that gets it
    #[arg(long, value_name = "NODE", value_parser = parse_node)]
    pub to: NodeName,
    /// The node that has it [default: this one]
    #[arg(long, value_name = "NODE", value_parser = parse_node)]
    pub from: Option<NodeName>,
    /// The repository that it goes by, which both nodes reach [default: that of its last move]
    #[arg(long, value_name = "docker://HOST[:PORT]/REPOSITORY")]
    pub via: Option<String>,
    /// As it was pushed last, without the node that has it; what that one has beyond goes on there in a fork
    #[arg(long)]
    pub force: bool,
    /// How.
    #[command(flatten)]
    pub tls: Tls,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Give a ring to another node: its entries to a registry, and no run here from then on
#[derive(Debug, Args)]
pub struct Give {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// Where to push it
    #[arg(value_name = "docker://HOST[:PORT]/REPOSITORY")]
    pub reference: String,
    /// The node that gets it
    #[arg(long, value_name = "NODE")]
    pub to: String,
    /// Also while a container has it, which goes on in a fork
    #[arg(long)]
    pub force: bool,
    /// How.
    #[command(flatten)]
    pub tls: Tls,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Take a ring that another node gave
#[derive(Debug, Args)]
pub struct Take {
    /// Where it was pushed
    #[arg(value_name = "docker://HOST[:PORT]/REPOSITORY")]
    pub reference: String,
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// The digest that 'give' told
    #[arg(long, value_name = "DIGEST", requires = "moves", required_unless_present = "force")]
    pub index: Option<String>,
    /// The number that 'give' told
    #[arg(long, value_name = "N")]
    pub moves: Option<u64>,
    /// As it was pushed last, without its owner, which has to disown it when it is back
    #[arg(long, conflicts_with_all = ["index", "moves"])]
    pub force: bool,
    /// How.
    #[command(flatten)]
    pub tls: Tls,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Leave a ring to a node that took it without asking
#[derive(Debug, Args)]
pub struct Disown {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// Where it was taken from
    #[arg(value_name = "docker://HOST[:PORT]/REPOSITORY")]
    pub reference: String,
    /// The node that has it
    #[arg(long, value_name = "NODE")]
    pub to: String,
    /// The number of the newest entry that 'take' told
    #[arg(long, value_name = "N")]
    pub last_seq: u64,
    /// The number of moves that 'take' told
    #[arg(long, value_name = "N")]
    pub moves: u64,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Take back a ring that was given, and that nobody took
#[derive(Debug, Args)]
pub struct Keep {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// The node that was to get it
    #[arg(long, value_name = "NODE")]
    pub to: String,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Collect what nothing needs: layers, also of images, blobs, leftovers of dead runs
#[derive(Debug, Args)]
pub struct Prune {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Also remove the rings that 'run --fork' made and in which nothing was changed
    #[arg(long)]
    pub forks: bool,
    /// With --forks: also those in which nothing ran for so long: 12h, 7d
    #[arg(long, value_name = "AGE", requires = "forks")]
    pub older_than: Option<String>,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

/// Remove a ring with all its entries
#[derive(Debug, Args)]
pub struct Remove {
    /// The ring
    #[arg(value_name = "RING")]
    pub ring: String,
    /// Only say what would be removed
    #[arg(long, conflicts_with = "on")]
    pub dry_run: bool,
    /// Where, and how long to wait for that.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// How.
    #[command(flatten)]
    pub output: Output,
}

#[cfg(test)]
mod tests {
    use clap::{Parser, error::ErrorKind};

    #[test]
    fn processes_are_saved_and_left_behind_on_this_machine_only() {
        let parse =
            |line: &str| crate::cli::Cli::try_parse_from(line.split(' ')).map(drop).map_err(|error| error.kind());
        for line in ["regen ring snapshot a --with-memory", "regen ring rollback a --to @1 --without-memory"] {
            assert_eq!(parse(line), Ok(()));
            assert_eq!(parse(&format!("{line} --on all")), Err(ErrorKind::ArgumentConflict));
        }
    }
}
