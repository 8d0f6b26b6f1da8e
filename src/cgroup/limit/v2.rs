//! Limits as version 2 writes them (kernel: Documentation/admin-guide/cgroup-v2.rst). The specification speaks in terms
//! of version 1; what its numbers mean here is as runc has it.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::{Setting, page_size, rdma};
use crate::error::{Error, Kind, Result, quote};

/// What to write, in an order that is right for a fresh cgroup.
pub(super) fn plan(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    resources.cpu().iter().try_for_each(|cpu| plan_cpu(cpu, &mut settings))?;
    resources.memory().iter().try_for_each(|memory| plan_memory(memory, &mut settings))?;
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        settings.push(Setting::new("pids", "pids.max", or_max(limit)));
    }
    resources.block_io().iter().try_for_each(|io| plan_io(io, &mut settings))?;
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        settings.push(Setting::new("hugetlb", format!("hugetlb.{size}.max"), or_max(limit.limit())));
        settings.push(Setting::new("hugetlb", format!("hugetlb.{size}.rsvd.max"), or_max(limit.limit())).optional());
    }
    if let Some(network) = resources.network() {
        let asked = network.class_id().is_some_and(|id| id != 0)
            || network.priorities().as_ref().is_some_and(|list| !list.is_empty());
        if asked {
            return Err(not_here("linux.resources.network"));
        }
    }
    rdma(resources, &mut settings);
    plan_unified(resources, &mut settings)?;
    Ok(settings)
}

/// The controllers whose files [`plan`] writes.
pub(in crate::cgroup) fn wanted_controllers(resources: &LinuxResources) -> Result<Vec<&'static str>> {
    let mut wanted: Vec<&str> = plan(resources)?.iter().map(|setting| setting.controller).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted.retain(|controller| *controller != CORE);
    Ok(wanted)
}

/// What stands for the files that every cgroup has.
const CORE: &str = "cgroup";

fn not_here(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("set {what}"), "cgroup version 2 has no such limit").next("leave it out")
}

/// `-1` is everything.
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn plan_cpu(cpu: &LinuxCpu, settings: &mut Vec<Setting>) -> Result<()> {
    if cpu.realtime_period().is_some_and(|us| us != 0) || cpu.realtime_runtime().is_some_and(|us| us != 0) {
        return Err(not_here("linux.resources.cpu.realtimeRuntime"));
    }
    let mut set = |controller, file: &str, value: Option<String>| {
        settings.extend(value.map(|value| Setting::new(controller, file, value)));
    };
    set("cpuset", "cpuset.cpus", cpu.cpus().clone().filter(|cpus| !cpus.is_empty()));
    set("cpuset", "cpuset.mems", cpu.mems().clone().filter(|mems| !mems.is_empty()));
    set("cpu", "cpu.idle", cpu.idle().map(|idle| idle.to_string()));
    // An idle group has no weight, and the kernel refuses to set one.
    let shares = cpu.shares().filter(|shares| *shares != 0 && cpu.idle() != Some(1));
    set("cpu", "cpu.weight", shares.map(|shares| weight_of_shares(shares).to_string()));
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        let period = if period == 0 { DEFAULT_PERIOD } else { period };
        set("cpu", "cpu.max", Some(format!("{quota} {period}")));
    }
    set("cpu", "cpu.max.burst", cpu.burst().map(|burst| burst.to_string()));
    Ok(())
}

/// In microseconds: the kernel's own.
const DEFAULT_PERIOD: u64 = 100_000;

/// Shares, 2 to 262144, as a weight, 1 to 10000: runc's line through both ends.
pub(in crate::cgroup) fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// A block weight, 10 to 1000, as an io weight, 1 to 10000: runc's line through both ends.
pub(in crate::cgroup) fn weight_of_block_io(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9_999 / 990
}

fn plan_memory(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<()> {
    if memory.disable_oom_killer() == Some(true) {
        return Err(not_here("linux.resources.memory.disableOOMKiller"));
    }
    let limit = memory.limit().filter(|bytes| *bytes != 0);
    let swap = swap_alone(limit, memory.swap().filter(|bytes| *bytes != 0))?;
    let mut set = |file: &str, value: i64| settings.push(Setting::new("memory", file, or_max(value)));
    limit.into_iter().for_each(|bytes| set("memory.max", bytes));
    memory.reservation().filter(|bytes| *bytes != 0).into_iter().for_each(|bytes| set("memory.low", bytes));
    settings.extend(swap.map(|bytes| {
        let setting = Setting::new("memory", "memory.swap.max", or_max(bytes));
        // Without swap there is none to limit; a number is a promise that has to be kept.
        if bytes <= 0 { setting.optional() } else { setting }
    }));
    Ok(())
}

/// Version 1 limits memory and swap together, version 2 swap alone.
pub(in crate::cgroup) fn swap_alone(limit: Option<i64>, both: Option<i64>) -> Result<Option<i64>> {
    let refuse = |cause: &str| Err(Error::new(Kind::Invalid, "set linux.resources.memory.swap", cause));
    match (limit, both) {
        (Some(-1), None) | (_, Some(-1)) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (None | Some(-1), Some(_)) => refuse("unable to set swap limit without memory limit"),
        (Some(limit), Some(_)) if limit < 0 => refuse(&format!("invalid memory value: {limit}")),
        (Some(limit), Some(both)) if both < limit => refuse("memory+swap limit should be >= memory limit"),
        (Some(limit), Some(both)) => Ok(Some(both - limit)),
    }
}

fn plan_io(io: &LinuxBlockIo, settings: &mut Vec<Setting>) -> Result<()> {
    let leaves = io.weight_device().iter().flatten().any(|device| device.leaf_weight().is_some_and(|w| w != 0));
    if leaves || io.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(not_here("linux.resources.blockIO.leafWeight"));
    }
    let weighted = |own: String, converted: String| Setting::new("io", "io.bfq.weight", own).or("io.weight", converted);
    settings
        .extend(io.weight().filter(|w| *w != 0).map(|w| weighted(w.to_string(), weight_of_block_io(w).to_string())));
    for device in io.weight_device().iter().flatten() {
        let Some(weight) = device.weight() else { continue };
        let name = format!("{}:{}", device.major(), device.minor());
        settings.push(weighted(format!("{name} {weight}"), format!("{name} {}", weight_of_block_io(weight))));
    }
    for (word, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            let line = format!("{}:{} {word}={}", device.major(), device.minor(), device.rate());
            settings.push(Setting::new("io", "io.max", line));
        }
    }
    Ok(())
}

