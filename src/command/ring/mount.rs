//! `ring mount` and `ring umount`: a saved state to look around in.

use std::path::PathBuf;

use serde::Serialize;

use super::{open, print, store};
use crate::cli::look::{Mount, Unmount};
use crate::command::{World, rootless};
use crate::error::{Error, Kind, Result, quote};
use crate::ids::RingName;
use crate::ring::look::{check_hides_nothing, mount_point, unmount as take_away};
use crate::ring::selector::Target;

#[derive(Debug, Serialize)]
struct MountView {
    ring: RingName,
    /// The number of the entry; null for the bare base.
    seq: Option<u64>,
    directory: PathBuf,
}

pub(super) fn run(world: &World, arguments: &Mount) -> Result<()> {
    let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
    let ring = open(world, &name)?;
    if std::env::var_os(rootless::MARK).is_some() {
        let cause = "the mount would end with this command: an ordinary user's is in a namespace of its own";
        let operation = format!("mount '{name}{selector}' at {}", quote(&arguments.directory));
        return Err(Error::new(Kind::Unsupported, operation, cause)
            .next("say it within 'unshare -rm' or 'podman unshare', or use 'regen ring restore --to'"));
    }
    let directory = mount_point(&arguments.directory)?;
    check_hides_nothing(&directory, [&world.place.store, world.place.root.path()])?;
    let look = ring.look(&selector, world.place.root.path())?;
    let view = MountView { ring: name, seq: look.entry(), directory };
    look.mount(&view.directory)?;
    print(arguments.output, &view, || {
        let entry = view.seq.map_or("base".to_owned(), |seq| seq.to_string());
        format!("{}: @{entry} is at {} until 'regen ring umount'\n", view.ring, view.directory.display())
    })
}

pub(super) fn unmount(world: &World, arguments: &Unmount) -> Result<()> {
    let directory = mount_point(&arguments.directory)?;
    match store(world)? {
        Some(store) => take_away(&store, &directory),
        None => {
            let cause = format!("there is no store at {}", quote(&world.place.store));
            Err(Error::new(Kind::NotFound, format!("unmount {}", quote(&directory)), cause))
        }
    }
}
