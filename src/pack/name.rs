//! What the names in a pack mean: whiteouts, opaque directories, and real files that only look like them.
//!
//! | in the layer | in the pack |
//! |---|---|
//! | `a` is deleted | an empty file `.wh.a` |
//! | the directory `d` hides the one below | an empty file `d/.wh..wh..opq` |
//! | a real file `.wh.a` | `.regen.wh-<16 hex digits>`, and a record `REGEN.path` with the real path |
//!
//! The escape covers every component that begins with `.wh.` or with the escape's own prefix, so that no real file
//! is ever taken for a whiteout by another tool, nor for an escape by us. The stored name follows from the real one
//! ([`escape`]), and unpacking insists on it: a pack cannot show one path to a scanner and another to regen.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

/// What a whiteout's name begins with.
const WHITEOUT: &[u8] = b".wh.";
/// The name that makes its directory opaque.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of aufs that old images carry; every tool passes over it.
const AUFS: &[u8] = b".wh..wh.";
/// What the stored name of an escaped file begins with.
const ESCAPED: &[u8] = b".regen.wh-";
/// A longer path is no path that a layer ever had: the depth at which ext4 and xfs trees become unusable.
const PATH_CAP: usize = 1 << 20;

/// Why a name in a pack is refused.
pub(super) type Refusal = &'static str;

/// What an entry of a pack says about the layer. Paths are relative, without `.` and empty components; the root is
/// the empty path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A file, directory, … at this path.
    Entry(Vec<u8>),
    /// What the layers below have at this path is deleted.
    Whiteout(Vec<u8>),
    /// The directory at this path hides what the layers below have in it.
    Opaque(Vec<u8>),
    /// Says nothing.
    Nothing,
}

/// The name under which `name` is stored in a pack.
pub(super) fn escape(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.starts_with(WHITEOUT) && !name.starts_with(ESCAPED) {
        return Cow::Borrowed(name);
    }
    let hash = Sha256::digest(name);
    let hex = hash.iter().take(8).flat_map(|byte| format!("{byte:02x}").into_bytes());
    Cow::Owned(ESCAPED.iter().copied().chain(hex).collect())
}

/// The name of the whiteout of `name`, whichever way `name` itself is written.
pub(super) fn whiteout(name: &[u8]) -> Vec<u8> {
    [WHITEOUT, name].concat()
}

/// Reads a path of a pack: relative, without `..`, normalised.
pub(super) fn parse_path(path: &[u8]) -> Result<Vec<u8>, Refusal> {
    // The root alone is written so by some tools; no other path leads to it.
    if path.starts_with(b"/") && components(path).next().is_some() {
        return Err("an absolute path");
    }
    if path.contains(&0) {
        return Err("a path with a NUL byte");
    }
    if path.len() > PATH_CAP {
        return Err("a path of more than a mebibyte");
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in components(path) {
        match component {
            b"." => {}
            b".." => return Err("a path with '..'"),
            name => push(&mut clean, name),
        }
    }
    Ok(clean)
}

/// Whether a symbolic link at `path` may lead above the root: its target is absolute, or goes up further than it is deep, or goes
/// up from a name, which may itself be a link to somewhere less deep.
pub(super) fn leads_out(path: &[u8], target: &[u8]) -> bool {
    let depth = components(split(path).0).count();
    let mut rest = components(target).filter(|name| *name != b".").skip_while(|name| *name == b"..");
    let ups = components(target).filter(|name| *name != b".").take_while(|name| *name == b"..").count();
    target.starts_with(b"/") || ups > depth || rest.any(|name| name == b"..")
}

/// Reads what an entry stored as `stored` means; `real` is its `REGEN.path`, if it has one.
pub(super) fn parse_meaning(stored: &[u8], real: Option<&[u8]>) -> Result<Meaning, Refusal> {
    let stored = parse_path(stored)?;
    if components(&stored).any(|name| name.starts_with(AUFS) && name != OPAQUE) {
        return Ok(Meaning::Nothing);
    }
    let (parent, name) = split(&stored);
    if components(parent).any(|component| component.starts_with(WHITEOUT)) {
        return Err("a path below a whiteout");
    }
    let target = name.strip_prefix(WHITEOUT);
    if matches!(target, Some(b"" | b"." | b"..")) {
        return Err("a whiteout of no name");
    }
    let path = match real {
        None => stored.clone(),
        Some(real) => unescape(&stored, target.is_some(), real)?,
    };
    Ok(match target {
        None => Meaning::Entry(path),
        Some(_) if name == OPAQUE => Meaning::Opaque(split(&path).0.to_vec()),
        Some(_) => {
            let (parent, name) = split(&path);
            let mut deleted = parent.to_vec();
            push(&mut deleted, name.strip_prefix(WHITEOUT).unwrap_or(name));
            Meaning::Whiteout(deleted)
        }
    })
}

/// Reads the target of a hard link; `real` is the entry's `REGEN.linkpath`, if it has one.
pub(super) fn parse_target(stored: &[u8], real: Option<&[u8]>) -> Result<Vec<u8>, Refusal> {
    let stored = parse_path(stored)?;
    if components(&stored).any(|component| component.starts_with(WHITEOUT)) {
        return Err("a hard link to a whiteout");
    }
    match real {
        None => Ok(stored),
        Some(real) => unescape(&stored, false, real),
    }
}

/// The real path, if it is what `stored` is the escape of. The last component of a whiteout (`is_whiteout`) is its
/// prefix and an escaped name, that of an opaque mark stands for itself.
fn unescape(stored: &[u8], is_whiteout: bool, real: &[u8]) -> Result<Vec<u8>, Refusal> {
    let real = parse_path(real)?;
    let (parent, name) = split(&real);
    let mut expected = Vec::with_capacity(stored.len());
    for component in components(parent) {
        push(&mut expected, &escape(component));
    }
    match name.strip_prefix(WHITEOUT).filter(|_| is_whiteout) {
        Some(_) if split(stored).1 == OPAQUE => push(&mut expected, name),
        Some(b"" | b"." | b"..") => return Err("a whiteout of no name"),
        Some(target) => push(&mut expected, &whiteout(&escape(target))),
        None if name.is_empty() => {}
        None => push(&mut expected, &escape(name)),
    }
    if expected == stored { Ok(real) } else { Err("a REGEN record that does not fit the entry's name") }
}

/// The components of a path, without empty ones.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
}

