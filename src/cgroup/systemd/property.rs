//! Limits and device rules as properties of a systemd unit (systemd.resource-control(5); conversions as in runc).

use std::fs;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::wire::{Property, Value};
use crate::cgroup::device::{self, Rule, Sort, Verdict};
use crate::cgroup::limit::{swap_alone, weight_of_block_io, weight_of_shares};
use crate::error::{Error, Kind, Result, quote};

/// Which version the host's cgroups have; systemd has other names for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// "No limit", for systemd.
const INFINITY: u64 = u64::MAX;

/// What the scope is.
pub(super) fn identity(unit: &str, slice: &str, pid: u32, version: Version) -> Vec<Property> {
    let io = match version {
        Version::One => "BlockIOAccounting",
        Version::Two => "IOAccounting",
    };
    let on = |name| (name, Value::Boolean(true));
    vec![
        ("Description", Value::Text(format!("regen container {}", unit.trim_end_matches(".scope")))),
        ("Slice", Value::Text(slice.to_owned())),
        ("PIDs", Value::Numbers(vec![pid])),
        on("Delegate"),
        on("MemoryAccounting"),
        on("CPUAccounting"),
        on(io),
        on("TasksAccounting"),
        // Otherwise it would be stopped before others at shutdown, and not start early.
        ("DefaultDependencies", Value::Boolean(false)),
    ]
}

/// The limits that have a property.
pub(super) fn limits(resources: &LinuxResources, version: Version) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    resources.cpu().iter().try_for_each(|cpu| add_cpu(cpu, version, &mut properties))?;
    resources.memory().iter().try_for_each(|memory| add_memory(memory, version, &mut properties))?;
    let pids = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0);
    properties.extend(pids.map(|limit| ("TasksMax", or_infinity(limit))));
    let weight = resources.block_io().as_ref().and_then(|io| io.weight()).filter(|weight| *weight != 0);
    properties.extend(weight.map(|weight| match version {
        Version::One => ("BlockIOWeight", Value::Number(weight.into())),
        Version::Two => ("IOWeight", Value::Number(weight_of_block_io(weight))),
    }));
    Ok(properties)
}

fn or_infinity(value: i64) -> Value {
    Value::Number(u64::try_from(value).unwrap_or(INFINITY))
}

fn add_cpu(cpu: &LinuxCpu, version: Version, properties: &mut Vec<Property>) -> Result<()> {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    match version {
        Version::One => properties.extend(shares.map(|shares| ("CPUShares", Value::Number(shares)))),
        Version::Two if cpu.idle() != Some(1) => {
            properties.extend(shares.map(|shares| ("CPUWeight", Value::Number(weight_of_shares(shares)))));
        }
        Version::Two => {}
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().filter(|period| *period != 0));
    properties.extend(period.map(|period| ("CPUQuotaPeriodUSec", Value::Number(period))));
    if quota != 0 {
        properties.push(("CPUQuotaPerSecUSec", Value::Number(quota_per_second(quota, period.unwrap_or(100_000)))));
    }
    if version == Version::Two {
        for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                properties.push((name, Value::Bytes(bits_of(list)?)));
            }
        }
    }
    Ok(())
}

/// systemd rounds to hundredths of a CPU, and would round a small share down to nothing.
fn quota_per_second(quota: i64, period: u64) -> u64 {
    let Ok(quota) = u64::try_from(quota) else { return INFINITY };
    (quota.saturating_mul(1_000_000) / period).checked_next_multiple_of(10_000).unwrap_or(INFINITY)
}

/// `0-2,5` as a little-endian set of bits.
fn bits_of(list: &str) -> Result<Vec<u8>> {
    let refuse = || Error::new(Kind::Invalid, format!("read the list of CPUs or nodes {}", quote(list)), "not a list");
    let number = |text: &str| text.trim().parse::<u16>().map_err(|_| refuse());
    let mut bits = Vec::new();
    for range in list.split(',').filter(|range| !range.trim().is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for index in number(first)?..=number(last)? {
            let (byte, bit) = (usize::from(index / 8), index % 8);
            bits.resize(bits.len().max(byte + 1), 0);
            bits[byte] |= 1 << bit;
        }
    }
    if bits.is_empty() { Err(refuse()) } else { Ok(bits) }
}

fn add_memory(memory: &LinuxMemory, version: Version, properties: &mut Vec<Property>) -> Result<()> {
    let limit = memory.limit().filter(|bytes| *bytes != 0);
    match version {
        Version::One => properties.extend(limit.map(|bytes| ("MemoryLimit", or_infinity(bytes)))),
        Version::Two => {
            properties.extend(limit.map(|bytes| ("MemoryMax", or_infinity(bytes))));
            let low = memory.reservation().filter(|bytes| *bytes != 0);
            properties.extend(low.map(|bytes| ("MemoryLow", or_infinity(bytes))));
            let swap = swap_alone(limit, memory.swap().filter(|bytes| *bytes != 0))?;
            properties.extend(swap.map(|bytes| ("MemorySwapMax", or_infinity(bytes))));
        }
    }
    Ok(())
}

