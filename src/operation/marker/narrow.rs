//! Operations with few markers: one transaction.

use super::{Age, Claim, Holder, Markers, Taken, Wish, Write, class, gave_up, read, write};
use crate::operation::marker::ATTEMPTS;
use crate::registry::{Answer, Applied, Compare, Failure, Put, Registry};

impl Markers {
    pub(super) fn take_narrow(&self, registry: &dyn Registry, wish: &Wish<'_>, write: Write<'_>) -> Answer<Taken> {
        let keys: Vec<_> = wish.keys().collect();
        let mut transaction = wish.first_words();
        transaction.puts.extend(write(None).map_err(Failure::Refused)?);
        let value = self::write(&wish.marker.operation, &wish.marker)?;
        for key in &keys {
            transaction.compares.push(Compare::absent(key));
            transaction.puts.push(Put::leased(key, value.clone(), wish.lease));
        }
        let mut doubt = None;
        let mut age = Age::Any;
        for _ in 0..ATTEMPTS {
            let view = match self.view(registry, age) {
                Ok(view) => view,
                Err(failure) => return Err(doubt.unwrap_or(failure)),
            };
            match (view.holder(wish), age) {
                (None, _) => {}
                // It may be over by now.
                (Some(_), Age::Any) => {
                    age = Age::New;
                    continue;
                }
                // What was sent before may still come.
                (Some(holder), Age::New) => return doubt.map_or(Ok(Taken::Held(Box::new(holder))), Err),
            }
            let mut transaction = transaction.clone();
            transaction.compares.push(Compare::unchanged(super::WIDE, view.modified));
            age = match registry.apply(&transaction) {
                Ok(Applied::Committed(revision)) => return Ok(Taken::Taken(claim(&keys, revision))),
                Ok(Applied::Refused) => match (look(registry, wish, &keys), doubt.clone()) {
                    (Ok(Some(Taken::Held(_))) | Err(_), Some(doubt)) => return Err(doubt),
                    (Ok(Some(taken)), _) => return Ok(taken),
                    (Err(failure), None) => return Err(failure),
                    (Ok(None), _) => Age::New,
                },
                // It is asked for again: if it happened, that is refused, and seen.
                Err(Failure::Indeterminate(error)) => {
                    doubt = Some(Failure::Indeterminate(error));
                    Age::Any
                }
                Err(failure) => return Err(doubt.unwrap_or(failure)),
            };
        }
        Err(doubt.unwrap_or_else(|| gave_up(&wish.marker.operation)))
    }
}

fn claim(keys: &[String], revision: u64) -> Claim {
    Claim { token: revision, keys: keys.iter().map(|key| (key.clone(), revision)).collect(), head: revision }
}

/// Why a transaction was refused; `None` if only `wide` moved, or what was there is gone.
fn look(registry: &dyn Registry, wish: &Wish<'_>, keys: &[String]) -> Answer<Option<Taken>> {
    if let Some(id) = wish.owner_of_key(registry)? {
        return Ok(Some(Taken::Duplicate(id)));
    }
    let classes = class(wish.marker.kind).len();
    for (index, key) in keys.iter().enumerate() {
        let Some(entry) = registry.get(key)? else { continue };
        match (read(&entry), wish.resources.get(index / classes)) {
            // It had happened, and only the answer was lost.
            (Some(marker), _) if marker.operation == wish.marker.operation => {
                return Ok(Some(Taken::Taken(claim(keys, entry.created))));
            }
            (Some(marker), Some(resource)) => {
                return Ok(Some(Taken::Held(Box::new(Holder { marker, resource: resource.clone() }))));
            }
            (None, _) | (_, None) => {}
        }
    }
    Ok(None)
}