/// The path of the directory and the name in it; both are empty for the root.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Appends a component to a path.
pub(super) fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Result<Meaning, Refusal> {
        Ok(Meaning::Entry(path.into()))
    }

    #[test]
    fn a_link_leads_out_if_it_could() {
        for (path, target) in [("a", "b"), ("a/b", "../c"), ("a/b/c", "./../../d/e"), ("a", ""), ("a", "./.")] {
            assert!(!leads_out(path.as_bytes(), target.as_bytes()), "{path} -> {target}");
        }
        for (path, target) in [("a", "/b"), ("a", ".."), ("a/b", "../../c"), ("a", "b/.."), ("a/b", "../c/../d")] {
            assert!(leads_out(path.as_bytes(), target.as_bytes()), "{path} -> {target}");
        }
    }

    #[test]
    fn names_mean_what_the_image_specification_says() {
        assert_eq!(parse_meaning(b"./a//b/", None), entry("a/b"));
        assert_eq!(parse_meaning(b"./", None), entry(""));
        assert_eq!(parse_meaning(b"/", None), entry(""));
        assert_eq!(parse_meaning(b"a/.wh.b", None), Ok(Meaning::Whiteout(b"a/b".to_vec())));
        assert_eq!(parse_meaning(b"a/.wh..wh..opq", None), Ok(Meaning::Opaque(b"a".to_vec())));
        assert_eq!(parse_meaning(b".wh..wh..opq", None), Ok(Meaning::Opaque(Vec::new())));
        assert_eq!(parse_meaning(b".wh..wh.plnk/12.3", None), Ok(Meaning::Nothing));
    }

    #[test]
    fn names_that_leave_the_layer_are_refused() {
        for bad in ["/etc/passwd", "../x", "a/../../x", "a/..", "a\0b", ".wh.", ".wh...", ".wh..", "a/.wh.b/c"] {
            assert!(parse_meaning(bad.as_bytes(), None).is_err(), "{bad:?} was taken");
        }
        for bad in ["/etc/passwd", "../../etc/passwd", "a/.wh.b"] {
            assert!(parse_target(bad.as_bytes(), None).is_err(), "{bad:?} was taken");
        }
    }

    fn stored(real: &str) -> Vec<u8> {
        let mut path = Vec::new();
        components(real.as_bytes()).for_each(|name| push(&mut path, &escape(name)));
        path
    }

    #[test]
    fn a_real_file_that_looks_like_a_whiteout_keeps_its_name() {
        for real in [".wh.x", "d/.wh..wh..opq", ".wh.d/plain", ".regen.wh-0011223344556677"] {
            let stored = stored(real);
            assert!(!components(&stored).any(|name| name.starts_with(WHITEOUT)), "{real} looks like a whiteout");
            assert_eq!(parse_meaning(&stored, Some(real.as_bytes())), entry(real));
        }
        assert_ne!(escape(b".wh.x"), escape(b".wh.y"));
    }

    #[test]
    fn the_whiteout_of_an_escaped_name_deletes_what_other_tools_see() {
        let stored = [b"d/.wh.".as_slice(), &escape(b".wh..opq")].concat();
        assert_eq!(parse_meaning(&stored, Some(b"d/.wh..wh..opq")), Ok(Meaning::Whiteout(b"d/.wh..opq".to_vec())));
        let inside = [&escape(b".wh.d"), b"/.wh..wh..opq".as_slice()].concat();
        assert_eq!(parse_meaning(&inside, Some(b".wh.d/.wh..wh..opq")), Ok(Meaning::Opaque(b".wh.d".to_vec())));
    }

    #[test]
    fn a_record_cannot_move_an_entry_to_another_path() {
        for (stored, real) in [("innocent", "etc/shadow"), ("a", "../a"), (".wh.a", ".wh.b"), ("a", ".wh.a")] {
            assert!(parse_meaning(stored.as_bytes(), Some(real.as_bytes())).is_err(), "{stored} became {real}");
        }
    }
}