/// The device rules, which systemd enforces beside us: it would lift ours on version 1 when it is reloaded.
///
/// It knows only what is allowed, so its list may be wider than the rules, never narrower.
pub(super) fn devices(resources: &LinuxResources) -> Result<Vec<Property>> {
    let rules = device::parse(resources.devices().as_deref().unwrap_or_default())?;
    if rules.iter().any(|rule| rule.verdict == Verdict::Allow && rule.sort.is_none()) {
        return Ok(Vec::new());
    }
    let table = fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut allowed = Vec::new();
    for rule in rules.iter().filter(|rule| rule.verdict == Verdict::Allow) {
        let Some(name) = device_name(rule, &table) else {
            // A device without a name for systemd: its list would be narrower than ours.
            return Ok(Vec::new());
        };
        allowed.push((name, rule.access.letters()));
    }
    Ok(vec![("DevicePolicy", Value::Text("strict".to_owned())), ("DeviceAllow", Value::Pairs(allowed))])
}

/// A node below /dev, or a whole driver by its name in `/proc/devices`.
fn device_name(rule: &Rule, table: &str) -> Option<String> {
    let kind = match rule.sort? {
        Sort::Block => "block",
        Sort::Character => "char",
    };
    match (rule.major, rule.minor) {
        (None, None) => Some(format!("{kind}-*")),
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (Some(major), None) => driver(table, kind, major).map(|driver| format!("{kind}-{driver}")),
        (None, Some(_)) => None,
    }
}

/// The driver of a major number: `Character devices:` and `Block devices:` head lines of `MAJOR NAME`.
fn driver<'a>(table: &'a str, kind: &str, major: u32) -> Option<&'a str> {
    let head = if kind == "block" { "Block devices:" } else { "Character devices:" };
    let lines = table.lines().skip_while(|line| *line != head).skip(1).take_while(|line| !line.is_empty());
    let mut pairs = lines.filter_map(|line| line.trim().split_once(' '));
    pairs.find(|(number, _)| number.parse() == Ok(major)).map(|(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn resources(text: Json) -> LinuxResources {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn limits_have_the_names_of_each_version() {
        let asked = resources(json!({
            "cpu": {"shares": 1024, "quota": 25000, "period": 100_000, "cpus": "0-2,9"},
            "memory": {"limit": 1000, "swap": 1500, "reservation": 10}, "pids": {"limit": -1}, "blockIO": {"weight": 10},
        }));
        let number = |value| Value::Number(value);
        let common = [("CPUQuotaPeriodUSec", number(100_000)), ("CPUQuotaPerSecUSec", number(250_000))];
        let two = limits(&asked, Version::Two).unwrap();
        let expected = [("CPUWeight", number(39))].into_iter().chain(common.clone()).chain([
            ("AllowedCPUs", Value::Bytes(vec![7, 2])),
            ("MemoryMax", number(1000)),
            ("MemoryLow", number(10)),
            ("MemorySwapMax", number(500)),
            ("TasksMax", number(u64::MAX)),
            ("IOWeight", number(1)),
        ]);
        assert_eq!(two, expected.collect::<Vec<_>>());
        let one = limits(&asked, Version::One).unwrap();
        let expected = [("CPUShares", number(1024))].into_iter().chain(common).chain([
            ("MemoryLimit", number(1000)),
            ("TasksMax", number(u64::MAX)),
            ("BlockIOWeight", number(10)),
        ]);
        assert_eq!(one, expected.collect::<Vec<_>>());
    }

    #[test]
    fn quotas_are_rounded_up_and_lists_of_cpus_are_checked() {
        assert_eq!(quota_per_second(-1, 100_000), u64::MAX);
        assert_eq!(quota_per_second(1001, 100_000), 20_000);
        assert!(bits_of("a").is_err() && bits_of("").is_err() && bits_of("1-").is_err());
    }

    #[test]
    fn the_list_of_devices_names_nodes_and_drivers() {
        let table = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        assert_eq!(driver(table, "char", 136), Some("pts"));
        assert_eq!(driver(table, "block", 8), Some("sd"));
        assert_eq!(driver(table, "block", 136), None);
        assert!(devices(&resources(json!({"devices": [{"allow": true}]}))).unwrap().is_empty());
        let properties = devices(&resources(json!({}))).unwrap();
        let Some((_, Value::Pairs(pairs))) = properties.iter().find(|(name, _)| *name == "DeviceAllow") else {
            panic!()
        };
        let has = |name: &str, access: &str| pairs.contains(&(name.to_owned(), access.to_owned()));
        assert!(has("char-*", "m") && has("/dev/char/1:3", "rwm") && has("char-pts", "rwm"), "{pairs:?}");
    }
}
