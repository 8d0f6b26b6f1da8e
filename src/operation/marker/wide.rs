//! Operations with many markers: one key for all of them, and a look at what others have.

use super::held::narrow_holder;
use super::{ATTEMPTS, Age, Claim, MARKER, Markers, Taken, WIDE, WideValue, Wish, Write, gave_up, gone, write};
use crate::error::{Error, Kind as Fault};
use crate::operation::dense;
use crate::operation::target::Runs;
use crate::registry::{Answer, Applied, Compare, Entry, Failure, Put, Registry, Transaction, VALUE_MAX};

/// What the first step led to.
enum Step {
    Token(u64),
    End(Taken),
}

impl Markers {
    pub(super) fn take_wide(&self, registry: &dyn Registry, wish: &Wish<'_>, write: Write<'_>) -> Answer<Taken> {
        let token = match self.raise(registry, wish)? {
            Step::Token(token) => token,
            Step::End(taken) => return Ok(taken),
        };
        let held = registry.list(MARKER).map(|listing| narrow_holder(&listing, wish));
        let taken = match held {
            Ok(Some(holder)) => Ok(Taken::Held(Box::new(holder))),
            Ok(None) => write_down(registry, wish, token, write),
            Err(failure) => Err(failure),
        };
        match &taken {
            // It may be that it is written down: then this is its marker.
            Ok(Taken::Taken(_)) | Err(Failure::Indeterminate(_)) => {}
            Ok(Taken::Held(_) | Taken::Duplicate(_)) | Err(_) => self.take_back(registry, wish.wide_key()),
        }
        taken
    }

    /// Puts the one marker, so that nobody who comes later passes.
    fn raise(&self, registry: &dyn Registry, wish: &Wish<'_>) -> Answer<Step> {
        let key = wish.wide_key();
        let id = &wish.marker.operation;
        let resources = Runs::new(wish.resources.iter().map(|resource| (&resource.node, resource.subject())));
        let value = dense::write(write(id, &WideValue { marker: wish.marker.clone(), resources })?);
        if value.len() > VALUE_MAX {
            let cause = format!("what it is about has {} bytes, at most {VALUE_MAX} are possible", value.len());
            let error = Error::new(Fault::Invalid, format!("submit {}", wish.marker.kind), cause);
            return Err(Failure::Refused(error.next("divide it")));
        }
        if let Some(id) = wish.owner_of_key(registry)? {
            return Ok(Step::End(Taken::Duplicate(id)));
        }
        let puts = vec![Put::new(WIDE, id.to_string().into_bytes()), Put::leased(&key, value, wish.lease)];
        let (mut age, mut doubt) = (Age::Any, None);
        for _ in 0..ATTEMPTS {
            let view = self.view(registry, age).map_err(|failure| doubt.clone().unwrap_or(failure))?;
            match (view.holder(wish), age) {
                (None, _) => {}
                (Some(_), Age::Any) => {
                    age = Age::New;
                    continue;
                }
                // What was sent before may still come.
                (Some(holder), Age::New) => return doubt.map_or(Ok(Step::End(Taken::Held(Box::new(holder)))), Err),
            }
            // The operation is not there yet: what ends it before it began keeps this from coming late.
            let head = Compare::unchanged(wish.head_key(), wish.head);
            let compares = vec![Compare::unchanged(WIDE, view.modified), Compare::absent(&key), head];
            let transaction = Transaction { compares, puts: puts.clone(), deletes: Vec::new() };
            match registry.apply(&transaction) {
                Ok(Applied::Committed(revision)) => return Ok(Step::Token(revision)),
                Ok(Applied::Refused) => {
                    let entry = registry.get(&key).map_err(|failure| doubt.clone().unwrap_or(failure))?;
                    if let Some(entry) = entry {
                        return Ok(Step::Token(entry.created));
                    }
                    age = Age::New;
                }
                // It is asked for again: if it happened, that is refused, and seen.
                Err(Failure::Indeterminate(error)) => doubt = Some(Failure::Indeterminate(error)),
                Err(failure) => return Err(doubt.unwrap_or(failure)),
            }
        }
        Err(doubt.unwrap_or_else(|| gave_up(id)))
    }
}

/// The operation comes to be, if its marker is still there.
fn write_down(registry: &dyn Registry, wish: &Wish<'_>, token: u64, write: Write<'_>) -> Answer<Taken> {
    let key = wish.wide_key();
    let mut transaction = wish.first_words();
    transaction.compares.push(Compare::unchanged(&key, token));
    transaction.puts.extend(write(Some(token)).map_err(Failure::Refused)?);
    let claim = |head| Taken::Taken(Claim { token, keys: vec![(key.clone(), token)], head });
    let mut doubt = None;
    for _ in 0..ATTEMPTS {
        match registry.apply(&transaction) {
            Ok(Applied::Committed(revision)) => return Ok(claim(revision)),
            Ok(Applied::Refused) => {
                let or_doubt = |failure| doubt.clone().unwrap_or(failure);
                let entry = registry.get(&wish.head_key()).map_err(or_doubt)?;
                // It happened, and only the answer was lost. Whatever else is there is somebody else's.
                let is_ours =
                    |entry: &Entry| transaction.puts.iter().any(|put| put.key == entry.key && put.value == entry.value);
                if let Some(entry) = entry.filter(is_ours) {
                    return Ok(claim(entry.modified));
                }
                return match wish.owner_of_key(registry)? {
                    Some(id) => Ok(Taken::Duplicate(id)),
                    None => Err(gone(&wish.marker.operation)),
                };
            }
            Err(Failure::Indeterminate(error)) => doubt = Some(Failure::Indeterminate(error)),
            Err(failure) => return Err(doubt.unwrap_or(failure)),
        }
    }
    Err(doubt.unwrap_or_else(|| gave_up(&wish.marker.operation)))
}
