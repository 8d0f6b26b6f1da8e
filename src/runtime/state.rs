//! What a container is doing, computed from its record and from its process.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use oci_spec::runtime::Spec;
use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::ids::ContainerId;
use crate::runtime::record::{Phase, Record};
use crate::runtime::{StateRoot, update};
use crate::sys::process::Identity;
use crate::sys::user;

/// The status words of the runtime specification, and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Somebody is making it, or died over it.
    Creating,
    /// Its process waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its program has ended, or it was never started and its process is gone.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container as `state` and `list` show it; serialized, it is runc's JSON.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// The version of the specification that its config.json states.
    pub oci_version: String,
    /// Its id.
    pub id: ContainerId,
    /// The pid of its first process on the host; 0 if it has none.
    pub pid: i32,
    /// What it is doing.
    pub status: Status,
    /// The user's bundle.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was created.
    pub created: DateTime<Utc>,
    /// The annotations of its config.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<HashMap<String, String>>,
    /// The name of the user who created it, or their number.
    pub owner: String,
    /// Its first process, also after its end.
    #[serde(skip)]
    pub init: Option<Identity>,
    /// Its cgroups.
    #[serde(skip)]
    pub cgroup: Cgroup,
    /// What its creator attached.
    #[serde(skip)]
    pub attachment: Option<serde_json::Value>,
}

/// The state of one container.
///
/// # Errors
/// [`crate::error::Kind::NotFound`] if there is none, [`crate::error::Kind::Damaged`] if its record is unreadable.
pub fn state(root: &StateRoot, id: &ContainerId) -> Result<ContainerState> {
    let record = Record::load(root, id)?;
    let status = status(&record)?;
    Ok(describe(record, status))
}

/// What the creator of a container attached to it, without a look at what it does.
///
/// # Errors
/// As [`state`].
pub fn attachment(root: &StateRoot, id: &ContainerId) -> Result<Option<serde_json::Value>> {
    Ok(Record::load(root, id)?.attachment)
}

/// The specification that the container was made with, with the limits that hold now.
///
/// # Errors
/// As [`state`].
pub fn spec(root: &StateRoot, id: &ContainerId) -> Result<Spec> {
    let mut spec = Record::load(root, id)?.spec()?;
    update::amend(root, id, &mut spec)?;
    Ok(spec)
}

fn describe(record: Record, status: Status) -> ContainerState {
    let alive = match status {
        Status::Created | Status::Running | Status::Paused => true,
        Status::Creating | Status::Stopped => false,
    };
    ContainerState {
        oci_version: record.oci_version,
        id: record.id,
        pid: record.init.as_ref().filter(|_| alive).map_or(0, |init| init.pid),
        status,
        bundle: record.bundle,
        rootfs: record.rootfs,
        created: record.created,
        annotations: record.annotations,
        owner: user_name(record.owner),
        init: record.init,
        cgroup: record.cgroup,
        attachment: record.attachment,
    }
}

/// The status of a container from its record and its process.
pub(super) fn status(record: &Record) -> Result<Status> {
    let Some(init) = &record.init else { return Ok(Status::Creating) };
    if !init.is_alive()? {
        return Ok(Status::Stopped);
    }
    Ok(match record.phase {
        Phase::Creating => Status::Creating,
        Phase::Created | Phase::Running if record.cgroup.is_frozen() => Status::Paused,
        Phase::Created => Status::Created,
        Phase::Running => Status::Running,
    })
}

/// Read from the file, not through the C library: a name service is not worth waiting for here.
fn user_name(uid: u32) -> String {
    user::in_file(uid).map_or_else(|| uid.to_string(), |user| user.name)
}
