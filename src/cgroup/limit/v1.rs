//! Limits as version 1 writes them (kernel: Documentation/admin-guide/cgroup-v1; names and rules as in runc).

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources};

use super::{Setting, page_size, rdma};
use crate::error::{Error, Kind, Result};

/// What to write, in an order that is right for fresh cgroups.
pub(super) fn plan(resources: &LinuxResources) -> Result<Vec<Setting>> {
    if resources.unified().as_ref().is_some_and(|map| !map.is_empty()) {
        let cause = "this machine has cgroup version 1";
        return Err(Error::new(Kind::Unsupported, "set linux.resources.unified", cause).next("leave it out"));
    }
    let mut settings = Vec::new();
    resources.cpu().iter().for_each(|cpu| plan_cpu(cpu, &mut settings));
    resources.memory().iter().try_for_each(|memory| plan_memory(memory, &mut settings))?;
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        settings.push(Setting::new("pids", "pids.max", if limit < 0 { "max".into() } else { limit.to_string() }));
    }
    resources.block_io().iter().for_each(|io| plan_block_io(io, &mut settings));
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        settings.push(Setting::new("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), limit.limit()));
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        settings.push(Setting::new("hugetlb", reserved, limit.limit()).optional());
    }
    resources.network().iter().for_each(|network| plan_network(network, &mut settings));
    rdma(resources, &mut settings);
    Ok(settings)
}

