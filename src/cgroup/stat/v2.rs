//! The numbers of version 2, put into the terms of version 1 as runc does.

use std::fs;
use std::io;
use std::path::Path;

use super::{
    BlockIo, BlockIoEntry, HugeTlb, Memory, MemoryEntry, Stats, number, page_sizes, pressure, rdma, table, text,
};

pub(super) fn read(directory: &Path) -> io::Result<Stats> {
    let mut stats = Stats::default();
    let counted = table(&directory.join("cpu.stat"))?;
    let get = |name: &str| counted.get(name).copied().unwrap_or(0);
    let nanoseconds = |name: &str| get(name).saturating_mul(1000);
    stats.cpu.usage.total = nanoseconds("usage_usec");
    stats.cpu.usage.user = nanoseconds("user_usec");
    stats.cpu.usage.kernel = nanoseconds("system_usec");
    stats.cpu.throttling.periods = get("nr_periods");
    stats.cpu.throttling.throttled_periods = get("nr_throttled");
    stats.cpu.throttling.throttled_time = nanoseconds("throttled_usec");
    stats.cpu.psi = pressure(&directory.join("cpu.pressure"))?;
    stats.memory = read_memory(directory)?;
    stats.pids.current = match number(&directory.join("pids.current"))? {
        // Without the controller the processes can still be counted.
        0 => fs::read_to_string(directory.join("cgroup.procs"))?.lines().count() as u64,
        current => current,
    };
    stats.pids.limit = Some(number(&directory.join("pids.max"))?).filter(|max| *max != u64::MAX).unwrap_or(0);
    stats.blkio = parse_io(&text(&directory.join("io.stat"))?);
    stats.blkio.psi = pressure(&directory.join("io.pressure"))?;
    for size in page_sizes() {
        let current = directory.join(format!("hugetlb.{size}.current"));
        if current.exists() {
            let events = table(&directory.join(format!("hugetlb.{size}.events")))?;
            let failcnt = events.get("max").copied().unwrap_or(0);
            stats.hugetlb.insert(size, HugeTlb { usage: number(&current)?, max: 0, failcnt });
        }
    }
    stats.rdma = rdma(directory)?;
    Ok(stats)
}

fn read_memory(directory: &Path) -> io::Result<Memory> {
    let raw = table(&directory.join("memory.stat"))?;
    let entry = |name: &str| -> io::Result<MemoryEntry> {
        let file = |suffix: &str| number(&directory.join(format!("memory{name}.{suffix}")));
        let events = table(&directory.join(format!("memory{name}.events")))?;
        let failcnt = events.get("max").copied().unwrap_or(0);
        Ok(MemoryEntry { limit: file("max")?, usage: file("current")?, max: file("peak")?, failcnt })
    };
    let usage = entry("")?;
    let mut swap = entry(".swap")?;
    // Version 1 tells memory and swap together, and so do engines.
    swap.usage = swap.usage.saturating_add(usage.usage);
    swap.limit = swap.limit.saturating_add(usage.limit);
    let cache = raw.get("file").copied().unwrap_or(0);
    Ok(Memory { cache, usage, swap, raw, psi: pressure(&directory.join("memory.pressure"))?, ..Memory::default() })
}

/// `8:0 rbytes=90112 wbytes=0 rios=22 wios=0 dbytes=0 dios=0`
fn parse_io(text: &str) -> BlockIo {
    let mut io = BlockIo::default();
    for line in text.lines() {
        let Some((device, words)) = line.split_once(' ') else { continue };
        let Some((major, minor)) = device.split_once(':') else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (name, value) in words.split(' ').filter_map(|word| word.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut io.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut io.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut io.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut io.io_serviced_recursive, "Read"),
                "wios" => (&mut io.io_serviced_recursive, "Write"),
                "dios" => (&mut io.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(BlockIoEntry { major, minor, op: op.to_owned(), value: value.parse().unwrap_or(0) });
        }
    }
    io
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroups_files_become_numbers() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 1\nthrottled_usec 2\n",
            ),
            ("memory.current", "1000\n"),
            ("memory.max", "5000\n"),
            ("memory.peak", "2000\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 0\n"),
            ("memory.swap.current", "10\n"),
            ("memory.swap.max", "max\n"),
            ("memory.stat", "anon 5\nfile 7\n"),
            ("cgroup.procs", "1\n2\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let stats = read(directory.path()).unwrap();
        assert_eq!(
            (stats.cpu.usage.total, stats.cpu.usage.user, stats.cpu.throttling.throttled_time),
            (30_000, 20_000, 2000)
        );
        let usage = MemoryEntry { limit: 5000, usage: 1000, max: 2000, failcnt: 3 };
        assert_eq!((stats.memory.usage, stats.memory.cache), (usage, 7));
        assert_eq!((stats.memory.swap.usage, stats.memory.swap.limit), (1010, u64::MAX));
        assert_eq!((stats.pids.current, stats.pids.limit), (2, 0));
        let write = BlockIoEntry { major: 8, minor: 0, op: "Write".into(), value: 2 };
        assert_eq!(stats.blkio.io_service_bytes_recursive[1], write);
        assert_eq!(stats.blkio.io_serviced_recursive.len(), 3);
    }
}
