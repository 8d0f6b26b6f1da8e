//! What a daemon writes down of its operations in the registry: that they are there, how far they are, how they ended, and what
//! an earlier daemon of the node has left. All of it is compared with what was there before, so that of two who write one is
//! told, and nothing is written twice.

use super::lease::{Held, Keeper};
use super::marker::{Claim, Marker, Markers, Taken, Wish};
use super::record::{read_targets, write_results};
use super::{Clock, Counts, OperationId, Outcome, Record, Resource, State, key};
use crate::error::{Error, Kind as Fault, Result};
use crate::ids::NodeName;
use crate::registry::{Answer, Applied, Compare, Entry, Failure, Lease, Put, Registry, Transaction};

/// The longest piece of results.
const PIECE: usize = 512 << 10;
/// How often somebody else may come between.
const ATTEMPTS: u32 = 16;

/// Who writes, and where.
#[derive(Debug, Clone, Copy)]
pub struct Book<'a> {
    /// What it is written in.
    pub registry: &'a dyn Registry,
    /// Whose daemon writes.
    pub node: &'a NodeName,
    /// The time.
    pub clock: &'a dyn Clock,
    /// What is known of markers.
    pub markers: &'a Markers,
    /// What its own markers hang on.
    pub lease: &'a Keeper,
}

/// An operation of an earlier daemon that this one goes on with.
#[derive(Debug)]
pub struct Reclaimed {
    /// The lease that its markers hang on, by its number; 0 if it has none.
    pub lease: u64,
    /// Its markers.
    pub claim: Claim,
    /// Why what was not begun must not be begun now: somebody else has what it takes.
    pub barred: Option<String>,
}

/// What became of an operation of which nobody knew whether it is one.
#[derive(Debug)]
pub enum Doubt {
    /// It is none, and never will be; or it is at its end.
    Over,
    /// It is one, whose head was changed last by this revision.
    There(u64),
}

/// A head, and the revision that changed it last.
///
/// # Errors
/// Those of the registry, and of reading what is there.
pub fn head(registry: &dyn Registry, id: &OperationId) -> Result<Option<(Record, u64)>> {
    let Some(entry) = registry.get(&key::head(id))? else { return Ok(None) };
    Ok(Some((Record::read(&entry)?, entry.modified)))
}

/// Reads the targets of one that has many.
///
/// # Errors
/// Those of the registry, and of reading what is there.
pub fn fill(registry: &dyn Registry, record: &mut Record) -> Result<()> {
    if record.targets.is_empty()
        && let Some(entry) = registry.get(&key::targets(&record.id))?
    {
        record.targets = read_targets(&entry)?;
    }
    Ok(())
}

