//! The architecture, as a test: rooms import downwards only, and what is dangerous stays in its fence.
//!
//! A room is a top-level module. Its rank says what it may know: rooms of lower ranks, never a higher one, and never
//! one beside it. So a file is understood from what lies below it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room and its rank. A room that is not here does not exist: decide where it belongs first.
const RANKS: &[(&str, u8)] = &[
    ("config", 0),
    ("error", 0),
    ("ids", 0),
    ("metrics", 0),
    ("sys", 1),
    ("bundle", 2),
    ("cgroup", 2),
    ("criu", 2),
    ("distribution", 2),
    ("image", 2),
    ("overlay", 2),
    ("pack", 2),
    ("program", 2),
    ("registration", 2),
    ("registry", 2),
    ("rootfs", 2),
    ("store", 2),
    ("node", 3),
    ("operation", 3),
    ("ring", 3),
    ("runtime", 3),
    ("service", 3),
    ("template", 3),
    ("ops", 4),
    ("control", 5),
    ("cli", 6),
    ("command", 6),
    ("main", 7),
    // The map itself names every room.
    ("lib", 8),
];

/// Words of one rank that may use each other: the vocabulary, and what a user types with what is done about it.
const SIDEWAYS: &[(&str, &str)] = &[("ids", "error"), ("config", "error"), ("command", "cli")];

/// What may be named in some rooms only.
const FENCES: &[(&str, &[&str])] = &[
    ("unsafe", &["sys"]),
    ("libc", &["sys"]),
    ("RawFd", &["sys"]),
    ("as_raw_fd", &["sys"]),
    ("from_raw_fd", &["sys"]),
    ("into_raw_fd", &["sys"]),
    ("libseccomp", &["program"]),
    // The look-ups of the C library load modules, which a static program cannot: `sys::user` does it.
    ("from_uid", &[]),
    ("from_gid", &[]),
    ("clap", &["cli", "command"]),
];

#[test]
fn the_map_lists_every_room_by_rank() {
    let map = strip(&fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap());
    let listed: Vec<_> = map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(listed.is_sorted_by_key(|room| rank(room)), "src/lib.rs is out of order: {listed:?}");
    let listed: BTreeSet<_> = listed.into_iter().chain(["lib", "main"]).collect();
    let ranked: BTreeSet<_> = RANKS.iter().map(|(room, _)| *room).collect();
    assert_eq!(listed, ranked, "the rooms of src/lib.rs, and those that have a rank");
    let paths: Vec<_> = sources().into_iter().map(|(path, _)| path).collect();
    let found: BTreeSet<_> = paths.iter().map(|path| room_of(path)).collect();
    assert_eq!(found, ranked, "the rooms of the source tree, and those that have a rank");
}

