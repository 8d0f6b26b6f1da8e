//! Keys and entries as etcd has them: bytes, below a prefix.

use etcd_client::KeyValue;

use crate::registry::Entry;

/// A range of keys: from the first on, before the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub first: Vec<u8>,
    pub end: Vec<u8>,
}

impl Keys {
    /// All that begin so.
    pub(super) fn below(prefix: &str) -> Self {
        let first = prefix.as_bytes().to_vec();
        let mut end = first.clone();
        // The byte 255 is in no text, so one can be added to the last.
        if let Some(last) = end.last_mut() {
            *last = last.saturating_add(1);
        }
        Self { first, end }
    }

    /// Those after a key.
    pub(super) fn after(self, key: &[u8]) -> Self {
        Self { first: [key, b"\0"].concat(), end: self.end }
    }
}

/// What etcd says about a key; none for one that is not ours.
pub(super) fn read(found: &KeyValue, prefix: &str) -> Option<Entry> {
    Some(Entry {
        key: found.key_str().ok()?.strip_prefix(prefix)?.to_owned(),
        value: found.value().to_vec(),
        created: found.create_revision().cast_unsigned(),
        modified: found.mod_revision().cast_unsigned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_what_begins_so_and_nothing_else() {
        let Keys { first, end } = Keys::below("regen/a");
        for (key, inside) in [
            ("regen/a", true),
            ("regen/a/b", true),
            ("regen/aé\u{10ffff}", true),
            ("regen/b", false),
            ("regen/", false),
        ] {
            assert_eq!(first.as_slice() <= key.as_bytes() && key.as_bytes() < end.as_slice(), inside, "{key}");
        }
        assert_eq!(Keys::below("a/").after(b"a/b").first, b"a/b\0");
    }
}
