//! `regen update`

use std::path::PathBuf;

use clap::Args;

use crate::ids::ContainerId;

/// Change the limits of a container
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Update {
    /// A file of limits in the form of linux.resources, or - for standard input; the other flags then count for nothing
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// The weight of block input and output, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// The period of the processor quota, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds; -1 for all
    #[arg(long, value_name = "US")]
    pub cpu_quota: Option<i64>,
    /// Processor time that may be saved up, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// The weight among others, 2 to 262144
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// The period of the real-time limit, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_rt_period: Option<u64>,
    /// Real-time processor time in each period, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_rt_runtime: Option<i64>,
    /// Processors to run on: 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// 1 to run only when nothing else does
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// The most memory, in bytes or as 100M; -1 for all
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<i64>,
    /// Memory that is left to it when memory is short
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_reservation: Option<i64>,
    /// The most memory and swap together; -1 for all
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_swap: Option<i64>,
    /// Taken for compatibility: kernels have no such limit any more
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide = true)]
    pub kernel_memory: Option<i64>,
    /// Taken for compatibility
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide = true)]
    pub kernel_memory_tcp: Option<i64>,
    /// The most processes and threads; -1 for all
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<i64>,
    /// Not supported: the schema of the L3 cache
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Not supported: the schema of the memory bandwidth
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}

/// Bytes, or a number with a unit of powers of 1024, in the ways that people write them: `512k`, `1.5G`, `100MiB`.
fn parse_size(text: &str) -> Result<i64, String> {
    let refuse = || format!("invalid size: '{text}'");
    if text == "-1" {
        return Ok(-1);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().map_err(|_| refuse())?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let exponent = match letter {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(refuse()),
    };
    let bytes = number * 1024_f64.powi(exponent);
    #[allow(clippy::cast_possible_truncation, reason = "the range was looked at")]
    if (0.0..9e18).contains(&bytes) { Ok(bytes as i64) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_units() {
        let expected =
            [("10", 10), ("1k", 1024), ("100MiB", 100 << 20), ("1.5G", 3 << 29), ("2 gb", 2 << 30), ("-1", -1)];
        for (text, bytes) in expected {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for wrong in ["", "abc", "-2", "1x", "1..2", "99999999p", "b"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }
}
