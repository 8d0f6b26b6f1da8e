//! What a container uses, in numbers; serialized, it is the `data` of `runc events`.
//!
//! Times are nanoseconds, sizes bytes. What the kernel does not count here is zero, or left out where runc leaves it out.

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result, quote};

/// Everything at one moment, or nearly: the files are read one after the other.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Which processors and memory nodes; empty on version 2, as with runc.
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Traffic of block devices.
    pub blkio: BlockIo,
    /// By page size.
    pub hugetlb: BTreeMap<String, HugeTlb>,
    /// By device; runc has no such field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, Rdma>,
    /// Always empty: classes of service are not made.
    pub intel_rdt: BTreeMap<String, String>,
    /// Always null, as with runc.
    pub network_interfaces: Option<Vec<String>>,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Used.
    pub usage: CpuUsage,
    /// Held back by a quota.
    pub throttling: Throttling,
    /// Waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Processor time used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// In all.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    /// By processor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// By processor, in the kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// By processor, in programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In programs.
    pub user: u64,
}

/// What a quota did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods in which there was something to run.
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// Time held back.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

/// The files of a cpuset of version 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "each is the file of that name")]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Of files.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// In all.
    pub usage: MemoryEntry,
    /// Memory and swap together, also on version 2.
    pub swap: MemoryEntry,
    /// Of the kernel.
    pub kernel: MemoryEntry,
    /// Of the kernel's buffers for TCP.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat`
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One sort of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// The most that is allowed; the largest number if everything is.
    pub limit: u64,
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most so far.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// The most that is allowed; zero if everything is.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// Traffic of block devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each is the file of that name")]
pub struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One number of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BlockIoEntry {
    /// Of the device.
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    /// Of the device.
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// How many.
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct HugeTlb {
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most so far.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// One device for remote memory: what is held of it, and the most that is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rdma {
    /// By resource: `hca_handle`, `hca_object`.
    pub current: BTreeMap<String, u64>,
    /// The same; the largest number if everything is allowed.
    pub limit: BTreeMap<String, u64>,
}

/// Stalls (kernel: Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Some of the processes waited.
    pub some: Stall,
    /// All of them did.
    pub full: Stall,
}

/// Shares of time in percent over the last seconds, and the whole in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "each is the word of that name")]
pub struct Stall {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Cgroup {
    /// The numbers of now.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without a cgroup; those of reading the files.
    pub fn stats(&self) -> Result<Stats> {
        let operation = || format!("read the numbers of cgroup {}", quote(&self.path));
        if self.paths().is_empty() {
            return Err(Error::new(Kind::Unsupported, operation(), "the container has no cgroup")
                .next("nothing is counted for it: see docs/oci.md"));
        }
        match self.unified() {
            Some(directory) => v2::read(directory).context(operation),
            None => v1::read(self).context(operation),
        }
    }

    /// How many of its processes the kernel has killed for want of memory; nothing where memory is not counted. (Version 1
    /// counts them since Linux 4.13.)
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn memory_kills(&self) -> Result<u64> {
        let operation = || format!("read the numbers of cgroup {}", quote(&self.path));
        let text = match (self.unified(), self.directory("memory")) {
            (Some(directory), _) => text(&directory.join("memory.events")),
            (None, Some(directory)) => text(&directory.join("memory.oom_control")),
            (None, None) => return Ok(0),
        };
        Ok(parse_memory_kills(&text.context(operation)?))
    }
}

/// Both versions write it as a line of its own.
fn parse_memory_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// The text of a file; empty where the kernel has none. A cgroup that vanishes meanwhile counts nothing.
fn text(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        // A device that is gone, a controller that is not built in all its parts.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => Ok(String::new()),
        other => other,
    }
}

/// A file with one number in it: `max` is the largest.
fn number(path: &Path) -> io::Result<u64> {
    Ok(parse_number(text(path)?.trim()))
}

fn parse_number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

/// A file of `NAME NUMBER` lines.
fn table(path: &Path) -> io::Result<BTreeMap<String, u64>> {
    let text = text(path)?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect())
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`. None where it is not counted.
fn pressure(path: &Path) -> io::Result<Option<Pressure>> {
    let text = text(path)?;
    let stall = |line: &str| {
        let mut stall = Stall::default();
        for (name, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => stall.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => stall.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => stall.avg300 = value.parse().unwrap_or(0.0),
                "total" => stall.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        stall
    };
    let line = |word: &str| text.lines().find(|line| line.starts_with(word)).map(stall);
    Ok(line("some ").map(|some| Pressure { some, full: line("full ").unwrap_or_default() }))
}

/// `rdma.current` or `rdma.max`: `mlx4_0 hca_handle=2 hca_object=2000`.
fn rdma(directory: &Path) -> io::Result<BTreeMap<String, Rdma>> {
    let mut devices: BTreeMap<String, Rdma> = BTreeMap::new();
    for (file, field) in [("rdma.current", true), ("rdma.max", false)] {
        for line in text(&directory.join(file))?.lines() {
            let Some((device, words)) = line.split_once(' ') else { continue };
            let entry = devices.entry(device.to_owned()).or_default();
            let values = if field { &mut entry.current } else { &mut entry.limit };
            let pairs = words.split(' ').filter_map(|word| word.split_once('='));
            values.extend(pairs.map(|(name, value)| (name.to_owned(), parse_number(value))));
        }
    }
    Ok(devices)
}

/// The sizes of huge pages that this kernel has, as they stand in file names.
fn page_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kilobytes {
            kb if kb >= 1 << 20 => format!("{}GB", kb >> 20),
            kb if kb >= 1 << 10 => format!("{}MB", kb >> 10),
            kb => format!("{kb}KB"),
        })
    };
    entries.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_for_want_of_memory_are_counted_in_both_versions() {
        assert_eq!(parse_memory_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(parse_memory_kills("low 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(parse_memory_kills(""), 0);
    }

    #[test]
    fn files_are_read_as_the_kernel_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        assert_eq!(number(&write("a", "max\n")).unwrap(), u64::MAX);
        assert_eq!(number(&write("a", "12\n")).unwrap(), 12);
        assert_eq!(number(&directory.path().join("missing")).unwrap(), 0);
        let table = table(&write("t", "cache 5\nrss 6\n")).unwrap();
        assert_eq!(table.into_iter().collect::<Vec<_>>(), [("cache".to_owned(), 5), ("rss".to_owned(), 6)]);
        let both = "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.25 avg300=0.00 total=3\n";
        let pressure = pressure(&write("p", both)).unwrap().unwrap();
        assert_eq!((pressure.some.avg10, pressure.some.total, pressure.full.avg60), (1.5, 7, 0.25));
        write("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n");
        write("rdma.max", "mlx4_0 hca_handle=5 hca_object=max\n");
        let rdma = &rdma(directory.path()).unwrap()["mlx4_0"];
        assert_eq!((rdma.current["hca_handle"], rdma.limit["hca_object"]), (2, u64::MAX));
    }

    #[test]
    fn the_json_is_that_of_runc() {
        let empty = serde_json::to_string(&Stats::default()).unwrap();
        let expected = r#"{"cpu":{"usage":{"kernel":0,"user":0},"throttling":{}},"cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"memory_spread_page":0,"memory_spread_slab":0,"memory_pressure":0,"sched_load_balance":0,"sched_relax_domain_level":0},"memory":{"usage":{"limit":0,"failcnt":0},"swap":{"limit":0,"failcnt":0},"kernel":{"limit":0,"failcnt":0},"kernelTCP":{"limit":0,"failcnt":0}},"pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"network_interfaces":null}"#;
        assert_eq!(empty, expected);
    }
}