/// Files of version 2 by their names. They win over what was said in terms of version 1, so they come last.
fn plan_unified(resources: &LinuxResources, settings: &mut Vec<Setting>) -> Result<()> {
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    files.sort();
    for (file, value) in files {
        let refuse = |cause: String| {
            Err(Error::new(Kind::Invalid, format!("set linux.resources.unified {}", quote(file)), cause))
        };
        let Some((controller, _)) = file.split_once('.').filter(|_| !file.contains('/')) else {
            return refuse("it must be the name of a file of a controller".to_owned());
        };
        let known = [CORE, "cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma", "misc", "dmem", "perf_event"];
        let Some(controller) = known.into_iter().find(|name| *name == controller) else {
            return refuse(format!("controller '{controller}' is not known"));
        };
        settings.push(Setting::new(controller, file.as_str(), value));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::flat;
    use super::*;

    fn planned(resources: Value) -> Result<Vec<String>> {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        plan(&resources).map(|settings| flat(&settings))
    }

    #[test]
    fn every_limit_has_its_file() {
        let written = planned(json!({
            "cpu": {"shares": 1024, "quota": 50000, "burst": 1000, "idle": 0, "cpus": "0-1", "mems": "0"},
            "memory": {"limit": 1000, "swap": 2500, "reservation": 500, "kernel": 7},
            "pids": {"limit": -1},
            "blockIO": {"weight": 500, "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 10}]},
            "hugepageLimits": [{"pageSize": "1GB", "limit": 4096}],
            "rdma": {"mlx5": {"hcaObjects": 10}},
            "unified": {"memory.high": "900", "cgroup.max.depth": "3"},
            "network": {},
        }))
        .unwrap();
        let expected = [
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "cpu.idle=0",
            "cpu.weight=39",
            "cpu.max=50000 100000",
            "cpu.max.burst=1000",
            "memory.max=1000",
            "memory.low=500",
            "memory.swap.max=1500",
            "pids.max=max",
            "io.bfq.weight=500",
            "io.max=8:0 wiops=10",
            "hugetlb.1GB.max=4096",
            "hugetlb.1GB.rsvd.max=4096",
            "rdma.max=mlx5 hca_object=10",
            "cgroup.max.depth=3",
            "memory.high=900",
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn weights_reach_both_ends() {
        assert_eq!([1, 2, 1024, 262_144, u64::MAX].map(weight_of_shares), [1, 1, 39, 10_000, 10_000]);
        assert_eq!([1, 10, 100, 1000, u16::MAX].map(weight_of_block_io), [1, 1, 910, 10_000, 10_000]);
    }

    #[test]
    fn swap_is_what_is_over_memory() {
        assert_eq!(swap_alone(Some(10), Some(10)).unwrap(), Some(0));
        assert_eq!(swap_alone(Some(10), Some(-1)).unwrap(), Some(-1));
        assert_eq!(swap_alone(Some(-1), None).unwrap(), Some(-1));
        assert_eq!(swap_alone(Some(10), None).unwrap(), None);
        for (limit, both) in [(None, Some(5)), (Some(-1), Some(5)), (Some(10), Some(9)), (Some(-7), Some(9))] {
            assert_eq!(swap_alone(limit, both).unwrap_err().kind(), Kind::Invalid, "{limit:?} {both:?}");
        }
    }

    #[test]
    fn a_period_alone_limits_nothing_and_an_idle_group_has_no_weight() {
        assert_eq!(planned(json!({"cpu": {"period": 20000}})).unwrap(), ["cpu.max=max 20000"]);
        assert_eq!(planned(json!({"cpu": {"quota": -1}})).unwrap(), ["cpu.max=max 100000"]);
        assert_eq!(planned(json!({"cpu": {"shares": 1024, "idle": 1}})).unwrap(), ["cpu.idle=1"]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (resources, words) in [
            (json!({"unified": {"../x.y": "1"}}), "file of a controller"),
            (json!({"unified": {"nope.max": "1"}}), "'nope' is not known"),
            (json!({"network": {"classID": 1}}), "no such limit"),
            (json!({"cpu": {"realtimeRuntime": 1}}), "no such limit"),
            (json!({"memory": {"disableOOMKiller": true}}), "no such limit"),
            (json!({"blockIO": {"leafWeight": 10}}), "no such limit"),
        ] {
            let error = planned(resources.clone()).unwrap_err().to_string();
            assert!(error.contains(words), "{resources}: {error}");
        }
    }

    #[test]
    fn the_controllers_of_the_files_are_wanted_and_no_others() {
        let resources = json!({"memory": {"limit": 5}, "unified": {"cgroup.max.depth": "1", "pids.max": "3"}});
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        assert_eq!(wanted_controllers(&resources).unwrap(), ["memory", "pids"]);
    }
}
