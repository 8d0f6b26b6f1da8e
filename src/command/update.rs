//! `update`: other limits for a container that lives.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use crate::cli::update::Update;
use crate::command::World;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::runtime;
use crate::sys::fs::read_capped;

/// More than any list of limits.
const CAP: u64 = 4 << 20;

pub(super) fn run(world: &World, arguments: &Update) -> Result<()> {
    let change = match &arguments.resources {
        Some(path) => read(path)?,
        None => given(arguments)?,
    };
    runtime::update(&world.place.root, &arguments.id, &change)
}

fn read(path: &Path) -> Result<LinuxResources> {
    let operation = || format!("read limits from {}", quote(path));
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().take(CAP).read_to_end(&mut bytes).context(operation)?;
        bytes
    } else {
        read_capped(path, CAP)?
    };
    serde_json::from_slice(&bytes).context(operation)
}

/// The flags as limits. The names are those of linux.resources.
fn given(arguments: &Update) -> Result<LinuxResources> {
    if arguments.l3_cache_schema.is_some() || arguments.mem_bw_schema.is_some() {
        let cause = "Intel RDT: classes of service are not supported";
        return Err(Error::new(Kind::Unsupported, "set a schema", cause).next("leave the schema out"));
    }
    if arguments.kernel_memory.is_some() || arguments.kernel_memory_tcp.is_some() {
        tracing::warn!("limits of kernel memory are ignored");
    }
    let cpu = section([
        ("shares", arguments.cpu_share.map(Value::from)),
        ("quota", arguments.cpu_quota.map(Value::from)),
        ("period", arguments.cpu_period.map(Value::from)),
        ("burst", arguments.cpu_burst.map(Value::from)),
        ("realtimeRuntime", arguments.cpu_rt_runtime.map(Value::from)),
        ("realtimePeriod", arguments.cpu_rt_period.map(Value::from)),
        ("cpus", arguments.cpuset_cpus.clone().map(Value::from)),
        ("mems", arguments.cpuset_mems.clone().map(Value::from)),
        ("idle", arguments.cpu_idle.map(Value::from)),
    ]);
    let memory = section([
        ("limit", arguments.memory.map(Value::from)),
        ("reservation", arguments.memory_reservation.map(Value::from)),
        ("swap", arguments.memory_swap.map(Value::from)),
    ]);
    let mut change = Map::new();
    change.extend(cpu.map(|cpu| ("cpu".to_owned(), cpu)));
    change.extend(memory.map(|memory| ("memory".to_owned(), memory)));
    change.extend(arguments.pids_limit.map(|limit| ("pids".to_owned(), json!({"limit": limit}))));
    change.extend(arguments.blkio_weight.map(|weight| ("blockIO".to_owned(), json!({"weight": weight}))));
    serde_json::from_value(Value::Object(change)).context(|| "read the limits that were given")
}

/// A part of the limits; none if nothing in it is given.
fn section<const N: usize>(fields: [(&str, Option<Value>); N]) -> Option<Value> {
    let given: Map<String, Value> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    (!given.is_empty()).then_some(Value::Object(given))
}
