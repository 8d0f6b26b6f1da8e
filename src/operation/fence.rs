//! The fence of a node: for each resource the highest token that was seen, on disk. Who comes with a lower one lost its marker
//! to somebody who was here since, and is refused, however late it comes.
//!
//! ```text
//! STORE/fences/FILE    { version, resource, seen: { REGISTRY: [ { subject, class, token } ] } }
//! ```
//!
//! A file is that of a resource and of all its versions. It is read and written under the lock of what the resource is (the ring's,
//! the container's, the claim of a service), which command-line verbs take, too; so nobody is between the look and the deed.
//! What passed is on disk before anything is done. So a daemon that starts knows what was begun.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::class::{Class, class};
use super::resource::overlap;
use super::{Kind, Resource};
use crate::error::{Context, Error, Kind as Fault, Result, quote};
use crate::sys::fs::{Durability, read_capped, replace_file, sync_directory};

/// The directory below the store.
pub const DIRECTORY: &str = "fences";
/// The version of the files.
const VERSION: u32 = 1;
/// The largest file that is read.
const CAP: u64 = 1 << 20;
/// Of so many tokens of one file at most those that came last are kept.
const KEPT: usize = 256;
/// Of so many registries at most those are known that were used last; a machine moves from one to another a few times.
const REGISTRIES: usize = 8;

/// The right to act for an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The registry that counts: numbers of two are not compared.
    pub registry: String,
    /// The revision that made the operation's markers.
    pub number: u64,
}

/// Whether a token was seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// No: what it is for was not begun.
    First,
    /// Yes: it was begun, maybe by a daemon that is gone.
    Again,
}

/// The fence of a node.
#[derive(Debug)]
pub struct Fence {
    directory: PathBuf,
    /// Threads of this process that come for different resources of one file wait for each other.
    turn: Mutex<()>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    resource: String,
    seen: BTreeMap<String, Vec<Seen>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    subject: String,
    class: Class,
    token: u64,
}

impl Fence {
    /// That of a store, which has to be there.
    ///
    /// # Errors
    /// Those of making the directory.
    pub fn open(store: &Path) -> Result<Self> {
        let directory = store.join(DIRECTORY);
        match fs::create_dir(&directory) {
            Ok(()) => sync_directory(store)?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context(|| format!("make {}", quote(&directory))),
        }
        Ok(Self { directory, turn: Mutex::default() })
    }

    /// Lets an operation act on a resource, and remembers that. The caller holds the lock of what the resource is.
    ///
    /// # Errors
    /// [`Fault::State`] if somebody with a higher token was here; else those of reading and writing the file.
    pub fn pass(&self, resource: &Resource, kind: Kind, token: &Token) -> Result<Passed> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = self.read(resource)?;
        let seen = file.seen.entry(token.registry.clone()).or_default();
        let highest = highest(seen, resource, kind);
        if highest > token.number {
            let operation = format!("{kind} of '{resource}'");
            let cause = format!("its marker was lost: it has token {}, and one with {highest} was here", token.number);
            return Err(Error::new(Fault::State, operation, cause).next("see 'regen op ls'"));
        }
        if has(seen, resource, kind, token.number) {
            return Ok(Passed::Again);
        }
        note(seen, resource, kind, token.number);
        if file.seen.len() > REGISTRIES {
            file.seen.retain(|registry, _| *registry == token.registry);
        }
        let content = serde_json::to_vec(&file).context(|| format!("write down who was at '{resource}'"))?;
        replace_file(&self.directory, &name(resource.root()), &content, Durability::Durable)?;
        drop(turn);
        Ok(Passed::First)
    }

    /// Whether an operation may have begun to act on a resource: it, or somebody who came after it, was here. Of those who
    /// came before others nothing is kept.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn has_passed(&self, resource: &Resource, kind: Kind, token: &Token) -> Result<bool> {
        let file = self.read(resource)?;
        Ok(file.seen.get(&token.registry).is_some_and(|seen| highest(seen, resource, kind) >= token.number))
    }

    fn read(&self, resource: &Resource) -> Result<File> {
        let path = self.directory.join(name(resource.root()));
        let bytes = match read_capped(&path, CAP) {
            Err(error) if error.kind() == Fault::NotFound => {
                return Ok(File { version: VERSION, resource: resource.root().to_owned(), seen: BTreeMap::new() });
            }
            other => other?,
        };
        let operation = || format!("read {}", quote(&path));
        let file: File = serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Fault::Damaged, operation(), error.to_string()))?;
        if file.version != VERSION {
            let cause = format!("it has version {}, this regen reads {VERSION}", file.version);
            return Err(Error::new(Fault::Unsupported, operation(), cause));
        }
        Ok(file)
    }
}

