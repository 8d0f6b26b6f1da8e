//! What the registry has to bear: keys, bytes, changes.

use std::collections::BTreeMap;

/// What the keys with one beginning cost.
#[derive(Debug, Default, Clone, Copy)]
pub struct Family {
    pub keys: usize,
    pub bytes: usize,
    pub most_keys: usize,
    pub most_bytes: usize,
    pub events: u64,
}

#[derive(Debug, Default)]
pub struct Costs {
    pub families: BTreeMap<String, Family>,
    pub committed: u64,
    pub refused: u64,
    pub reads: u64,
    pub renewals: u64,
    /// The longest value, and the largest transaction, in bytes and in changes.
    pub longest: usize,
    pub largest: usize,
    pub most_changes: usize,
    /// Changes of `node/` and `member/`, which every daemon hears, in all bytes of one copy.
    pub told: u64,
    pub told_bytes: usize,
}

impl Costs {
    fn family(&mut self, key: &str) -> &mut Family {
        let name = key.split('/').next().unwrap();
        let part = key.split('/').nth(2).map_or(String::new(), |part| format!("/…/{part}"));
        // The pieces of an operation are told apart.
        let name = if name == "operation" { format!("{name}{part}") } else { name.to_owned() };
        self.families.entry(name).or_default()
    }

    pub fn put(&mut self, key: &str, value: usize, old: Option<usize>) {
        self.longest = self.longest.max(value);
        self.tell(key, value);
        let family = self.family(key);
        family.keys += usize::from(old.is_none());
        family.bytes += value + if old.is_none() { key.len() } else { 0 };
        family.bytes -= old.unwrap_or(0);
        family.most_keys = family.most_keys.max(family.keys);
        family.most_bytes = family.most_bytes.max(family.bytes);
        family.events += 1;
    }

    pub fn remove(&mut self, key: &str, value: usize) {
        self.tell(key, 0);
        let family = self.family(key);
        family.keys -= 1;
        family.bytes -= key.len() + value;
        family.events += 1;
    }

    fn tell(&mut self, key: &str, value: usize) {
        if key.starts_with("node/") || key.starts_with("member/") {
            self.told += 1;
            self.told_bytes += key.len() + value;
        }
    }
}
