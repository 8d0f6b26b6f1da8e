//! Which instances clients can be sent to now: what the daemon knows while it runs, and tells to whoever watches.
//!
//! ```text
//!  add, replace, withdraw ──> state of now ──> resolve                    (any number of readers, no waiting)
//!                              │
//!                              └─> the last changes, numbered ──> Subscription: the whole state, then what changes
//! ```
//!
//! An instance is here from when it serves until just before it is drained: who learns of it here can connect to it, and
//! who watches hears that it goes before it stops to accept.
//!
//! A watcher costs a descriptor and a number, however slow it is: of the changes only the last are kept, and who missed
//! more is given the whole state again.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use rustix::event::{EventfdFlags, eventfd};
use semver::Version;
use serde::{Deserialize, Serialize};

use super::address::Listen;
use super::choice::{Wanted, newest, refuse_name, refuse_version};
use super::message::Status;
use crate::error::{Context, Result};
use crate::ids::{ContainerId, Name};

/// How many changes are kept for those who have not read them yet.
const HISTORY: usize = 1024;

/// An instance that clients can be sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The service.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// The instance's container.
    pub instance: ContainerId,
    /// Where it listens, with chosen ports; the first is what clients get that ask for no other.
    pub listen: Vec<Listen>,
}

impl From<&Status> for Member {
    fn from(status: &Status) -> Self {
        Self {
            name: status.definition.name.clone(),
            version: status.definition.version.clone(),
            instance: status.instance.clone(),
            listen: status.listen.clone(),
        }
    }
}

/// What happened to one version of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It can be connected to here, in place of where it could before.
    Added(Arc<Member>),
    /// Nobody is sent there any more.
    Withdrawn(Arc<Member>),
}

impl Change {
    /// Who it is about.
    #[must_use]
    pub fn member(&self) -> &Arc<Member> {
        match self {
            Self::Added(member) | Self::Withdrawn(member) => member,
        }
    }
}

/// A member, and whose turn it is among its equals, which share the count.
#[derive(Debug, Clone)]
struct Entry {
    member: Arc<Member>,
    turns: Arc<AtomicUsize>,
}

/// The state at one moment: for each service its versions, oldest first, each once.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    number: u64,
    services: BTreeMap<Name, Arc<Vec<Entry>>>,
}

impl Snapshot {
    /// How many changes there were since the daemon started.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Everybody, by name and version.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.services.values().flat_map(|entries| entries.iter()).map(|entry| &entry.member)
    }

    /// The member that a client is sent to: the newest that satisfies; equals take turns.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`], naming the versions that are there, or the services with a name like it.
    pub fn resolve(&self, wanted: &Wanted) -> Result<Arc<Member>> {
        let Some(entries) = self.services.get(&wanted.name) else {
            return Err(refuse_name(wanted, self.services.keys()));
        };
        match newest(entries, |entry| &entry.member.version, &wanted.requirement) {
            [] => Err(refuse_version(wanted, entries.iter().map(|entry| &entry.member.version))),
            [only] => Ok(only.member.clone()),
            equals => {
                let turn = equals[0].turns.fetch_add(1, Ordering::Relaxed);
                Ok(equals[turn % equals.len()].member.clone())
            }
        }
    }

    fn find(&self, instance: &ContainerId) -> Option<Arc<Member>> {
        self.members().find(|member| member.instance == *instance).cloned()
    }

    fn put(&mut self, member: &Arc<Member>) {
        let entries = Arc::make_mut(self.services.entry(member.name.clone()).or_default());
        let equal = entries.iter().find(|entry| entry.member.version.cmp_precedence(&member.version).is_eq());
        let turns = equal.map_or_else(Arc::default, |entry| entry.turns.clone());
        let entry = Entry { member: member.clone(), turns };
        match entries.binary_search_by(|entry| entry.member.version.cmp(&member.version)) {
            Ok(index) => entries[index] = entry,
            Err(index) => entries.insert(index, entry),
        }
    }

    fn take(&mut self, member: &Member) {
        if let Some(entries) = self.services.get_mut(&member.name) {
            Arc::make_mut(entries).retain(|entry| entry.member.instance != member.instance);
            if entries.is_empty() {
                self.services.remove(&member.name);
            }
        }
    }
}

