//! What happens when, in virtual milliseconds.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;

use regen::error::Error;
use regen::operation::fence::Token;
use regen::operation::{Kind, OperationId, Target};
use serde_json::Value;

use crate::request::Request;

/// A daemon, by its node and the how-manyth it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub node: usize,
    pub incarnation: u32,
}

/// What one thread of a daemon waits for: what comes of a target. Only the last question about it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub id: OperationId,
    pub index: usize,
    pub number: u32,
}

/// How often a daemon looks after its leases and its operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As long as it lives.
    Idle,
    /// As long as it has operations.
    Busy,
    /// Now, and no more often than before.
    Once,
}

/// What a daemon asks the daemon of another node.
#[derive(Debug, Clone)]
pub struct Message {
    pub from: Life,
    pub ask: Ask,
    pub kind: Kind,
    pub target: Target,
    pub parameters: Arc<Value>,
    pub token: Token,
    /// The number of the first token that its operation had.
    pub since: u64,
}

/// What comes of it.
#[derive(Debug, Clone)]
pub enum Reply {
    Done,
    /// The node says why not.
    Refused(Error),
    /// The node says that it does not know, and why.
    Lost(Error),
    /// Nothing was sent.
    Unsent(Error),
    /// It may have been heard.
    Unanswered(Error),
}

#[derive(Debug)]
pub enum Event {
    Tend {
        life: Life,
        pace: Pace,
    },
    Submit {
        node: usize,
        request: Request,
    },
    Cancel {
        life: Life,
        id: OperationId,
    },
    Task {
        node: usize,
        message: Box<Message>,
    },
    /// What was done for a task is over.
    Over {
        life: Life,
        work: (OperationId, String),
    },
    Reply {
        life: Life,
        ask: Ask,
        reply: Box<Reply>,
    },
    /// It is asked once more.
    Again {
        life: Life,
        ask: Ask,
    },
    /// Something that was put off is due.
    Wake {
        life: Life,
    },
    Start {
        node: usize,
    },
    Fault,
    Hang {
        node: usize,
        time: u64,
    },
    Mend {
        node: usize,
    },
    Leave,
    Return,
    /// The nodes hear what the registry tells.
    Feed,
    /// Somebody looks for nodes that do not come back.
    Mourn,
}

impl Event {
    /// Whose it is.
    pub fn node(&self) -> Option<usize> {
        match self {
            Self::Submit { node, .. } | Self::Task { node, .. } => Some(*node),
            other => other.life().map(|life| life.node),
        }
    }

    /// The daemon that it is for; nothing if that is not there any more.
    pub fn life(&self) -> Option<Life> {
        match self {
            Self::Tend { life, .. }
            | Self::Cancel { life, .. }
            | Self::Over { life, .. }
            | Self::Reply { life, .. }
            | Self::Again { life, .. }
            | Self::Wake { life } => Some(*life),
            Self::Submit { .. }
            | Self::Task { .. }
            | Self::Start { .. }
            | Self::Fault
            | Self::Hang { .. }
            | Self::Mend { .. }
            | Self::Leave
            | Self::Return
            | Self::Feed
            | Self::Mourn => None,
        }
    }
}

#[derive(Debug)]
struct Due(u64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What is to come. Of what is due at one time, what was said first comes first.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<Due>>,
    count: u64,
}

impl Queue {
    pub fn add(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.heap.push(Reverse(Due(time, self.count, event)));
    }

    pub fn next(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse(Due(time, _, event))| (time, event))
    }
}
