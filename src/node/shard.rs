//! A map of many names that is copied a little at a time: a change copies one of its parts, and readers have what they had.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use crate::ids::Name;

/// With ten thousand names a part has ten.
const PARTS: usize = 1024;

/// Names with values. A copy costs a pointer for each part.
#[derive(Debug)]
pub(super) struct Sharded<T> {
    parts: Vec<Arc<BTreeMap<Name, T>>>,
}

impl<T> Clone for Sharded<T> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone() }
    }
}

impl<T> Default for Sharded<T> {
    fn default() -> Self {
        let empty = Arc::new(BTreeMap::new());
        Self { parts: vec![empty; PARTS] }
    }
}

impl<T: Clone> Sharded<T> {
    pub(super) fn get(&self, name: &Name) -> Option<&T> {
        self.parts[part_of(name)].get(name)
    }

    /// Changes the value of a name, which may be none, before or after.
    pub(super) fn change(&mut self, name: &Name, change: impl FnOnce(Option<T>) -> Option<T>) {
        let part = Arc::make_mut(&mut self.parts[part_of(name)]);
        if let Some(value) = change(part.remove(name)) {
            part.insert(name.clone(), value);
        }
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &T)> {
        self.parts.iter().flat_map(|part| part.iter())
    }
}

/// The same for the life of the process.
fn part_of(name: &Name) -> usize {
    let mut hasher = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default().build_hasher();
    hasher.write(name.as_str().as_bytes());
    usize::try_from(hasher.finish() % PARTS as u64).unwrap_or(0)
}