fn plan_cpu(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    let mut set = |controller, file: &str, value: Option<String>| {
        settings.extend(value.map(|value| Setting::new(controller, file, value)));
    };
    let text = |value: Option<u64>| value.filter(|value| *value != 0).map(|value| value.to_string());
    set("cpuset", "cpuset.cpus", cpu.cpus().clone().filter(|cpus| !cpus.is_empty()));
    set("cpuset", "cpuset.mems", cpu.mems().clone().filter(|mems| !mems.is_empty()));
    set("cpu", "cpu.rt_period_us", text(cpu.realtime_period()));
    set("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime().filter(|us| *us != 0).map(|us| us.to_string()));
    set("cpu", "cpu.shares", text(cpu.shares()));
    set("cpu", "cpu.cfs_period_us", text(cpu.period()));
    set("cpu", "cpu.cfs_quota_us", cpu.quota().filter(|quota| *quota != 0).map(|quota| quota.to_string()));
    set("cpu", "cpu.cfs_burst_us", cpu.burst().map(|burst| burst.to_string()));
    set("cpu", "cpu.idle", cpu.idle().map(|idle| idle.to_string()));
}

fn plan_memory(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<()> {
    let limit = memory.limit().filter(|bytes| *bytes != 0);
    let swap = memory.swap().filter(|bytes| *bytes != 0);
    let set = |file: &str, value: i64| Setting::new("memory", file, value);
    settings.extend(limit.map(|bytes| set("memory.limit_in_bytes", bytes)));
    match (limit, swap) {
        (_, Some(bytes)) => settings.push(set("memory.memsw.limit_in_bytes", bytes)),
        // All of memory without a word about swap means all of both; a kernel may count no swap.
        (Some(-1), None) => settings.push(set("memory.memsw.limit_in_bytes", -1).optional()),
        (_, None) => {}
    }
    settings.extend(memory.kernel_tcp().filter(|bytes| *bytes != 0).map(|b| set("memory.kmem.tcp.limit_in_bytes", b)));
    settings.extend(memory.reservation().filter(|bytes| *bytes != 0).map(|b| set("memory.soft_limit_in_bytes", b)));
    if memory.disable_oom_killer() == Some(true) {
        settings.push(set("memory.oom_control", 1));
    }
    match memory.swappiness() {
        // Older engines write -1 for "leave it".
        None | Some(u64::MAX) => {}
        Some(value @ 0..=100) => settings.push(Setting::new("memory", "memory.swappiness", value)),
        Some(value) => {
            let cause = format!("invalid memory swappiness value: {value}");
            return Err(Error::new(Kind::Invalid, "set memory swappiness", cause).next("the valid range is 0 to 100"));
        }
    }
    Ok(())
}

fn plan_block_io(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    let weighted = |name: &str, value: &str| {
        Setting::new("blkio", format!("blkio.{name}"), value).or(format!("blkio.bfq.{name}"), value)
    };
    settings.extend(io.weight().filter(|w| *w != 0).map(|w| weighted("weight", &w.to_string())));
    settings.extend(io.leaf_weight().filter(|w| *w != 0).map(|w| weighted("leaf_weight", &w.to_string())));
    for device in io.weight_device().iter().flatten() {
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        settings.extend(device.weight().map(|w| weighted("weight_device", &line(w))));
        settings.extend(device.leaf_weight().map(|w| weighted("leaf_weight_device", &line(w))));
    }
    for (file, devices) in [
        ("read_bps_device", io.throttle_read_bps_device()),
        ("write_bps_device", io.throttle_write_bps_device()),
        ("read_iops_device", io.throttle_read_iops_device()),
        ("write_iops_device", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            settings.push(Setting::new("blkio", format!("blkio.throttle.{file}"), line));
        }
    }
}

fn plan_network(network: &LinuxNetwork, settings: &mut Vec<Setting>) {
    settings.extend(network.class_id().filter(|id| *id != 0).map(|id| Setting::new("net_cls", "net_cls.classid", id)));
    for interface in network.priorities().iter().flatten() {
        let line = format!("{} {}", interface.name(), interface.priority());
        settings.push(Setting::new("net_prio", "net_prio.ifpriomap", line));
    }
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
            "cpu": {"shares": 512, "quota": 50000, "period": 100_000, "burst": 1000, "idle": 0, "cpus": "0", "mems": "0",
                    "realtimeRuntime": 950, "realtimePeriod": 1000},
            "memory": {"limit": 1000, "swap": 2000, "reservation": 500, "kernel": 7, "kernelTCP": 8, "swappiness": 60,
                       "disableOOMKiller": true},
            "pids": {"limit": 10},
            "blockIO": {"weight": 100, "leafWeight": 50, "weightDevice": [{"major": 8, "minor": 0, "weight": 20}],
                        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
            "network": {"classID": 7, "priorities": [{"name": "lo", "priority": 3}]},
            "rdma": {"mlx5": {"hcaHandles": 3, "hcaObjects": 10}},
        }))
        .unwrap();
        let expected = [
            "cpuset.cpus=0",
            "cpuset.mems=0",
            "cpu.rt_period_us=1000",
            "cpu.rt_runtime_us=950",
            "cpu.shares=512",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "cpu.cfs_burst_us=1000",
            "cpu.idle=0",
            "memory.limit_in_bytes=1000",
            "memory.memsw.limit_in_bytes=2000",
            "memory.kmem.tcp.limit_in_bytes=8",
            "memory.soft_limit_in_bytes=500",
            "memory.oom_control=1",
            "memory.swappiness=60",
            "pids.max=10",
            "blkio.weight=100",
            "blkio.leaf_weight=50",
            "blkio.weight_device=8:0 20",
            "blkio.throttle.read_bps_device=8:0 1024",
            "hugetlb.2MB.limit_in_bytes=4096",
            "hugetlb.2MB.rsvd.limit_in_bytes=4096",
            "net_cls.classid=7",
            "net_prio.ifpriomap=lo 3",
            "rdma.max=mlx5 hca_handle=3 hca_object=10",
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn zero_is_not_given_and_minus_one_is_everything() {
        assert_eq!(
            planned(json!({"cpu": {"shares": 0, "quota": 0}, "memory": {"limit": 0}, "pids": {"limit": 0}})).unwrap(),
            [""; 0]
        );
        assert_eq!(
            planned(json!({"cpu": {"quota": -1}, "pids": {"limit": -1}})).unwrap(),
            ["cpu.cfs_quota_us=-1", "pids.max=max"]
        );
        let both = ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"];
        assert_eq!(planned(json!({"memory": {"limit": -1}})).unwrap(), both);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let refused = |resources| planned(resources).unwrap_err().to_string();
        assert!(refused(json!({"memory": {"swappiness": 101}})).contains("0 to 100"));
        assert!(refused(json!({"unified": {"memory.max": "1"}})).contains("version 1"));
        assert!(refused(json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]})).contains("page size"));
        assert_eq!(planned(json!({"memory": {"swappiness": u64::MAX}, "unified": {}})).unwrap(), [""; 0]);
    }
}