impl Book<'_> {
    /// Takes the markers of a new operation and writes it down, or does neither; with another lease if that of before is gone.
    ///
    /// # Errors
    /// [`Failure::Indeterminate`] if that may or may not have happened ([`Book::entomb`]); else as [`Markers::take`].
    pub fn admit(&self, record: &Record, resources: &[Resource]) -> Answer<(Held, Taken)> {
        let mut again = true;
        loop {
            let held = self.lease.ensure(self.registry, self.clock)?;
            let wish = Wish { key: record.key.as_deref(), ..self.wish(record, resources, (held.lease, 0)) };
            let mut write = |token| self.first_words(record, token);
            match self.markers.take(self.registry, &wish, &mut write) {
                Ok(taken) => return Ok((held, taken)),
                Err(Failure::Refused(error)) if again && error.kind() == Fault::NotFound => {
                    again = false;
                    self.lease.forget(held.number);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// What writes an operation down.
    fn first_words(&self, record: &Record, token: Option<u64>) -> Result<Vec<Put>> {
        let head = record.write(token, record.chunks)?;
        let mut puts = vec![Put::new(key::head(&record.id), head)];
        puts.push(Put::new(key::active(self.node, &record.id), Vec::new()));
        if let Some(targets) = record.write_targets()? {
            puts.push(Put::new(key::targets(&record.id), targets));
        }
        Ok(puts)
    }

    fn wish<'a>(&self, record: &Record, resources: &'a [Resource], (lease, head): (Lease, u64)) -> Wish<'a> {
        let (operation, kind, since) = (record.id, record.kind, record.created);
        let marker = Marker { operation, kind, node: self.node.clone(), since };
        Wish { marker, resources, key: None, lease, head }
    }

    /// Writes down how far an operation is. Whether that is there now.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn note(&self, record: &Record, claim: &mut Claim) -> Answer<bool> {
        let name = key::head(&record.id);
        let value = record.write(record.token, 0).map_err(Failure::Refused)?;
        match self.registry.apply(&Transaction::replace(&name, claim.head, value)) {
            Ok(Applied::Committed(revision)) => {
                claim.head = revision;
                Ok(true)
            }
            Ok(Applied::Refused) | Err(Failure::Indeterminate(_)) => {
                // What others wrote, who took this daemon for dead, is found at the end.
                let is_theirs = |entry: &Entry| {
                    Record::read(entry).is_ok_and(|there| there.state.is_final() || is_anothers(entry, &there, claim))
                };
                if let Some(entry) = self.registry.get(&name)?
                    && !is_theirs(&entry)
                {
                    claim.head = entry.modified;
                }
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Writes down how an operation ended: in one transaction its state, its results, and its markers gone. Gives what is
    /// written down instead, if somebody else was first.
    ///
    /// # Errors
    /// Those of the registry; then it is to be tried again.
    pub fn end(&self, record: &Record, claim: &mut Claim) -> Answer<Option<Record>> {
        let pieces = write_results(&record.results, PIECE).map_err(Failure::Refused)?;
        let (chunks, many) = (u32::try_from(pieces.len()).unwrap_or(u32::MAX), pieces.len() > 1);
        let mut puts = Vec::new();
        for (number, piece) in (0..).zip(pieces) {
            let put = Put::new(key::results(&record.id, number), piece);
            if many {
                // Nobody reads them before the head says that they are there.
                self.registry.apply(&Transaction { puts: vec![put], ..Transaction::default() })?;
            } else {
                puts.push(put);
            }
        }
        let head = record.write(record.token, chunks).map_err(Failure::Refused)?;
        puts.push(Put::new(key::head(&record.id), head));
        let active = key::active(self.node, &record.id);
        for _ in 0..ATTEMPTS {
            let deletes = vec![active.clone()];
            let mut transaction = Transaction { puts: puts.clone(), deletes, ..Transaction::default() };
            transaction.compares.push(Compare::unchanged(key::head(&record.id), claim.head));
            claim.release(&mut transaction);
            match self.registry.apply(&transaction) {
                Ok(Applied::Committed(_)) => return Ok(None),
                Ok(Applied::Refused) | Err(Failure::Indeterminate(_)) => {
                    match self.look(record, claim)? {
                        Found::Ended(there) => return self.let_go(claim).map(|()| there.map(|there| *there)),
                        // Its end and its markers are theirs.
                        Found::Taken(there) => return Ok(Some(*there)),
                        Found::NotEnded => {}
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        let cause = "others came between again and again";
        let operation = format!("write down the end of operation {}", record.id);
        Err(Failure::Unavailable(Error::new(Fault::Busy, operation, cause)))
    }

    /// What is there in place of what was expected.
    fn look(&self, record: &Record, claim: &mut Claim) -> Answer<Found> {
        let Some(entry) = self.registry.get(&key::head(&record.id))? else { return Ok(Found::Ended(None)) };
        if let Ok(there) = Record::read(&entry) {
            if there.state.is_final() {
                claim.reread(self.registry, &record.id)?;
                return Ok(Found::Ended(Some(Box::new(there))));
            }
            if is_anothers(&entry, &there, claim) {
                let error = Some("another daemon of its node has taken it up".to_owned());
                return Ok(Found::Taken(Box::new(Record { state: State::Unknown, error, ..there })));
            }
        }
        claim.reread(self.registry, &record.id)?;
        claim.head = entry.modified;
        Ok(Found::NotEnded)
    }

    /// Markers that are left where the end was written down without them.
    fn let_go(&self, claim: &Claim) -> Answer<()> {
        let mut transaction = Transaction::default();
        claim.release(&mut transaction);
        if transaction.deletes.is_empty() {
            return Ok(());
        }
        self.registry.apply(&transaction).map(drop)
    }

    /// What the node's daemons of before have not brought to an end, whole, with the revisions that changed the heads last and
    /// the first token of each. What only seems so is cleared away.
    ///
    /// # Errors
    /// Those of the registry, and of reading what is there.
    pub fn unfinished(&self, is_known: &dyn Fn(&OperationId) -> bool) -> Result<Vec<(Record, u64)>> {
        let prefix = key::active_of(self.node);
        let mut found = Vec::new();
        for entry in self.registry.list(&prefix)?.entries {
            let Some(Ok(id)) = entry.key.strip_prefix(&prefix).map(str::parse::<OperationId>) else { continue };
            if is_known(&id) {
                continue;
            }
            match head(self.registry, &id)? {
                Some((mut record, modified)) if !record.state.is_final() => {
                    fill(self.registry, &mut record)?;
                    // It may have been begun under any of its tokens: what is asked of fences begins with the first.
                    record.since = Some(record.since.or(record.token).unwrap_or(modified));
                    found.push((record, modified));
                }
                Some(_) | None => {
                    self.registry.apply(&Transaction { deletes: vec![entry.key], ..Transaction::default() })?;
                }
            }
        }
        Ok(found)
    }

    fn has_markers(&self, record: &Record) -> Result<bool> {
        let resources = all_resources(record)?;
        Ok(self.markers.are_there(self.registry, &self.wish(record, &resources, (Lease(0), 0)))?)
    }

    /// The markers of such an operation: those that it had, new ones, or none and why.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn reclaim(&self, record: &Record, modified: u64) -> Result<Reclaimed> {
        let resources = all_resources(record)?;
        let held = self.lease.ensure(self.registry, self.clock)?;
        let wish = self.wish(record, &resources, (held.lease, modified));
        if let Some(mut claim) = self.markers.take_over(self.registry, &wish)? {
            claim.head = modified;
            return Ok(Reclaimed { lease: held.number, claim, barred: None });
        }
        let mut write = |token| Ok(vec![Put::new(key::head(&record.id), record.write(token, 0)?)]);
        Ok(match self.markers.take(self.registry, &wish, &mut write)? {
            Taken::Taken(claim) => Reclaimed { lease: held.number, claim, barred: None },
            Taken::Held(holder) => {
                let reason = holder.error(&wish.marker, self.clock.wall()).without_next_step();
                let claim = Claim::bare(record.token.unwrap_or(modified), modified);
                Reclaimed { lease: 0, claim, barred: Some(reason) }
            }
            // It asks for no key.
            Taken::Duplicate(_) => Reclaimed {
                lease: 0,
                claim: Claim::bare(0, modified),
                barred: Some("its key belongs to another".to_owned()),
            },
        })
    }

    /// Sees to it that an operation whose caller was not told whether it is one is none, if it is not.
    ///
    /// To look is not enough: what was sent may be done later. So its end is written down where it would begin, and what comes
    /// after that finds the place taken.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn entomb(&self, record: &Record, reason: &str, is_known: &dyn Fn(&OperationId) -> bool) -> Result<Doubt> {
        let id = record.id;
        let results = vec![Outcome::because(State::Cancelled, reason); record.targets.len()];
        let counts = Counts { cancelled: results.len(), ..record.counts };
        let (ended, error) = (Some(self.clock.wall()), Some(reason.to_owned()));
        let end = Record { state: State::Cancelled, ended, error, counts, results, key: None, ..record.clone() };
        let transaction = Transaction::replace(&key::head(&id), 0, end.write(None, 0)?);
        if self.registry.apply(&transaction)? != Applied::Refused {
            self.markers.forget(self.registry, &id)?;
            return Ok(Doubt::Over);
        }
        // It was there: it is ended as any other.
        let Some((there, modified)) = head(self.registry, &id)? else { return Ok(Doubt::Over) };
        if is_known(&id) {
            return Ok(Doubt::Over);
        }
        if there.state.is_final() {
            // An answer of ours was lost, too.
            self.markers.forget(self.registry, &id)?;
            return Ok(Doubt::Over);
        }
        Ok(Doubt::There(modified))
    }

    /// Ends what a node has that does not come back: nobody knows what it did. How many operations that were.
    ///
    /// Of the own node, that is what has no markers any more and is not known here: what an earlier daemon sent came to be after
    /// this one had looked what there is.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn bury(&self, node: &NodeName, is_known: &dyn Fn(&OperationId) -> bool) -> Result<usize> {
        let prefix = key::active_of(node);
        let mut count = 0;
        for entry in self.registry.list(&prefix)?.entries {
            let Some(Ok(id)) = entry.key.strip_prefix(&prefix).map(str::parse::<OperationId>) else { continue };
            if is_known(&id) {
                continue;
            }
            let Some((mut record, modified)) = head(self.registry, &id)? else { continue };
            if node == self.node {
                fill(self.registry, &mut record)?;
                if self.has_markers(&record)? {
                    continue;
                }
            }
            let mut transaction = Transaction { deletes: vec![entry.key], ..Transaction::default() };
            if !record.state.is_final() {
                let counts = Counts { unknown: record.counts.total - record.counts.done(), ..record.counts };
                let error = Some(if node == self.node {
                    "the daemon before, which had it, is gone".to_owned()
                } else {
                    format!("node '{node}', which had it, is gone")
                });
                let ended = Some(self.clock.wall());
                let token = record.token.or(Some(modified));
                let end = Record { state: State::Unknown, ended, error, counts, ..record };
                transaction.compares.push(Compare::unchanged(key::head(&id), modified));
                transaction.puts.push(Put::new(key::head(&id), end.write(token, 0)?));
            }
            // Somebody else may have done it, or the node is back.
            count += usize::from(self.registry.apply(&transaction)? != Applied::Refused);
        }
        Ok(count)
    }
}

fn all_resources(record: &Record) -> Result<Vec<Resource>> {
    let mut resources = Vec::new();
    for target in &record.targets {
        resources.extend(Resource::all(record.kind, target, &record.parameters)?);
    }
    Ok(resources)
}

/// Whether another daemon took it up, with markers that are newer than these.
fn is_anothers(entry: &Entry, there: &Record, claim: &Claim) -> bool {
    there.token.unwrap_or(entry.modified) > claim.token
}

enum Found {
    /// As this, if it is not gone altogether.
    Ended(Option<Box<Record>>),
    /// Another daemon of this node has it, which took this one for dead; as those see it who asked this one.
    Taken(Box<Record>),
    NotEnded,
}
