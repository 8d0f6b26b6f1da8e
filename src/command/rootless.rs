//! Which verbs an ordinary user's call has to enter a user namespace for.

use nix::unistd::geteuid;
use oci_spec::runtime::LinuxNamespaceType;

use super::World;
use crate::bundle::Bundle;
use crate::cli::handover::Handover;
use crate::cli::{Cli, Command, Create, Origin, Rootless, Run};
use crate::error::Result;
use crate::ids::ContainerId;
use crate::runtime::rootless;
use crate::sys::exe;

/// Set once we are in a user namespace that we entered.
pub(super) const MARK: &str = "REGEN_OCI_ROOTLESS";

/// What a verb of an ordinary user needs.
#[derive(Debug, PartialEq, Eq)]
enum Need<'a> {
    /// What it has.
    Nothing,
    /// A user namespace in which it is root.
    Own,
    /// That of a container, if it lives, else its own.
    Container(&'a ContainerId),
}

/// Enters the user namespace that the verb needs, if the caller is an ordinary user.
///
/// # Errors
/// If there can be none.
pub(super) fn enter(cli: &Cli) -> Result<()> {
    if geteuid().is_root() || cli.global.rootless == Rootless::False {
        return Ok(());
    }
    match need(&cli.command) {
        Need::Nothing => return Ok(()),
        Need::Own => rootless::enter_own()?,
        Need::Container(id) => {
            let place = World::open(&cli.global)?.place;
            if !rootless::join_that_of(&place.root, id)? {
                rootless::enter_own()?;
            }
        }
    }
    exe::remember(MARK);
    Ok(())
}

fn need(command: &Command) -> Need<'_> {
    match command {
        Command::Create(Create { bundle, .. }) => for_bundle(bundle),
        Command::Run(Run { origin: Origin { bundle, rootfs: None, image: None }, ring: None, .. }) => {
            for_bundle(bundle.as_deref().unwrap_or(std::path::Path::new(".")))
        }
        Command::Run(_)
        | Command::Ring(_)
        | Command::Worker
        | Command::Sender
        | Command::Waker(_)
        | Command::Snapshots(_)
        | Command::Keeper(_) => Need::Own,
        Command::TemplateKeeper(_) | Command::TemplateWorker(_) => Need::Own,
        Command::Handover(Handover::Undo { .. }) => Need::Own,
        Command::Handover(Handover::Prepare(of)) => Need::Container(&of.id),
        Command::Start(of) | Command::Pause(of) | Command::Resume(of) => Need::Container(&of.id),
        Command::Kill(kill) => Need::Container(&kill.id),
        Command::Delete(delete) => Need::Container(&delete.id),
        Command::Exec(exec) => Need::Container(&exec.id),
        Command::Ps(ps) => Need::Container(&ps.id),
        Command::Update(update) => Need::Container(&update.id),
        Command::Events(events) => Need::Container(&events.id),
        Command::Checkpoint(checkpoint) => Need::Container(&checkpoint.id),
        Command::Restore(restore) => for_bundle(&restore.bundle),
        Command::State(_)
        | Command::List(_)
        | Command::Spec(_)
        | Command::Features
        | Command::Node(_)
        | Command::Op(_)
        | Command::Serve(_)
        | Command::Service(_)
        | Command::Template(_)
        | Command::Clone(_)
        | Command::Invoke(_)
        | Command::Call(_)
        | Command::Resolve(_)
        | Command::Install(_)
        | Command::Doctor(_)
        | Command::Completions(_)
        | Command::Man(_) => Need::Nothing,
    }
}

/// A bundle that brings a user namespace of its own is made as it says: its ids are those of the host.
fn for_bundle(directory: &std::path::Path) -> Need<'static> {
    // What is wrong with it is said by the verb.
    let Ok(bundle) = Bundle::load(directory) else { return Need::Nothing };
    let namespaces = bundle.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let own = namespaces.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    if own { Need::Nothing } else { Need::Own }
}
