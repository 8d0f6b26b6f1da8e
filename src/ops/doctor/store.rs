//! The store: whether uppers can lie there, and whether there is room.

use std::fs;
use std::path::Path;

use rustix::fs::StatVfs;

use super::Finding;
use crate::config::{Floor, human_bytes};
use crate::error::{Context, Error, Result, quote};
use crate::ops::Place;
use crate::overlay::{Detached, Fate, Stack, Upper};
use crate::store::{self, Store};
use crate::sys::fs::{mount_point_of, space};
use crate::sys::mount_table;

/// With less than this part of the inodes free, many small files are the next thing that fails.
const INODES_SHARE: u64 = 20;

pub(super) fn examine(place: &Place) -> Vec<Finding> {
    let directory = &place.store;
    let mut findings = vec![match look(directory) {
        Ok(found) => judge(directory, &found),
        Err(error) => refuse(directory, &error),
    }];
    match space(store::nearest(directory)) {
        Ok(space) => findings.extend([judge_space(&space, place.config.store.min_free), judge_inodes(&space)]),
        Err(error) => findings.push(Finding::unseen("free space", &error)),
    }
    findings
}

/// What was found of a store.
#[derive(Debug)]
struct Found {
    /// The file system's type, as the mount table has it.
    kind: String,
    /// Whether there is a store.
    present: bool,
    /// What a trial mount said; `None` if there was none to be made.
    trial: Option<Result<(), Error>>,
}

fn look(directory: &Path) -> Result<Found> {
    let nearest = store::nearest(directory);
    store::check_file_system(directory)?;
    let store = Store::open_existing(directory)?;
    let kind = file_system_type(nearest)?;
    // An ordinary user mounts overlays in a user namespace only.
    let privileged = nix::unistd::geteuid().is_root();
    let trial = store.as_ref().filter(|_| privileged).map(try_mount);
    Ok(Found { kind, present: store.is_some(), trial })
}

fn file_system_type(path: &Path) -> Result<String> {
    let point = mount_point_of(path)?;
    let table = mount_table::read()?;
    Ok(parse_type(&table, &point).unwrap_or_else(|| "an unknown file system".to_owned()))
}

/// The type of what is mounted last at a place.
fn parse_type(table: &str, point: &Path) -> Option<String> {
    mount_table::parse(table).rfind(|mount| mount.point == point).map(|mount| mount.kind.to_owned())
}

/// Whether the kernel makes a writable overlay there. It is attached nowhere, and gone with this call.
fn try_mount(store: &Store) -> Result<()> {
    let stage = store.layers().stage()?;
    let make = |name: &str| {
        let path = stage.directory().join(name);
        fs::create_dir(&path).context(|| format!("create {}", quote(&path)))?;
        Ok::<_, Error>(path)
    };
    let stack = Stack {
        lowers: vec![make("lower")?],
        upper: Some(Upper { directory: make("upper")?, work: make("work")?, fate: Fate::Kept }),
        class: store.class(),
    };
    Detached::overlay(&stack, "a trial").map(drop)
}

fn judge(directory: &Path, found: &Found) -> Finding {
    let subject = "store";
    let (place, kind) = (quote(directory), &found.kind);
    match (&found.trial, found.present) {
        (Some(Err(error)), _) => refuse(directory, error),
        (Some(Ok(())), _) => Finding::ok(subject, format!("{place} on {kind} holds uppers")),
        (None, true) => Finding::ok(subject, format!("{place} is on {kind}")),
        (None, false) => Finding::ok(subject, format!("{place} is not there yet; it would lie on {kind}")),
    }
}

fn refuse(directory: &Path, error: &Error) -> Finding {
    let mend = format!("regen --store DIR, with DIR on ext4, xfs, btrfs or tmpfs instead of {}", quote(directory));
    Finding::fail("store", error.without_next_step(), mend)
}

fn judge_space(space: &StatVfs, floor: Floor) -> Finding {
    let subject = "free space";
    let (total, free) = (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize);
    let floor = floor.bytes(total);
    let text = format!("{} of {} are free", human_bytes(free), human_bytes(total));
    let mend = "regen ring set RING --depth N, or regen ring rm RING";
    if free < floor {
        let text = format!("{text}, less than store.min-free, {}: nothing is packed", human_bytes(floor));
        Finding::fail(subject, text, mend)
    } else if free < floor.saturating_mul(2) {
        Finding::warn(subject, format!("{text}, store.min-free is {}", human_bytes(floor)), mend)
    } else {
        Finding::ok(subject, text)
    }
}

fn judge_inodes(space: &StatVfs) -> Finding {
    let subject = "inodes";
    let (total, free) = (space.f_files, space.f_favail);
    // btrfs makes them as they are needed, and says that there are none.
    if total == 0 {
        return Finding::ok(subject, "made as they are needed");
    }
    let text = format!("{free} of {total} are free");
    let mend = "regen ring set RING --depth N, or regen ring rm RING";
    if free == 0 {
        Finding::fail(subject, text, mend)
    } else if free < total / INODES_SHARE {
        Finding::warn(subject, text, mend)
    } else {
        Finding::ok(subject, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::ops::doctor::Status;

    fn space_of(free_percent: u64, inodes: u64, free_inodes: u64) -> StatVfs {
        let mut space = crate::sys::fs::space(Path::new("/")).unwrap();
        (space.f_frsize, space.f_blocks, space.f_bavail) = (4096, 1_000_000, free_percent * 10_000);
        (space.f_files, space.f_favail) = (inodes, free_inodes);
        space
    }

    #[test]
    fn room_is_judged_by_the_floor_under_which_nothing_is_packed() {
        let status = |percent| judge_space(&space_of(percent, 0, 0), Floor::Percent(5)).status;
        assert_eq!((status(50), status(9), status(4)), (Status::Ok, Status::Warn, Status::Fail));
        let status = |total, free| judge_inodes(&space_of(0, total, free)).status;
        assert_eq!((status(1000, 500), status(1000, 10), status(1000, 0)), (Status::Ok, Status::Warn, Status::Fail));
        assert_eq!(status(0, 0), Status::Ok);
    }

    #[test]
    fn a_store_that_the_kernel_refuses_is_a_failure_and_one_that_is_not_there_is_none() {
        let found = |present, trial| Found { kind: "ext4".into(), present, trial };
        let status = |found: &Found| judge(Path::new("/s"), found).status;
        assert_eq!(status(&found(false, None)), Status::Ok);
        assert_eq!(status(&found(true, Some(Ok(())))), Status::Ok);
        let error = Error::new(Kind::Unsupported, "mount", "invalid argument");
        assert_eq!(status(&found(true, Some(Err(error)))), Status::Fail);
    }

    #[test]
    fn the_type_is_that_of_the_uppermost_mount() {
        let table = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /var rw - xfs /dev/b rw\n3 2 0:6 / /var rw shared:1 - tmpfs t rw\n";
        assert_eq!(parse_type(table, Path::new("/var")).as_deref(), Some("tmpfs"));
        assert_eq!(parse_type(table, Path::new("/nowhere")), None);
    }
}