/// The highest token of anybody who was where this one wants to be.
fn highest(seen: &[Seen], resource: &Resource, kind: Kind) -> u64 {
    let same = seen.iter().filter(|seen| class(kind).contains(&seen.class));
    same.filter(|seen| overlap(&seen.subject, resource.subject(), true)).map(|seen| seen.token).max().unwrap_or(0)
}

fn has(seen: &[Seen], resource: &Resource, kind: Kind, token: u64) -> bool {
    let is_noted = |class: &Class| {
        seen.iter().any(|seen| seen.subject == resource.subject() && seen.class == *class && seen.token == token)
    };
    class(kind).iter().all(is_noted)
}

fn note(seen: &mut Vec<Seen>, resource: &Resource, kind: Kind, token: u64) {
    let classes = class(kind);
    // What is lower and overlaps is not asked for any more, unless it is about more than this.
    let covers = |old: &Seen| old.subject == resource.subject() || resource.is_whole();
    seen.retain(|old| !(classes.contains(&old.class) && covers(old)));
    let subject = resource.subject();
    seen.extend(classes.iter().map(|class| Seen { subject: subject.to_owned(), class: *class, token }));
    if seen.len() > KEPT {
        seen.sort_by_key(|seen| std::cmp::Reverse(seen.token));
        seen.truncate(KEPT);
    }
}

