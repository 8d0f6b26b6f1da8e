//! How much callers may take of the daemon, all together and each.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::message::{Fault, MESSAGE_MAX};
use super::peer::{Access, Origin, Peer};
use crate::ids::NodeName;

/// What callers may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Of those, so many are kept for root and the daemon's own user.
    pub reserved: usize,
    /// Connections of one other user, or of one node.
    pub per_user: usize,
    /// Bytes of one message.
    pub message: usize,
    /// Bytes of all messages that are being received, beyond the first 64 KiB of each.
    pub incoming: usize,
    /// How long a caller may be silent in the middle of a message, or not read an answer.
    pub silence: Duration,
}

/// Bytes of a message that count for nothing.
const FREE: usize = 64 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            reserved: 64,
            per_user: 64,
            message: MESSAGE_MAX,
            incoming: 64 << 20,
            silence: Duration::from_secs(30),
        }
    }
}

/// What is taken now.
#[derive(Debug)]
pub(super) struct Account {
    limits: Limits,
    taken: Mutex<Taken>,
    /// Whenever a connection ends.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    /// Connections of those who may have only so many; none is kept with 0.
    of_each: HashMap<Who, usize>,
    incoming: usize,
}

/// Who may have only so many connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    User(u32),
    Node(NodeName),
}

impl Who {
    /// Root and the daemon's own user may have as many as there are.
    fn of(peer: &Peer) -> Option<Self> {
        match (&peer.origin, peer.access) {
            (Origin::User { .. }, Access::All) => None,
            (Origin::User { uid, .. }, Access::Nothing | Access::Read) => Some(Self::User(*uid)),
            (Origin::Node(name), _) => Some(Self::Node(name.clone())),
        }
    }
}

/// One connection's place. Dropping it gives it to the next.
#[derive(Debug)]
pub(super) struct Place {
    account: Arc<Account>,
    /// Whose it counts for.
    who: Option<Who>,
}

impl Account {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default(), ended: Condvar::new() })
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Numbers are right at every moment, whatever became of the thread that held them.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.lock().connections
    }

    /// A place for a connection.
    ///
    /// # Errors
    /// What the caller is told if there is none, or none for them.
    pub(super) fn admit(self: &Arc<Self>, peer: &Peer) -> Result<Place, Fault> {
        let mut taken = self.lock();
        decide(&self.limits, &taken, peer)?;
        let who = Who::of(peer);
        taken.connections += 1;
        if let Some(who) = who.clone() {
            *taken.of_each.entry(who).or_default() += 1;
        }
        Ok(Place { account: Arc::clone(self), who })
    }

    /// Waits until every connection has ended; `false` if some have not when the time is over.
    pub(super) fn wait_for_none(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut taken = self.lock();
        while taken.connections > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            taken = self.ended.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

fn decide(limits: &Limits, taken: &Taken, peer: &Peer) -> Result<(), Fault> {
    let full = |what: String| Err(Fault::closing("TooManyConnections", what));
    let origin = &peer.origin;
    if peer.access == Access::Nothing {
        let message = format!(
            "{origin} may not call this daemon: only root, the daemon's user, and members of group '{}' may",
            super::peer::GROUP
        );
        return Err(Fault::PermissionDenied(message));
    }
    let (room, own) = match Who::of(peer) {
        None => (limits.connections, 0),
        Some(who) => {
            let own = taken.of_each.get(&who).copied();
            (limits.connections.saturating_sub(limits.reserved), own.unwrap_or(0))
        }
    };
    if own >= limits.per_user {
        return full(format!("{origin} has {} connections, which is all that one may have", limits.per_user));
    }
    if taken.connections >= room {
        return full(format!("there are {} connections already", taken.connections));
    }
    Ok(())
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.account.lock();
        taken.connections -= 1;
        if let Some(who) = &self.who
            && let Some(count) = taken.of_each.get_mut(who)
        {
            *count -= 1;
            if *count == 0 {
                taken.of_each.remove(who);
            }
        }
        drop(taken);
        self.account.ended.notify_all();
    }
}