/// Who serves, and who wants to hear of it.
#[derive(Debug, Default)]
pub struct Roster {
    /// What resolvers read; held for as long as a pointer is copied.
    now: RwLock<Arc<Snapshot>>,
    /// Held by who changes something, and by who asks for changes.
    news: Mutex<News>,
}

#[derive(Debug, Default)]
struct News {
    /// The last changes, the newest of which has the snapshot's number.
    history: VecDeque<Change>,
    bells: Vec<Weak<OwnedFd>>,
}

impl Roster {
    /// Nobody serves yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The state of now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As [`Snapshot::resolve`], now.
    ///
    /// # Errors
    /// As there.
    pub fn resolve(&self, wanted: &Wanted) -> Result<Arc<Member>> {
        self.snapshot().resolve(wanted)
    }

    /// From now on clients are sent here; the former instance of the same version, if there was one, goes with this.
    pub fn add(&self, member: Member) {
        self.publish(|_| vec![Change::Added(Arc::new(member))]);
    }

    /// From now on clients are sent here, and no longer to that instance of another version, in one step: there is no
    /// moment at which neither or both can be found.
    pub fn replace(&self, old: &ContainerId, member: Member) {
        self.publish(|now| {
            let gone = now.find(old).filter(|old| old.version != member.version || old.name != member.name);
            std::iter::once(Change::Added(Arc::new(member))).chain(gone.map(Change::Withdrawn)).collect()
        });
    }

    /// From now on nobody is sent to this instance. One that is not here any more is no error.
    pub fn withdraw(&self, instance: &ContainerId) {
        self.publish(|now| now.find(instance).map(Change::Withdrawn).into_iter().collect());
    }

    /// What changes from now on, and the whole state first.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn subscribe(self: &Arc<Self>) -> Result<Subscription> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = Arc::new(eventfd(1, flags).context(|| "make a descriptor to wait for changes of services on")?);
        let mut news = self.lock();
        news.bells.retain(|bell| bell.strong_count() > 0);
        news.bells.push(Arc::downgrade(&bell));
        Ok(Subscription { roster: self.clone(), bell, seen: None })
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, decide: impl FnOnce(&Snapshot) -> Vec<Change>) {
        let mut news = self.lock();
        let mut next = Snapshot::clone(&self.snapshot());
        let changes = decide(&next);
        if changes.is_empty() {
            return;
        }
        for change in changes {
            match &change {
                Change::Added(member) => next.put(member),
                Change::Withdrawn(member) => next.take(member),
            }
            next.number += 1;
            news.history.push_back(change);
        }
        let excess = news.history.len().saturating_sub(HISTORY);
        news.history.drain(..excess);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        for bell in news.bells.iter().filter_map(Weak::upgrade) {
            // The only failure is that it is rung already, 2^64 times.
            let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
        }
    }
}

/// What a subscriber has not heard yet.
#[derive(Debug)]
pub enum Heard {
    /// The whole state: at first, and when more has changed since the last time than is kept.
    State(Arc<Snapshot>),
    /// What has changed since the last time, in order, and the number of the last change; may be nothing.
    Changes(Vec<Change>, u64),
}

/// One who watches. Its descriptor can be read from (poll(2)) once there is something that it has not heard.
#[derive(Debug)]
pub struct Subscription {
    roster: Arc<Roster>,
    bell: Arc<OwnedFd>,
    seen: Option<u64>,
}

