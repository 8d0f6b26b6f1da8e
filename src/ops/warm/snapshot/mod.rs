//! Templates whose programs cannot fork: a program is started once, says that it is ready, and is saved by criu; every clone
//! is a restore of that.
//!
//! ```text
//! take     check criu ── container, root read-only ── READY=1 ── all asleep ── checkpoint ── remove   a directory
//! clone    the same base, a new upper ── restore, stopped: own namespaces, cgroup, /function, stdio   a container
//! invoke   clone ── one line in ── the first answer out ── remove
//! ```
//!
//! Once it is taken, no process stands behind it, and nobody has to be asked for a clone. Its directory:
//!
//! ```text
//! DIRECTORY/             0700; appears whole, by rename from PARENT/.NAME
//!   snapshot.json        what it was taken from, and on which kernel and processor it can come back
//!   config.json          the specification, as the runtime had it
//!   images/              criu's
//!   function/            what a clone without a function has at /function: nothing
//!   clones/ID/           criu's log while a clone is restored
//!   restore.log          that of the last clone that could not be
//! ```
//!
//! The saved program's standard streams are pipes, whose other ends are not saved: those of the clone take their place. So
//! what it reads after it has said that it is ready is the clone's.

mod call;
mod keep;
mod ready;
mod record;
mod restore;
mod settle;
mod stream;
mod take;

use super::super::doctor;
use crate::error::{Error, Kind, Result};
use crate::template::definition::Definition;

pub(super) use keep::Keeper;

pub use call::{Invocation, invoke};
pub use record::Snapshot;
pub use restore::{Clone, clone};
pub use stream::Streams;
pub use take::{Recipe, take};

/// Whether snapshots can be had on this machine: to be asked before anything is started for one.
///
/// # Errors
/// [`Kind::Unsupported`], with the reason and what to do about it.
pub fn check() -> Result<()> {
    let operation = "make it";
    if !nix::unistd::geteuid().is_root() || !crate::sys::user_namespace::is_initial() {
        return Err(Error::new(Kind::Unsupported, operation, "criu wants root's rights on this machine")
            .next("run it as root, or leave '--mode snapshot' out"));
    }
    let finding = doctor::criu::examine();
    match finding.mend {
        None => Ok(()),
        Some(mend) => {
            let cause = format!("mode 'snapshot' needs criu: {}", finding.text);
            Err(Error::new(Kind::Unsupported, operation, cause).next(mend))
        }
    }
}

/// Refuses a template that no snapshot can be taken of, here or anywhere.
///
/// # Errors
/// [`Kind::Unsupported`] for one on a ring; those of [`check`].
pub fn admit(definition: &Definition) -> Result<()> {
    if let Some(ring) = &definition.ring {
        let cause = format!("mode 'snapshot' knows no rings, and it is on '{ring}'");
        return Err(Error::new(Kind::Unsupported, "make it", cause)
            .next("'regen ring export' makes an image of an entry: --image"));
    }
    check()
}

/// Refuses what cannot be said to a program that runs already.
///
/// # Errors
/// [`Kind::Usage`], naming the first of the arguments that are there.
pub fn refuse_program(template: &str, command: &[String], env: &[String], workdir: Option<&str>) -> Result<()> {
    let what = match (command.is_empty(), env.is_empty(), workdir) {
        (false, _, _) => "a command",
        (true, false, _) => "--env",
        (true, true, Some(_)) => "--workdir",
        (true, true, None) => return Ok(()),
    };
    let cause = format!("its program is already running, so {what} comes too late");
    Err(Error::new(Kind::Usage, format!("clone template '{template}'"), cause)
        .next("tell it by its standard input what to do"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_late_is_named() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let refuse = |command: &[&str], env: &[&str], workdir| {
            refuse_program("jvm", &words(command), &words(env), workdir).map_err(|error| error.to_string())
        };
        assert_eq!(refuse(&[], &[], None), Ok(()));
        assert!(refuse(&["ls"], &["A=b"], None).unwrap_err().contains("so a command comes too late"));
        assert!(refuse(&[], &["A=b"], Some("/")).unwrap_err().contains("--env"));
        assert!(refuse(&[], &[], Some("/")).unwrap_err().contains("--workdir"));
    }
}
