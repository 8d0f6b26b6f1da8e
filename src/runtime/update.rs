//! Update: other limits for a container that lives.
//!
//! What was set is kept in `resources.json` in the container's directory: the limits of its specification and of all
//! updates, the last of each. So one half of a pair that belongs together (quota and period, memory and swap) may be
//! given alone.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources, Spec};
use serde_json::Value;

use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::record::{self, Record};
use crate::runtime::{StateRoot, Status, state};
use crate::sys::fs::{Durability, read_capped, replace_file};

const FILE: &str = "resources.json";

/// Limits are small, but there may be one for each block device.
const CAP: u64 = 4 << 20;

/// Sets the limits that are given; what is zero, empty or left out stays as it is. Device rules are not changed.
///
/// # Errors
/// [`Kind::State`] with the words "container not running" if it has ended; those of the limits, and then the old
/// values are written again as far as that goes.
pub fn update(root: &StateRoot, id: &ContainerId, change: &LinuxResources) -> Result<()> {
    let operation = || format!("update container '{id}'");
    let _lock = record::lock(root, id)?;
    let record = Record::load(root, id)?;
    match state::status(&record)? {
        Status::Created | Status::Running | Status::Paused => {}
        Status::Creating | Status::Stopped => {
            return Err(Error::new(Kind::State, operation(), "container not running"));
        }
    }
    let before =
        state::spec(root, id)?.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let after = merge(&before, change).context(operation)?;
    if let Err(error) = record.cgroup.apply(&with_pairs(change, &after)) {
        if let Err(second) = record.cgroup.apply(&before) {
            tracing::warn!("put the limits of container '{id}' back: {second}");
        }
        return Err(error.during(operation()));
    }
    let bytes = serde_json::to_vec(&after).context(operation)?;
    replace_file(&root.container(id), FILE, &bytes, Durability::Volatile).context(operation)
}

/// Puts the limits that hold now into a container's specification.
pub(super) fn amend(root: &StateRoot, id: &ContainerId, spec: &mut Spec) -> Result<()> {
    let path = root.container(id).join(FILE);
    let bytes = match read_capped(&path, CAP) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let resources = serde_json::from_slice(&bytes).context(|| format!("read the limits of container '{id}'"))?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_resources(Some(resources));
    }
    Ok(())
}

/// The limits that hold after a change.
fn merge(before: &LinuxResources, change: &LinuxResources) -> Result<LinuxResources> {
    let operation = || "merge the limits";
    let mut merged = serde_json::to_value(before).context(operation)?;
    let mut change = serde_json::to_value(change).context(operation)?;
    if let Some(change) = change.as_object_mut() {
        change.remove("devices");
    }
    overlay(&mut merged, change);
    serde_json::from_value(merged).context(operation)
}

/// Values that say nothing change nothing. For these two zero is a value.
const ZERO_MEANS_ZERO: [&str; 2] = ["idle", "burst"];

fn overlay(below: &mut Value, above: Value) {
    let Value::Object(above) = above else { return };
    if !below.is_object() {
        *below = Value::Object(serde_json::Map::new());
    }
    let Value::Object(below) = below else { return };
    for (key, value) in above {
        let silent = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0) && !ZERO_MEANS_ZERO.contains(&key.as_str()),
            Value::Bool(_) | Value::Object(_) => false,
        };
        match value {
            _ if silent => {}
            Value::Object(_) => overlay(below.entry(key).or_insert(Value::Null), value),
            other => drop(below.insert(key, other)),
        }
    }
}

/// The change, with the other half of each pair that it touches.
fn with_pairs(change: &LinuxResources, after: &LinuxResources) -> LinuxResources {
    let mut whole = change.clone();
    if let (Some(cpu), Some(known)) = (change.cpu(), after.cpu())
        && (cpu.quota().is_some_and(|quota| quota != 0) || cpu.period().is_some_and(|period| period != 0))
    {
        let mut cpu: LinuxCpu = cpu.clone();
        cpu.set_quota(known.quota()).set_period(known.period());
        whole.set_cpu(Some(cpu));
    }
    if let (Some(memory), Some(known)) = (change.memory(), after.memory())
        && (memory.limit().is_some_and(|limit| limit != 0) || memory.swap().is_some_and(|swap| swap != 0))
    {
        let mut memory: LinuxMemory = *memory;
        memory.set_limit(known.limit()).set_swap(known.swap());
        whole.set_memory(Some(memory));
    }
    whole
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resources(value: Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_change_keeps_what_it_does_not_speak_of() {
        let before = resources(json!({
            "memory": {"limit": 100, "swap": 200}, "cpu": {"shares": 5, "quota": 10, "idle": 1}, "pids": {"limit": 9},
            "devices": [{"allow": false, "access": "rwm"}],
        }));
        let change = resources(json!({
            "memory": {"limit": 150, "swap": 0}, "cpu": {"period": 1000, "cpus": "", "idle": 0}, "pids": {"limit": 0},
            "devices": [{"allow": true}], "unified": {"memory.high": "7"},
        }));
        let after = merge(&before, &change).unwrap();
        let expected = resources(json!({
            "memory": {"limit": 150, "swap": 200}, "cpu": {"shares": 5, "quota": 10, "period": 1000, "idle": 0},
            "pids": {"limit": 9}, "devices": [{"allow": false, "access": "rwm"}], "unified": {"memory.high": "7"},
        }));
        assert_eq!(after, expected);
        let whole = with_pairs(&change, &after);
        assert_eq!(whole.memory().unwrap().swap(), Some(200));
        let cpu = whole.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period(), cpu.shares()), (Some(10), Some(1000), None));
    }

    #[test]
    fn a_change_to_nothing_is_everything() {
        let change = resources(json!({"pids": {"limit": 3}}));
        assert_eq!(merge(&LinuxResources::default(), &change).unwrap().pids().unwrap().limit(), 3);
        assert_eq!(with_pairs(&change, &change), change);
    }
}