impl Subscription {
    /// What there is to hear now, without waiting.
    pub fn hear(&mut self) -> Heard {
        // Silenced first: what happens from here on rings it again.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        let news = self.roster.lock();
        let now = self.roster.snapshot();
        let unheard = self.seen.and_then(|seen| usize::try_from(now.number - seen).ok());
        self.seen = Some(now.number);
        match unheard.and_then(|unheard| news.history.len().checked_sub(unheard)) {
            Some(start) => Heard::Changes(news.history.range(start..).cloned().collect(), now.number),
            None => Heard::State(now),
        }
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn member(version: &str, generation: u32) -> Member {
        let name: Name = "orders".parse().unwrap();
        Member {
            instance: format!("orders-{version}-{generation}").parse().unwrap(),
            version: version.parse().unwrap(),
            listen: vec![Listen::parse("tcp://127.0.0.1:80", &name).unwrap()],
            name,
        }
    }

    fn resolved(roster: &Roster, wanted: &str) -> String {
        roster.resolve(&wanted.parse().unwrap()).unwrap().instance.to_string()
    }

    fn is_rung(subscription: &Subscription) -> bool {
        let mut fds = [PollFd::new(subscription, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    /// What one who listens makes of it.
    fn follow(copy: &mut BTreeSet<String>, heard: Heard) {
        match heard {
            Heard::State(state) => *copy = state.members().map(|member| member.version.to_string()).collect(),
            Heard::Changes(changes, _) => {
                for change in changes {
                    let version = change.member().version.to_string();
                    match change {
                        Change::Added(_) => copy.insert(version),
                        Change::Withdrawn(_) => copy.remove(&version),
                    };
                }
            }
        }
    }

    #[test]
    fn clients_are_sent_to_the_newest_that_serves() {
        let roster = Roster::new();
        roster.add(member("1.2.0", 1));
        roster.add(member("2.0.0", 1));
        assert_eq!(resolved(&roster, "orders"), "orders-2.0.0-1");
        assert_eq!(resolved(&roster, "orders@^1"), "orders-1.2.0-1");
        roster.withdraw(&"orders-2.0.0-1".parse().unwrap());
        assert_eq!(resolved(&roster, "orders"), "orders-1.2.0-1");
        let refusal = |wanted: &str| roster.resolve(&wanted.parse().unwrap()).unwrap_err().to_string();
        assert!(refusal("orders@^2").ends_with("no version that satisfies ^2: there is 1.2.0"));
        assert!(refusal("order").ends_with("did you mean 'orders'"));
        roster.withdraw(&"orders-1.2.0-1".parse().unwrap());
        assert!(refusal("orders@^2").ends_with("no version of service 'orders' is serving"));
    }

    #[test]
    fn equals_take_turns_whatever_others_ask_for() {
        let roster = Roster::new();
        for version in ["1.0.0", "1.2.0+a", "1.2.0+b", "1.2.0+c"] {
            roster.add(member(version, 1));
        }
        let mut turns = Vec::new();
        for _ in 0..6 {
            turns.push(resolved(&roster, "orders@^1"));
            resolved(&roster, "orders@=1.0.0");
            resolved(&roster, "orders@=1.2.0+b");
        }
        assert_eq!(turns[..3], turns[3..]);
        assert_eq!(turns.iter().collect::<BTreeSet<_>>().len(), 3);
        roster.withdraw(&"orders-1.2.0+b-1".parse().unwrap());
        let left: BTreeSet<_> = (0..2).map(|_| resolved(&roster, "orders")).collect();
        assert_eq!(left.into_iter().collect::<Vec<_>>(), ["orders-1.2.0+a-1", "orders-1.2.0+c-1"]);
    }

    #[test]
    fn a_new_instance_takes_the_place_of_the_old_one_and_is_not_withdrawn_with_it() {
        let roster = Roster::new();
        roster.add(member("1.2.0", 1));
        roster.add(member("1.2.0", 2));
        roster.withdraw(&"orders-1.2.0-1".parse().unwrap());
        assert_eq!(resolved(&roster, "orders"), "orders-1.2.0-2");
        assert_eq!(roster.snapshot().number(), 2);
    }

    #[test]
    fn an_upgrade_is_one_step_for_those_who_resolve_and_for_those_who_watch() {
        let roster = Roster::new();
        roster.add(member("1.2.0", 1));
        let mut watcher = roster.subscribe().unwrap();
        watcher.hear();
        roster.replace(&"orders-1.2.0-1".parse().unwrap(), member("1.3.0", 2));
        let Heard::Changes(changes, 3) = watcher.hear() else { panic!("not the changes") };
        let order: Vec<_> =
            changes.iter().map(|change| (matches!(change, Change::Added(_)), change.member())).collect();
        assert!(order[0].0 && order[0].1.version.minor == 3, "the new one first: {order:?}");
        assert!(!order[1].0 && order[1].1.version.minor == 2 && order.len() == 2, "{order:?}");
        roster.replace(&"orders-1.3.0-2".parse().unwrap(), member("1.3.0", 3));
        assert_eq!(resolved(&roster, "orders"), "orders-1.3.0-3");
    }

    #[test]
    fn a_watcher_hears_the_state_then_every_change_and_sleeps_in_between() {
        let roster = Roster::new();
        roster.add(member("1.0.0", 1));
        let mut watcher = roster.subscribe().unwrap();
        assert!(is_rung(&watcher), "there is a state to hear");
        assert!(matches!(watcher.hear(), Heard::State(state) if state.members().count() == 1));
        assert!(!is_rung(&watcher));
        roster.withdraw(&"nobody".parse().unwrap());
        assert!(!is_rung(&watcher), "nothing has changed");
        roster.add(member("1.1.0", 1));
        roster.withdraw(&"orders-1.0.0-1".parse().unwrap());
        assert!(is_rung(&watcher));
        let Heard::Changes(changes, 3) = watcher.hear() else { panic!("not two changes") };
        assert_eq!(changes, [Change::Added(member("1.1.0", 1).into()), Change::Withdrawn(member("1.0.0", 1).into())]);
        assert!(!is_rung(&watcher));
    }

    #[test]
    fn who_is_too_slow_starts_over_and_nothing_piles_up() {
        let roster = Roster::new();
        let (mut slow, mut just) = (roster.subscribe().unwrap(), roster.subscribe().unwrap());
        slow.hear();
        roster.add(member("9.0.0", 0));
        just.hear();
        for minor in 0..HISTORY as u64 {
            roster.add(member(&format!("1.{minor}.0"), 1));
        }
        assert!(matches!(just.hear(), Heard::Changes(changes, _) if changes.len() == HISTORY));
        assert!(matches!(slow.hear(), Heard::State(state) if state.members().count() == HISTORY + 1));
        assert!(matches!(slow.hear(), Heard::Changes(changes, _) if changes.is_empty()));
        assert_eq!(roster.lock().history.len(), HISTORY);
    }

    #[test]
    fn those_who_left_are_forgotten() {
        let roster = Roster::new();
        for _ in 0..100 {
            roster.subscribe().unwrap().hear();
        }
        assert!(roster.lock().bells.len() <= 1);
    }

    #[test]
    fn resolvers_find_a_version_at_every_moment_of_a_hundred_upgrades() {
        let roster = Roster::new();
        roster.add(member("1.0.0", 0));
        roster.add(member("2.0.0", 0));
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let wanted = "orders@^1".parse().unwrap();
                    while done.load(Ordering::Relaxed) == 0 {
                        assert_eq!(roster.resolve(&wanted).unwrap().version.major, 1);
                    }
                });
            }
            for minor in 1..100 {
                let old = roster.resolve(&"orders@^1".parse().unwrap()).unwrap();
                roster.replace(&old.instance, member(&format!("1.{minor}.0"), minor));
            }
            done.store(1, Ordering::Relaxed);
        });
    }

    proptest! {
        #[test]
        fn a_copy_that_follows_is_the_state(steps in prop::collection::vec((0..3u8, 0..4u64, 0..4u64, any::<bool>()), 0..40)) {
            let roster = Roster::new();
            let mut watcher = roster.subscribe().unwrap();
            let mut copy = BTreeSet::new();
            for (generation, (step, one, other, listens)) in (0..).zip(steps) {
                let there = roster.snapshot().members().find(|member| member.version.minor == other).cloned();
                match (step, there) {
                    (0, Some(there)) => roster.withdraw(&there.instance),
                    (1, Some(there)) => roster.replace(&there.instance, member(&format!("1.{one}.0"), generation)),
                    _ => roster.add(member(&format!("1.{one}.0"), generation)),
                }
                if listens {
                    follow(&mut copy, watcher.hear());
                }
            }
            follow(&mut copy, watcher.hear());
            let state: BTreeSet<_> =
                roster.snapshot().members().map(|member| member.version.to_string()).collect();
            prop_assert_eq!(copy, state);
        }
    }
}
