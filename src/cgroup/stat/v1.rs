//! The numbers of version 1.

use std::io;
use std::path::Path;

use super::{BlockIo, BlockIoEntry, Cpu, CpuSet, HugeTlb, MemoryEntry, Stats, number, page_sizes, rdma, table, text};
use crate::cgroup::Cgroup;

/// `cpuacct.stat` counts in these, whatever the kernel's own clock is (USER_HZ).
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> io::Result<Stats> {
    let mut stats = Stats::default();
    if let Some(directory) = cgroup.directory("cpuacct") {
        read_usage(directory, &mut stats.cpu)?;
    }
    if let Some(directory) = cgroup.directory("cpu") {
        let counted = table(&directory.join("cpu.stat"))?;
        let get = |name: &str| counted.get(name).copied().unwrap_or(0);
        stats.cpu.throttling.periods = get("nr_periods");
        stats.cpu.throttling.throttled_periods = get("nr_throttled");
        stats.cpu.throttling.throttled_time = get("throttled_time");
    }
    if let Some(directory) = cgroup.directory("cpuset") {
        stats.cpuset = read_cpuset(directory)?;
    }
    if let Some(directory) = cgroup.directory("memory") {
        read_memory(directory, &mut stats)?;
    }
    if let Some(directory) = cgroup.directory("pids") {
        stats.pids.current = number(&directory.join("pids.current"))?;
        stats.pids.limit = Some(number(&directory.join("pids.max"))?).filter(|max| *max != u64::MAX).unwrap_or(0);
    }
    if let Some(directory) = cgroup.directory("blkio") {
        stats.blkio = read_block_io(directory)?;
    }
    if let Some(directory) = cgroup.directory("hugetlb") {
        for size in page_sizes() {
            let file = |name: &str| number(&directory.join(format!("hugetlb.{size}.{name}")));
            let entry =
                HugeTlb { usage: file("usage_in_bytes")?, max: file("max_usage_in_bytes")?, failcnt: file("failcnt")? };
            stats.hugetlb.insert(size, entry);
        }
    }
    if let Some(directory) = cgroup.directory("rdma") {
        stats.rdma = rdma(directory)?;
    }
    Ok(stats)
}

fn read_usage(directory: &Path, cpu: &mut Cpu) -> io::Result<()> {
    let usage = &mut cpu.usage;
    usage.total = number(&directory.join("cpuacct.usage"))?;
    let each = text(&directory.join("cpuacct.usage_percpu"))?;
    usage.percpu = each.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let ticks = table(&directory.join("cpuacct.stat"))?;
    let time = |name: &str| ticks.get(name).copied().unwrap_or(0).saturating_mul(NANOSECONDS_PER_TICK);
    usage.kernel = time("system");
    usage.user = time("user");
    // "cpu user system", then a line per processor.
    for line in text(&directory.join("cpuacct.usage_all"))?.lines().skip(1) {
        let mut words = line.split(' ').skip(1).map(|word| word.parse().unwrap_or(0));
        usage.percpu_user.push(words.next().unwrap_or(0));
        usage.percpu_kernel.push(words.next().unwrap_or(0));
    }
    Ok(())
}

fn read_cpuset(directory: &Path) -> io::Result<CpuSet> {
    let file = |name: &str| number(&directory.join(format!("cpuset.{name}")));
    let list = |name: &str| -> io::Result<Vec<u16>> { Ok(parse_list(&text(&directory.join(name))?)) };
    let level = text(&directory.join("cpuset.sched_relax_domain_level"))?;
    Ok(CpuSet {
        cpus: list("cpuset.cpus")?,
        cpu_exclusive: file("cpu_exclusive")?,
        mems: list("cpuset.mems")?,
        mem_hardwall: file("mem_hardwall")?,
        mem_exclusive: file("mem_exclusive")?,
        memory_migrate: file("memory_migrate")?,
        memory_spread_page: file("memory_spread_page")?,
        memory_spread_slab: file("memory_spread_slab")?,
        memory_pressure: file("memory_pressure")?,
        sched_load_balance: file("sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(0),
    })
}

/// `0-2,5`
fn parse_list(text: &str) -> Vec<u16> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

fn read_memory(directory: &Path, stats: &mut Stats) -> io::Result<()> {
    let memory = &mut stats.memory;
    memory.raw = table(&directory.join("memory.stat"))?;
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    let entry = |name: &str| -> io::Result<MemoryEntry> {
        let file = |suffix: &str| number(&directory.join(format!("memory{name}.{suffix}")));
        Ok(MemoryEntry {
            limit: file("limit_in_bytes")?,
            usage: file("usage_in_bytes")?,
            max: file("max_usage_in_bytes")?,
            failcnt: file("failcnt")?,
        })
    };
    memory.usage = entry("")?;
    memory.swap = entry(".memsw")?;
    memory.kernel = entry(".kmem")?;
    memory.kernel_tcp = entry(".kmem.tcp")?;
    Ok(())
}

/// The scheduler in use counts most; one that is not in use has files without devices in them.
fn read_block_io(directory: &Path) -> io::Result<BlockIo> {
    let entries = |name: String| -> io::Result<Vec<BlockIoEntry>> {
        Ok(text(&directory.join(name))?.lines().filter_map(parse_entry).collect())
    };
    for prefix in ["blkio.bfq", "blkio"] {
        let file = |name: &str| entries(format!("{prefix}.{name}_recursive"));
        let served = file("io_serviced")?;
        if served.is_empty() {
            continue;
        }
        return Ok(BlockIo {
            io_service_bytes_recursive: file("io_service_bytes")?,
            io_serviced_recursive: served,
            io_queued_recursive: file("io_queued")?,
            io_service_time_recursive: file("io_service_time")?,
            io_wait_time_recursive: file("io_wait_time")?,
            io_merged_recursive: file("io_merged")?,
            io_time_recursive: file("time")?,
            sectors_recursive: file("sectors")?,
            psi: None,
        });
    }
    let file = |name: &str| entries(format!("blkio.throttle.{name}_recursive"));
    Ok(BlockIo {
        io_service_bytes_recursive: file("io_service_bytes")?,
        io_serviced_recursive: file("io_serviced")?,
        ..BlockIo::default()
    })
}

/// `8:0 Read 4096`, or `8:0 4096`; the line with the sum over all devices is left out.
fn parse_entry(line: &str) -> Option<BlockIoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (op, value) = match (words.next()?, words.next()) {
        (op, Some(value)) => (op.to_owned(), value),
        (value, None) => (String::new(), value),
    };
    Some(BlockIoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op, value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_devices_and_lists_are_read() {
        let entry = |op: &str, value| BlockIoEntry { major: 8, minor: 0, op: op.to_owned(), value };
        assert_eq!(parse_entry("8:0 Read 4096"), Some(entry("Read", 4096)));
        assert_eq!(parse_entry("8:0 7"), Some(entry("", 7)));
        assert_eq!(parse_entry("Total 4096"), None);
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list("\n"), [0_u16; 0]);
    }
}