#[test]
fn rooms_import_downwards_only() {
    let mut faults = Vec::new();
    for (path, code) in sources() {
        let room = room_of(&path);
        for other in imports(&code) {
            if let Err(fault) = check_edge(room, &other) {
                faults.push(format!("{}: {fault}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn dangerous_words_stay_in_their_rooms() {
    let mut faults = Vec::new();
    for (path, code) in sources() {
        let room = room_of(&path);
        for (word, rooms) in FENCES {
            if !rooms.contains(&room) && words(&code).any(|found| found == *word) {
                faults.push(format!("{}: '{word}' belongs into {rooms:?}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn no_module_climbs_out_of_its_room() {
    for (path, code) in sources() {
        assert_eq!(
            climbs(&code, depth_of(&path)),
            Vec::<String>::new(),
            "{}: name the room after crate::",
            path.display()
        );
    }
}

#[test]
fn the_checks_find_what_they_look_for() {
    let found = |code: &str| imports(&strip(code));
    assert_eq!(found("use crate::runtime::State; // crate::ring"), ["runtime"]);
    assert_eq!(found("use crate::{error::{Error, Kind}, ops, sys::fs as files};"), ["error", "ops", "sys"]);
    assert_eq!(found("fn f() -> crate::image::Layout { \"crate::ring\" }"), ["image"]);
    assert_eq!(found("/* crate::a /* crate::b */ crate::c */ 'x'; '\\''; r#\"crate::d\"#; crate::sys::x()"), ["sys"]);
    assert!(check_edge("bundle", "runtime").is_err(), "up");
    assert!(check_edge("bundle", "image").is_err(), "sideways");
    assert!(check_edge("bundle", "nowhere").is_err(), "unknown");
    assert!(check_edge("runtime", "bundle").is_ok() && check_edge("command", "cli").is_ok());
    assert_eq!(climbs("use super::super::entry::A; use super::b;", 2), Vec::<String>::new());
    assert_eq!(climbs("use super::super::runtime::A;", 2), ["super::super::runtime"]);
    assert_eq!(climbs("use super::super::super::x;", 2), ["super::super::super::x"]);
    assert!(words(&strip("let x = unsafe { 1 };")).any(|word| word == "unsafe"));
    assert!(!words(&strip("#![deny(unsafe_code)] // unsafe")).any(|word| word == "unsafe"));
}

fn rank(room: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == room).map(|(_, rank)| *rank)
}

fn check_edge(from: &str, to: &str) -> Result<(), String> {
    let here = rank(from).ok_or_else(|| format!("the room '{from}' has no rank"))?;
    let there = rank(to).ok_or_else(|| format!("the room '{to}' has no rank"))?;
    if from == to || there < here || SIDEWAYS.contains(&(from, to)) {
        return Ok(());
    }
    let direction = if there > here { "up" } else { "sideways" };
    Err(format!("{from} (rank {here}) imports {direction} from {to} (rank {there})"))
}

/// Every source file below `src`, without comments and the content of literals.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), strip(&fs::read_to_string(path).unwrap())));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// The first name of a path below `src`.
fn room_of(path: &Path) -> &str {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let first = path.strip_prefix(src).unwrap().components().next().unwrap().as_os_str().to_str().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The rooms that a file names after `crate::` or the library's name.
fn imports(code: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for prefix in ["crate::", "regen::"] {
        for (start, _) in code.match_indices(prefix) {
            let before = code[..start].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &code[start + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_heads(group)),
                None => found.extend(words(rest).next().filter(|_| starts_word(rest)).map(str::to_owned)),
            }
        }
    }
    found.into_iter().collect()
}

/// How many names the module path of a file has.
fn depth_of(path: &Path) -> usize {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names = path.strip_prefix(src).unwrap().components().count();
    if path.ends_with("mod.rs") { names - 1 } else { names }
}

/// Chains of `super` that end at the top: as many as the file is deep and then a room (fewer stay inside, and a
/// module in the file may need one more than the file itself), or more than that.
fn climbs(code: &str, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find("super::") {
        let mut after = &rest[start..];
        let mut steps = 0;
        while let Some(next) = after.strip_prefix("super::") {
            after = next;
            steps += 1;
        }
        let name = words(after).next().filter(|_| starts_word(after)).unwrap_or_default();
        if steps > depth || (steps == depth && depth > 1 && rank(name).is_some()) {
            found.push(format!("{}{name}", "super::".repeat(steps)));
        }
        rest = after;
    }
    found
}

fn starts_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The first name of each part of `a::{b, c}, d as e}`.
fn group_heads(text: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let (mut depth, mut fresh) = (0_u32, true);
    for (index, c) in text.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            _ if fresh && !c.is_whitespace() => {
                heads.extend(words(&text[index..]).next().map(str::to_owned));
                fresh = false;
            }
            _ => {}
        }
    }
    heads
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Code without comments, and with empty string and character literals.
fn strip(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let literal = raw_string(rest);
        rest = if rest.starts_with("//") {
            rest.find('\n').map_or("", |end| &rest[end..])
        } else if rest.starts_with("/*") {
            after_block_comment(rest)
        } else if let Some(after) = literal {
            code.push_str("\"\"");
            after
        } else if c == '"' {
            code.push_str("\"\"");
            after_quoted(&rest[1..], '"')
        } else if c == '\'' && is_character(rest) {
            code.push_str("''");
            after_quoted(&rest[1..], '\'')
        } else {
            code.push(c);
            &rest[c.len_utf8()..]
        };
    }
    code
}

fn after_block_comment(text: &str) -> &str {
    let (mut depth, mut index) = (0_u32, 0);
    while index < text.len() {
        if text[index..].starts_with("/*") {
            depth += 1;
            index += 2;
        } else if text[index..].starts_with("*/") {
            depth -= 1;
            index += 2;
            if depth == 0 {
                return &text[index..];
            }
        } else {
            index += text[index..].chars().next().map_or(1, char::len_utf8);
        }
    }
    ""
}

/// What follows a raw string that begins here.
fn raw_string(text: &str) -> Option<&str> {
    let rest = text.strip_prefix('r').or_else(|| text.strip_prefix("br"))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let body = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(body.find(&end).map_or("", |index| &body[index + end.len()..]))
}

fn after_quoted(text: &str, quote: char) -> &str {
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return &text[index + c.len_utf8()..],
            _ => {}
        }
    }
    ""
}

/// A character literal, not a lifetime.
fn is_character(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (Some(_), Some('\'')))
}