/// What one connection has of the bytes that are being received.
#[derive(Debug)]
pub(super) struct Share {
    account: Arc<Account>,
    bytes: usize,
}

impl Share {
    pub(super) fn new(account: &Arc<Account>) -> Self {
        Self { account: Arc::clone(account), bytes: 0 }
    }

    /// Takes what a message of that length needs; `false` if there is no more to be had.
    pub(super) fn grow_to(&mut self, length: usize) -> bool {
        let wanted = length.saturating_sub(FREE);
        if wanted <= self.bytes {
            return true;
        }
        let mut taken = self.account.lock();
        let sum = taken.incoming - self.bytes + wanted;
        if sum > self.account.limits.incoming {
            return false;
        }
        (taken.incoming, self.bytes) = (sum, wanted);
        true
    }

    /// Gives back what is not needed any more.
    pub(super) fn shrink_to(&mut self, length: usize) {
        let wanted = length.saturating_sub(FREE);
        if wanted < self.bytes {
            self.account.lock().incoming -= self.bytes - wanted;
            self.bytes = wanted;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, access: Access) -> Peer {
        Peer { origin: Origin::User { uid, groups: vec![uid], pid: 1 }, access }
    }

    #[test]
    fn a_node_has_no_more_connections_than_a_user() {
        let account = Account::new(Limits { connections: 10, reserved: 2, per_user: 3, ..Limits::default() });
        let admit = |name: &str| account.admit(&Peer::node(name.parse().unwrap()));
        let _places: Vec<_> = (0..3).map(|_| admit("n1").unwrap()).collect();
        let Err(Fault::Closing { parameters, .. }) = admit("n1") else { panic!("a fourth") };
        assert!(parameters["message"].as_str().unwrap().contains("node 'n1' has 3"), "{parameters}");
        admit("n2").unwrap();
    }

    #[test]
    fn each_user_and_all_together_have_so_many_and_root_has_the_rest() {
        let limits = Limits { connections: 10, reserved: 2, per_user: 5, ..Limits::default() };
        let account = Account::new(limits);
        let admit = |uid, access| account.admit(&peer(uid, access));
        let mut places: Vec<_> = (0..5).map(|_| admit(7, Access::Read).unwrap()).collect();
        let Err(Fault::Closing { name, parameters }) = admit(7, Access::Read) else { panic!("a sixth") };
        assert_eq!(name, "TooManyConnections");
        assert!(parameters["message"].as_str().unwrap().contains("user 7 has 5"), "{parameters}");
        places.extend((0..3).map(|_| admit(8, Access::Read).unwrap()));
        assert!(admit(8, Access::Read).is_err(), "a reserved one was given away");
        places.extend((0..2).map(|_| admit(0, Access::All).unwrap()));
        assert!(admit(0, Access::All).is_err());
        assert!(!account.wait_for_none(Duration::from_millis(1)));
        drop(places.remove(0));
        admit(0, Access::All).unwrap();
        places.clear();
        assert!(account.wait_for_none(Duration::ZERO) && account.lock().of_each.is_empty());
    }

    #[test]
    fn strangers_are_told_who_may() {
        let account = Account::new(Limits::default());
        let Err(Fault::PermissionDenied(message)) = account.admit(&peer(9, Access::Nothing)) else { panic!() };
        assert!(message.contains("user 9") && message.contains("'regen'"), "{message}");
        assert_eq!(account.connections(), 0);
    }

    #[test]
    fn large_messages_share_what_there_is() {
        let account = Account::new(Limits { incoming: 100, ..Limits::default() });
        let (mut one, mut other) = (Share::new(&account), Share::new(&account));
        assert!(one.grow_to(FREE) && other.grow_to(FREE + 60));
        assert!(!one.grow_to(FREE + 41) && one.grow_to(FREE + 40));
        other.shrink_to(FREE + 10);
        assert!(one.grow_to(FREE + 90));
        drop((one, other));
        assert_eq!(account.lock().incoming, 0);
    }
}
