//! How large, how long, how bad.

/// How long it goes on after the faults: longer than anything that began before can last.
pub const REST: u64 = 120_000;

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    /// Services that each node says it has.
    pub members: usize,
    /// Virtual milliseconds with requests and faults; [`REST`] comes after.
    pub time: u64,
    pub requests: u64,
    /// Requests about all nodes.
    pub wide: u64,
    /// Nodes that most requests are about.
    pub hot: usize,
    /// Nodes whose daemons are asked.
    pub asked: usize,
    /// Milliseconds between two faults of a node, about.
    pub fault_every: u64,
    /// Calls of the registry, of a thousand, that are lost, or whose answers are.
    pub lost_calls: u64,
    /// Messages between nodes, of a thousand, that are lost; as many are late.
    pub lost_messages: u64,
    /// Tasks that a daemon sends, and that arrive when its lease is long gone and somebody else was there.
    pub outdated: usize,
    /// Nodes that go and never come back.
    pub gone: u64,
}

/// The registry is away once, for longer than a lease.
pub const AWAY: u64 = 45_000;

impl Plan {
    /// When that begins.
    pub fn leaves(&self) -> u64 {
        self.time / 4
    }

    /// The nodes from this one on are left alone: what happens to them is written down.
    pub fn spared(&self) -> usize {
        self.nodes - 3 * self.outdated
    }

    pub fn large(seed: u64) -> Self {
        Self {
            seed,
            nodes: 10_000,
            members: 3,
            time: 100_000,
            requests: 1500,
            wide: 1,
            hot: 150,
            asked: 200,
            fault_every: 100,
            lost_calls: 10,
            lost_messages: 10,
            outdated: 12,
            gone: 12,
        }
    }

    pub fn small(seed: u64) -> Self {
        Self {
            seed,
            nodes: 12,
            members: 2,
            time: 200_000,
            requests: 400,
            wide: 4,
            hot: 6,
            asked: 12,
            fault_every: 1500,
            lost_calls: 50,
            lost_messages: 50,
            outdated: 1,
            gone: 1,
        }
    }
}
