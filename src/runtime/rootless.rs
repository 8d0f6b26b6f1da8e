//! The user namespace in which an ordinary user's calls work.
//!
//! An ordinary user may not mount, nor give files to other ids. In a user namespace of its own it may: there it is
//! root, its subordinate ids (subuid(5)) are the others, and what it makes on disk belongs to ids that are its own. So
//! a verb that mounts, or touches what a container made, enters one first. As the maps are always the same, the files
//! of one call are those of the next.
//!
//! Processes are another matter: nobody has rights over a process in a user namespace beside its own. A verb for a
//! living container therefore joins the namespace of that container's first process, whose owner may do so.

use std::fs;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder};

use super::spawn::write_maps;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::StateRoot;
use crate::runtime::record::Record;
use crate::sys::channel::Channel;
use crate::sys::clone::{self, Birth, Parent};
use crate::sys::namespace;
use crate::sys::process::ExitStatus;
use crate::sys::user::{self, Subordinate, subordinates};

/// Enters a new user namespace, and a mount namespace that it owns: the caller's own id becomes 0, its subordinate ids
/// those from 1 on. Must be called single-threaded.
///
/// # Errors
/// [`Kind::Unsupported`] if this user may make none, else those of newuidmap(1).
pub fn enter_own() -> Result<()> {
    let operation = || "make a user namespace";
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let name = user::by_id(uid.as_raw()).context(operation)?.map(|user| user.name);
    let maps = linux(
        plan_map(uid.as_raw(), subordinates("/etc/subuid", name.as_deref(), uid.as_raw())?)?,
        plan_map(gid.as_raw(), subordinates("/etc/subgid", name.as_deref(), uid.as_raw())?)?,
    );
    let own_pid = nix::unistd::getpid().as_raw();
    let (here, there) = Channel::pair()?;
    let mut here = Some(here);
    // The maps come from outside: newuidmap(1) has no rights once it is inside.
    let birth = Birth { namespaces: CloneFlags::empty(), cgroup: None, parent: Parent::Caller };
    let outsider = clone::spawn(birth, || {
        // The copy's own end of ours: while that is open it would never hear that we are gone.
        drop(here.take());
        write_from_outside(&there, &maps, own_pid)
    })?;
    drop(there);
    let made = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS);
    let told = match (&made, &here) {
        (Ok(()), Some(here)) => {
            here.send(b"!", &[])?;
            here.receive()?
        }
        (Err(_), _) | (_, None) => None,
    };
    drop(here);
    let status = outsider.reap()?;
    made.map_err(|errno| refused(&errno.desc().to_lowercase()))?;
    match (status, told) {
        (Some(ExitStatus::Code(0)), _) => Ok(()),
        (_, Some(told)) => {
            let error: Error = serde_json::from_slice(&told.bytes).context(operation)?;
            Err(error.during(operation()))
        }
        (_, None) => Err(Error::new(Kind::System, operation(), "the process that writes its maps has died")),
    }
}

fn refused(cause: &str) -> Error {
    let next = "let root allow it: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and \
        kernel.apparmor_restrict_unprivileged_userns, where there is one";
    Error::new(Kind::Unsupported, "make a user namespace", cause).next(next)
}

/// What the process does that stays outside. Returns its exit status.
fn write_from_outside(channel: &Channel, maps: &Linux, pid: i32) -> i32 {
    let Ok(Some(_)) = channel.receive() else { return 1 };
    let Err(error) = write_maps(maps, pid) else { return 0 };
    // If it cannot be said the caller hears that this process has died.
    let _ = serde_json::to_vec(&error).map(|text| channel.send(&text, &[]));
    1
}

/// Joins the user namespace of a container's first process, if that lives in another one, and makes a mount namespace
/// there. `Ok(false)` if there is no such process. Must be called single-threaded.
///
/// # Errors
/// Those of setns(2).
pub fn join_that_of(root: &StateRoot, id: &ContainerId) -> Result<bool> {
    let operation = || format!("join the user namespace of container '{id}'");
    let Ok(record) = Record::load(root, id) else { return Ok(false) };
    let Some(process) = record.init.as_ref().map(crate::sys::process::Identity::open).transpose()?.flatten() else {
        return Ok(false);
    };
    let path = format!("/proc/{}/ns/user", process.pid());
    let namespace = match namespace::open(Path::new(&path), CloneFlags::CLONE_NEWUSER) {
        Ok(namespace) => namespace,
        // It has just ended, or is another user's: the verb itself will say so.
        Err(_) => return Ok(false),
    };
    let link = |path: &str| fs::read_link(path).context(operation);
    if link(&path)? == link("/proc/self/ns/user")? {
        return Ok(false);
    }
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER).context(operation)?;
    unshare(CloneFlags::CLONE_NEWNS).context(operation)?;
    Ok(true)
}

fn linux(users: Vec<LinuxIdMapping>, groups: Vec<LinuxIdMapping>) -> Linux {
    let mut linux = Linux::default();
    linux.set_uid_mappings(Some(users)).set_gid_mappings(Some(groups));
    linux
}

/// One's own id, then the subordinate ones, without gaps inside.
fn plan_map(own: u32, subordinates: Vec<Subordinate>) -> Result<Vec<LinuxIdMapping>> {
    let line = |inside: u32, outside: u32, size: u32| {
        LinuxIdMappingBuilder::default()
            .container_id(inside)
            .host_id(outside)
            .size(size)
            .build()
            .map_err(|error| Error::new(Kind::Invalid, "plan the maps of a user namespace", error.to_string()))
    };
    let mut lines = vec![line(0, own, 1)?];
    let mut inside: u32 = 1;
    for range in subordinates {
        lines.push(line(inside, range.first, range.count)?);
        let cause = || Error::new(Kind::Invalid, "add up subordinate ids", "there are more than 4294967295");
        inside = inside.checked_add(range.count).ok_or_else(cause)?;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_inside_have_no_gaps_and_begin_with_ones_own() {
        let ranges = vec![Subordinate { first: 100_000, count: 10 }, Subordinate { first: 5, count: 2 }];
        let map: Vec<_> = plan_map(1000, ranges)
            .unwrap()
            .iter()
            .map(|line| [line.container_id(), line.host_id(), line.size()])
            .collect();
        assert_eq!(map, [[0, 1000, 1], [1, 100_000, 10], [11, 5, 2]]);
        let too_many = vec![Subordinate { first: 1, count: u32::MAX }, Subordinate { first: 1, count: 1 }];
        assert!(plan_map(0, too_many).is_err());
    }
}
