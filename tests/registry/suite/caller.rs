//! Callers who do what the documentation tells them: what failed without a change is asked for again, and who does not
//! know whether something was done looks first.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regen::registry::{
    Answer, Applied, Compare, Entry, Event, Failure, Lease, Put, Registry, Renewed, Transaction, Watch,
};

/// Asks until somebody answers; for what changes nothing, or may be done twice.
#[track_caller]
pub fn settle<T>(mut ask: impl FnMut() -> Answer<T>) -> T {
    let begin = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(Failure::Unavailable(_) | Failure::Indeterminate(_)) => {}
            Err(failure @ (Failure::Refused(_) | Failure::Compacted)) => panic!("{failure:?}"),
        }
        assert!(begin.elapsed() < super::LIMIT, "nobody answers");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Applies a transaction of which `witness`, a key that nobody else changes, gets a value that it never had.
pub fn apply(registry: &dyn Registry, transaction: &Transaction, witness: &Put) -> Applied {
    let mut transaction = transaction.clone();
    transaction.puts.push(witness.clone());
    let begin = Instant::now();
    let done = || {
        let found = settle(|| registry.get(&witness.key)).filter(|entry| entry.value == witness.value);
        found.map(|found| Applied::Committed(found.modified))
    };
    let mut unsure = false;
    loop {
        match registry.apply(&transaction) {
            // It may have been done after the look: what was on its way then is what it was refused for.
            Ok(Applied::Refused) if unsure => return done().unwrap_or(Applied::Refused),
            Ok(applied) => return applied,
            Err(Failure::Unavailable(_)) => {}
            Err(Failure::Indeterminate(_)) => {
                unsure = true;
                if let Some(applied) = done() {
                    return applied;
                }
            }
            Err(failure @ (Failure::Refused(_) | Failure::Compacted)) => panic!("{failure:?}"),
        }
        assert!(begin.elapsed() < super::LIMIT, "nobody answers");
    }
}

/// Adds one to the number at `count`. Nobody adds the same twice.
pub fn add_one(registry: &dyn Registry, writer: &str, number: usize) {
    let witness = Put::new(format!("done/{writer}"), number.to_string().into_bytes());
    loop {
        let found = settle(|| registry.get("count"));
        let (sum, modified) = found.map_or((0, 0), |entry| (parse(&entry.value), entry.modified));
        let more = Transaction::replace("count", modified, (sum + 1).to_string().into_bytes());
        match apply(registry, &more, &witness) {
            Applied::Committed(_) => return,
            Applied::Refused => {}
        }
    }
}

/// A number that a key has; 0 without one.
pub fn number(registry: &dyn Registry, key: &str) -> u64 {
    settle(|| registry.get(key)).map_or(0, |entry| parse(&entry.value))
}

fn parse(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// Takes a marker that nobody has, under a lease; its token, and the lease.
pub fn take(registry: &dyn Registry, holder: &str, time: Duration) -> (u64, Lease) {
    for number in 0.. {
        // One that nobody learns of goes by itself.
        let lease = settle(|| registry.grant(time));
        let marker = Transaction {
            compares: vec![Compare::absent("marker")],
            puts: vec![Put::leased("marker", holder.into(), lease)],
            deletes: Vec::new(),
        };
        let witness = Put::new(format!("taken/{holder}"), format!("{}-{number}", lease.0).into_bytes());
        match apply(registry, &marker, &witness) {
            Applied::Committed(token) => return (token, lease),
            Applied::Refused => std::thread::sleep(Duration::from_millis(2)),
        }
        settle(|| registry.revoke(lease));
    }
    unreachable!("numbers do not end")
}

/// Whether a lease is still there.
pub fn is_held(registry: &dyn Registry, lease: Lease) -> bool {
    settle(|| registry.renew(lease)) == Renewed::Yes
}

/// What a registry has below a prefix, told by a watch.
#[derive(Debug)]
pub struct Copy<'a> {
    registry: &'a dyn Registry,
    prefix: &'a str,
    watch: Option<Box<dyn Watch>>,
    /// The revision up to which it is the same.
    pub revision: u64,
    /// The keys.
    pub entries: BTreeMap<String, Entry>,
    /// How often it had to begin anew.
    pub listings: usize,
}

impl<'a> Copy<'a> {
    pub fn new(registry: &'a dyn Registry, prefix: &'a str) -> Self {
        let mut copy = Self { registry, prefix, watch: None, revision: 0, entries: BTreeMap::new(), listings: 0 };
        copy.list();
        copy
    }

    fn list(&mut self) {
        let listing = settle(|| self.registry.list(self.prefix));
        assert!(listing.revision >= self.revision, "{} after {}", listing.revision, self.revision);
        self.revision = listing.revision;
        self.entries = listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        self.listings += 1;
    }

    /// Hears for a while.
    pub fn follow(&mut self, limit: Duration) {
        let heard = match &mut self.watch {
            Some(watch) => watch.next(Some(limit)),
            None => self.registry.watch(self.prefix, self.revision).map(|watch| {
                self.watch = Some(watch);
                Vec::new()
            }),
        };
        match heard {
            Ok(events) => events.chunk_by(|a, b| a.revision == b.revision).for_each(|whole| self.change(whole)),
            Err(Failure::Unavailable(_)) => self.watch = None,
            Err(Failure::Compacted) => {
                self.watch = None;
                self.list();
            }
            Err(failure @ (Failure::Refused(_) | Failure::Indeterminate(_))) => panic!("{failure:?}"),
        }
    }

    fn change(&mut self, whole: &[Event]) {
        let revision = whole[0].revision;
        assert!(revision > self.revision, "{revision} was told of after {}", self.revision);
        self.revision = revision;
        for Event { key, entry, .. } in whole {
            assert!(key.starts_with(self.prefix));
            match entry {
                Some(entry) => {
                    assert_eq!(entry.modified, revision);
                    let known = self.entries.insert(key.clone(), entry.clone());
                    let created = known.map_or(revision, |known| known.created);
                    assert_eq!(entry.created, created, "{key}: a change in between was missed");
                }
                None => _ = self.entries.remove(key),
            }
        }
    }
}