/// A file's name: letters, digits, `-`, `_` and `.` as they are, the rest by its number. Long ones end in a digest.
fn name(root: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut name = String::new();
    for byte in root.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
    }
    if name.len() > 200 {
        let digest: String = Sha256::digest(root).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        name.truncate(160);
        name.push('+');
        name.push_str(&digest);
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resource(text: &str) -> Resource {
        Resource::parse(text).unwrap()
    }

    fn token(number: u64) -> Token {
        Token { registry: "r".to_owned(), number }
    }

    fn fence() -> (tempfile::TempDir, Fence) {
        let store = tempfile::tempdir().unwrap();
        let fence = Fence::open(store.path()).unwrap();
        (store, fence)
    }

    #[test]
    fn a_lower_token_is_refused_also_after_a_restart() {
        let (store, fence) = fence();
        let ring = resource("n:ring/root/a");
        assert_eq!(fence.pass(&ring, Kind::RingRollback, &token(7)).unwrap(), Passed::First);
        assert_eq!(fence.pass(&ring, Kind::RingRollback, &token(7)).unwrap(), Passed::Again);
        let fence = Fence::open(store.path()).unwrap();
        assert!(fence.has_passed(&ring, Kind::RingRollback, &token(7)).unwrap());
        let error = fence.pass(&ring, Kind::RingSnapshot, &token(6)).unwrap_err();
        assert_eq!(error.kind(), Fault::State);
        assert!(error.to_string().contains("token 6, and one with 7"), "{error}");
        assert_eq!(fence.pass(&ring, Kind::RingSnapshot, &token(8)).unwrap(), Passed::First);
        assert!(!fence.has_passed(&ring, Kind::RingRollback, &token(9)).unwrap());
    }

    #[test]
    fn what_does_not_conflict_passes_beside_it() {
        let (_store, fence) = fence();
        let ring = resource("n:ring/root/a");
        fence.pass(&ring, Kind::RingRollback, &token(7)).unwrap();
        assert_eq!(fence.pass(&ring, Kind::RingPin, &token(3)).unwrap(), Passed::First);
        assert!(fence.pass(&ring, Kind::RingRemove, &token(5)).is_err(), "it takes what the rollback has");
        assert_eq!(fence.pass(&ring, Kind::RingRemove, &token(9)).unwrap(), Passed::First);
        assert!(fence.pass(&ring, Kind::RingPin, &token(8)).is_err());
    }

    #[test]
    fn a_service_fences_its_versions_and_they_fence_it() {
        let (_store, fence) = fence();
        let (all, one, two) = (resource("n:service/a"), resource("n:service/a@1.0.0"), resource("n:service/a@2.0.0"));
        fence.pass(&one, Kind::ServiceRestart, &token(5)).unwrap();
        fence.pass(&two, Kind::ServiceRestart, &token(4)).unwrap();
        assert!(fence.pass(&all, Kind::ServiceRemove, &token(4)).is_err());
        fence.pass(&all, Kind::ServiceRemove, &token(6)).unwrap();
        assert!(fence.pass(&one, Kind::ServiceRestart, &token(5)).is_err());
        assert!(fence.pass(&two, Kind::ServiceRestart, &token(5)).is_err());
        fence.pass(&two, Kind::ServiceAdd, &token(7)).unwrap();
    }

    #[test]
    fn tokens_of_another_registry_are_not_compared() {
        let (_store, fence) = fence();
        let ring = resource("n:ring/root/a");
        fence.pass(&ring, Kind::RingSet, &token(100)).unwrap();
        let other = Token { registry: "other".to_owned(), number: 1 };
        assert_eq!(fence.pass(&ring, Kind::RingSet, &other).unwrap(), Passed::First);
        assert!(fence.pass(&ring, Kind::RingSet, &token(99)).is_err());
    }

    #[test]
    fn a_file_that_is_damaged_or_newer_lets_nobody_pass() {
        let (store, fence) = fence();
        let ring = resource("n:ring/root/a");
        let path = store.path().join(DIRECTORY).join(name(ring.root()));
        for (content, kind) in [
            ("", Fault::Damaged),
            ("{}", Fault::Damaged),
            (r#"{"version":2,"resource":"x","seen":{}}"#, Fault::Unsupported),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(fence.pass(&ring, Kind::RingSet, &token(1)).unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn names_are_plain_and_differ() {
        assert_eq!(name("ring/root/a"), "ring%2froot%2fa");
        let long = |end: char| name(&format!("ring/root/{}{end}", "x".repeat(250)));
        assert!(long('a').len() < 200 && long('a') != long('b'));
    }

    proptest! {
        /// Whoever comes in whatever order: of those that exclude each other, tokens only grow.
        #[test]
        fn tokens_grow(visits in proptest::collection::vec((0..3_usize, 0..18_usize, 1..20_u64), 1..40)) {
            let (_store, fence) = fence();
            let resources = ["n:service/a", "n:service/a@1.0.0", "n:service/a@2.0.0"].map(resource);
            let mut passed: Vec<(usize, Kind, u64)> = Vec::new();
            for (which, kind, number) in visits {
                let kind = Kind::ALL[kind];
                let higher = passed.iter().any(|(other, earlier, token)| {
                    resources[*other].overlaps(&resources[which])
                        && super::super::class::conflict(*earlier, kind) && *token > number
                });
                prop_assert_eq!(fence.pass(&resources[which], kind, &token(number)).is_err(), higher);
                if !higher {
                    passed.push((which, kind, number));
                }
            }
        }
    }
}
