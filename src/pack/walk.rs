//! One walk through a layer that is copied: to the names that may have changed, and in new directories to all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::time::SystemTime;

use rustix::fs::{AtFlags, FileType, Mode, Stat, fstat, openat, statat};
use rustix::io::Errno;
use tar::EntryType;

use super::attribute::{Handle, Notes, Reader};
use super::content::Sharing;
use super::copy::{Passed, Room, Upper, check_same, entry, is_gone, is_whiteout};
use super::known::{Directory, Names, Node, Over, What};
use super::name;
use super::place::Place;
use super::seen::{Seen, kind_of};
use super::suspect::Suspects;
use super::trail::{self, DIRECTORY, Trail, open_beneath};
use crate::error::{Context, Error, Kind, Result};

/// One walk through the layer.
pub(super) struct Pass<'a> {
    pub(super) upper: Upper,
    pub(super) room: &'a Room<'a>,
    /// Bytes that were copied since `room` was asked.
    pub(super) unasked: u64,
    pub(super) source: BorrowedFd<'a>,
    pub(super) target: BorrowedFd<'a>,
    /// What is in the copy that this one is to be put over.
    pub(super) former: Option<&'a Node>,
    pub(super) trail: Trail,
    pub(super) place: Place,
    pub(super) reader: Reader,
    pub(super) path: Vec<u8>,
    /// The directory of the copy that was made sure of last.
    pub(super) led: Option<Vec<u8>>,
    pub(super) sharing: Sharing,
    /// Files with several names, by inode.
    pub(super) links: HashMap<u64, Link>,
    pub(super) fresh_before: HashSet<u64>,
    pub(super) fresh: HashSet<u64>,
    pub(super) passed: Passed,
}

/// A file with several names in the copy.
#[derive(Debug)]
pub(super) struct Link {
    /// Those that were met in this pass.
    paths: Vec<Vec<u8>>,
    /// Whether this pass made it: other names then still lead to an older one.
    is_new: bool,
}

/// A directory that is being read.
struct Level<'a> {
    names: std::vec::IntoIter<Vec<u8>>,
    /// Length of the path of its parent.
    before: usize,
    name: Vec<u8>,
    seen: Seen,
    /// With what the last pass saw in it, where this one has not met it yet.
    directory: Directory,
    /// What is suspected in it; everything if that is not known.
    suspects: Option<BTreeMap<Vec<u8>, Suspects>>,
    /// What the former copy completes it by.
    former: Option<&'a Directory>,
    /// Names that are not there any more.
    vanished: Vec<Vec<u8>>,
}

/// What is known of a name that is looked at closely.
struct Before<'a> {
    old: Option<Node>,
    suspects: Option<Suspects>,
    former: Option<&'a Node>,
    marked_whiteouts: bool,
}

/// What a name turned out to be.
enum Met<'a> {
    Directory(Box<Level<'a>>),
    Other(Node),
    /// Nothing that a layer keeps.
    Nothing,
    /// It went under our hands.
    Gone,
}

impl<'a> Pass<'a> {
    pub(super) fn run(&mut self, old: Option<Node>, suspects: Option<Suspects>) -> Result<Node> {
        let stat = fstat(self.trail.current()).context(|| "look at its root")?;
        let seen = Seen::of(&stat, SystemTime::now());
        let before = Before { old, suspects, former: self.former, marked_whiteouts: false };
        let mut levels = vec![self.directory(&stat, seen, before)?];
        loop {
            let Some(level) = levels.last_mut() else {
                return Err(Error::new(Kind::System, "walk through the layer", "it has no root"));
            };
            if let Some(name) = level.names.next() {
                if let Some(child) = self.step(level, name)? {
                    levels.push(child);
                }
                continue;
            }
            let Some(done) = levels.pop() else { continue };
            let (name, node) = self.leave(done)?;
            match levels.last_mut() {
                Some(parent) => parent.directory.children.insert(name, node),
                None => return Ok(node),
            };
            self.trail.ascend()?;
        }
    }

    /// Looks at one name of a directory; another directory is then the current one.
    fn step(&mut self, level: &mut Level<'a>, name: Vec<u8>) -> Result<Option<Level<'a>>> {
        let children = &mut level.directory.children;
        let suspects = level.suspects.as_mut().and_then(|suspects| suspects.remove(&name));
        if level.suspects.is_some() && suspects.is_none() && children.contains_key(&name) {
            return Ok(None);
        }
        let old = children.remove(&name);
        let former = level.former.and_then(|former| former.children.get(&name));
        let before = self.path.len();
        name::push(&mut self.path, &name);
        let marked_whiteouts = level.directory.marked_whiteouts;
        match self.meet(&name, Before { old, suspects, former, marked_whiteouts })? {
            Met::Directory(child) => return Ok(Some(Level { before, name, ..*child })),
            Met::Other(node) => drop(level.directory.children.insert(name, node)),
            Met::Nothing => self.vanish(former)?,
            Met::Gone => {
                // The next pass has to read its names again, whatever the times say.
                level.seen.just_now = true;
                self.vanish_living(former)?;
            }
        }
        self.path.truncate(before);
        Ok(None)
    }

    /// What was there before and is not any more goes from the copy too.
    fn leave(&mut self, mut level: Level<'a>) -> Result<(Vec<u8>, Node)> {
        for name in &level.vanished {
            let before = self.path.len();
            name::push(&mut self.path, name);
            let known = level.directory.children.remove(name);
            self.passed.changed += u64::from(known.is_some() && level.former.is_none());
            let former = level.former.and_then(|former| former.children.get(name));
            match self.upper {
                Upper::Living => {
                    if let Gone::Doubtful = self.vanish_living(former)? {
                        level.seen.just_now = true;
                    }
                }
                Upper::Still => self.vanish(former)?,
            }
            self.path.truncate(before);
        }
        self.path.truncate(level.before);
        let kind = What::Directory(Box::new(level.directory));
        Ok((level.name, Node { seen: level.seen, names: Names::One, kind }))
    }

    /// Takes one name over. While the layer lives, a name that goes under our hands was never there.
    fn meet(&mut self, name: &[u8], before: Before<'a>) -> Result<Met<'a>> {
        match self.take_over(name, before) {
            Err(error) if self.upper == Upper::Living && is_gone(&error) => Ok(Met::Gone),
            other => other,
        }
    }

    fn take_over(&mut self, name: &[u8], mut before: Before<'a>) -> Result<Met<'a>> {
        // What is suspected was looked at and counted before.
        self.passed.names += u64::from(before.suspects.is_none());
        let now = SystemTime::now();
        let stat = statat(self.trail.current(), name, AtFlags::SYMLINK_NOFOLLOW).context(|| "look at it")?;
        let (seen, kind) = (Seen::of(&stat, now), kind_of(stat.st_mode));
        if is_whiteout(&stat) {
            self.whiteout(&before)?;
            return Ok(Met::Other(Node { seen, names: Names::One, kind: What::Whiteout }));
        }
        if before.old.as_ref().is_some_and(|old| old.seen.is_another_file(&seen)) {
            (before.old, before.suspects) = (None, None);
            self.clear(&self.path.clone())?;
        } else if before.old.is_none() && before.former.is_some() {
            self.clear(&self.path.clone())?;
        }
        match kind {
            FileType::Directory => {
                let child = openat(self.trail.current(), name, DIRECTORY, Mode::empty()).context(|| "open it")?;
                check_same(&fstat(&child).context(|| "look at it")?, &stat)?;
                self.trail.descend(child, &stat);
                let level = self.directory(&stat, seen, before);
                if level.is_err() {
                    self.trail.ascend()?;
                }
                level.map(|level| Met::Directory(Box::new(level)))
            }
            FileType::Socket => Ok(Met::Nothing),
            _ => self.file(name, (&stat, seen), &before).map(Met::Other),
        }
    }

    fn whiteout(&mut self, before: &Before<'_>) -> Result<()> {
        let is_one = |node: Option<&Node>| node.is_some_and(|node| matches!(node.kind, What::Whiteout));
        // The kernel links all its whiteouts to one, whose times change with each: they say nothing.
        if is_one(before.old.as_ref()) {
            return Ok(());
        }
        self.clear(&self.path.clone())?;
        if is_one(before.former) {
            return Ok(());
        }
        self.passed.changed += 1;
        self.lead_to(&self.path.clone())?;
        self.place.whiteout(&self.path)
    }

    /// Takes over what is no directory and no whiteout.
    fn file(&mut self, name: &[u8], (stat, mut seen): (&Stat, Seen), before: &Before<'_>) -> Result<Node> {
        let several = stat.st_nlink > 1;
        let names = if several { Names::Several } else { Names::One };
        let fresh = several && self.fresh_before.contains(&stat.st_ino);
        if several && seen.just_now {
            self.fresh.insert(stat.st_ino);
        }
        let mut is_new = fresh || before.old.as_ref().is_none_or(|old| old.seen.shows_a_change(&seen));
        if is_new && !fresh && before.former.is_some_and(|former| !former.seen.shows_a_change(&seen)) {
            // It is again what the former copy has.
            self.clear(&self.path.clone())?;
            is_new = false;
        }
        if before.old.as_ref().is_some_and(|old| old.seen.has_the_facts_of(&seen)) {
            self.passed.doubtful += u64::from(is_new);
        }
        let mut kind = before.old.as_ref().map_or(What::File, |old| old.kind.clone());
        if several && let Some(mut link) = self.links.remove(&stat.st_ino) {
            let linked = self.link(name, stat, is_new, &mut link);
            link.paths.push(self.path.clone());
            self.links.insert(stat.st_ino, link);
            linked?;
        } else {
            if is_new {
                self.passed.changed += 1;
                self.lead_to(&self.path.clone())?;
                kind = self.copy(name, stat, before.marked_whiteouts)?;
                if seen.just_now {
                    self.passed.fresh += stat.st_size.unsigned_abs();
                }
            }
            if several {
                self.links.insert(stat.st_ino, Link { paths: vec![self.path.clone()], is_new });
            }
        }
        // Its pages were not made clean: whoever has it mapped can write to it unnoticed.
        seen.just_now |= is_new && self.upper == Upper::Still && kind_of(stat.st_mode) == FileType::RegularFile;
        Ok(Node { seen, names, kind })
    }

    /// Makes the current path one more name of a file that was met before.
    fn link(&mut self, name: &[u8], stat: &Stat, is_new: bool, link: &mut Link) -> Result<()> {
        if !link.is_new && !is_new {
            return Ok(());
        }
        self.passed.changed += 1;
        let path = self.path.clone();
        self.lead_to(&path)?;
        let first = link.paths.first().cloned().unwrap_or_default();
        if link.is_new || self.has(&first)? {
            self.place.remove(&path)?;
            return self.place.hard_link(&path, &first);
        }
        // So far only the former copy has it, and a link does not lead there.
        self.copy(name, stat, false)?;
        for other in &link.paths {
            self.lead_to(other)?;
            self.place.remove(other)?;
            self.place.hard_link(other, &path)?;
        }
        link.is_new = true;
        Ok(())
    }

    /// Takes over the current directory itself, and reads its names if they may have changed.
    fn directory(&mut self, stat: &Stat, seen: Seen, before: Before<'a>) -> Result<Level<'a>> {
        let mut old = before.old.and_then(|node| match node.kind {
            What::Directory(directory) => Some((node.seen, *directory)),
            What::File | What::Whiteout => None,
        });
        let below = |over| match over {
            Over::Former => before.former.and_then(Node::directory),
            Over::Nothing => None,
        };
        let mut suspects = before.suspects;
        if let Some((seen, directory)) = old.take_if(|_| suspects.as_ref().is_some_and(|suspects| !suspects.itself)) {
            let suspects = suspects.map(|suspects| suspects.below).unwrap_or_default();
            let (names, former) = (suspects.keys().cloned().collect(), below(directory.over));
            return Ok(Level { suspects: Some(suspects), former, ..Level::new(seen, directory, names) });
        }
        let (attributes, notes) = self.reader.read(Handle::Open(self.trail.current()))?;
        notes.check()?;
        let (over, hides) = completion(before.former, &seen, notes)?;
        if old.take_if(|(_, directory)| directory.over != over).is_some() {
            suspects = None;
            self.clear(&self.path.clone())?;
        }
        let is_new = old.as_ref().is_none_or(|(old, _)| old.shows_a_change(&seen));
        if is_new || self.path.is_empty() {
            self.passed.changed += u64::from(is_new);
            let same = old.as_ref().is_some_and(|(old, _)| old.has_the_facts_of(&seen));
            self.passed.doubtful += u64::from(is_new && same);
            self.lead_to(&self.path.clone())?;
            self.place.directory(&self.path, &entry(stat, EntryType::Directory, attributes))?;
            match hides {
                Hides::Below if !self.path.is_empty() => self.place.opaque(&self.path)?,
                // A new directory can have the number of an old one.
                Hides::Nothing if old.is_some() => self.place.transparent(&self.path)?,
                Hides::Below | Hides::Nothing => {}
            }
        }
        let names = match trail::names(self.trail.current()) {
            // It was removed, and is read by us alone.
            Err(error) if self.upper == Upper::Living && is_gone(&error) => Vec::new(),
            other => other?,
        };
        let children = old.map(|(_, directory)| directory.children).unwrap_or_default();
        let former = below(over);
        let vanished = {
            let gone = |name: &&Vec<u8>| names.binary_search(name).is_err();
            let known = children.keys().filter(gone);
            let others = former.iter().flat_map(|former| former.children.keys().filter(gone));
            known.chain(others.filter(|name| !children.contains_key(*name))).cloned().collect()
        };
        let (opaque, marked_whiteouts) = (notes.opaque, notes.marked_whiteouts);
        let directory = Directory { opaque, marked_whiteouts, over, children };
        let suspects = suspects.map(|suspects| suspects.below);
        Ok(Level { suspects, former, vanished, ..Level::new(seen, directory, names) })
    }

    /// Takes from the copy what is not in the layer any more: the current path.
    fn vanish(&mut self, former: Option<&Node>) -> Result<()> {
        let path = self.path.clone();
        match former.map(|former| &former.kind) {
            None => self.clear(&path),
            Some(What::Whiteout) => Err(cannot_say("a deletion was taken back")),
            Some(What::File | What::Directory(_)) => {
                if self.status(&path)?.as_ref().is_some_and(is_whiteout) {
                    return Ok(());
                }
                self.passed.changed += 1;
                self.clear(&path)?;
                self.lead_to(&path)?;
                self.place.whiteout(&path)
            }
        }
    }

    /// The same while the layer lives: what cannot be done is left to the next pass.
    fn vanish_living(&mut self, former: Option<&Node>) -> Result<Gone> {
        match self.vanish(former) {
            Ok(()) => Ok(Gone::Surely),
            Err(error) if is_gone(&error) || error.kind() == Kind::Unsupported => Ok(Gone::Doubtful),
            Err(error) => Err(error),
        }
    }

    /// Takes away what the copy itself has at a path.
    fn clear(&mut self, path: &[u8]) -> Result<()> {
        self.led = None;
        if self.former.is_some() && !self.has(path)? {
            return Ok(());
        }
        self.place.remove(path)
    }

    fn has(&self, path: &[u8]) -> Result<bool> {
        Ok(self.status(path)?.is_some())
    }

    /// What the copy itself has at a path.
    fn status(&self, path: &[u8]) -> Result<Option<Stat>> {
        let (parent, name) = name::split(path);
        let found =
            open_beneath(self.target, parent).and_then(|directory| statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            other => other.map(Some).context(|| "look at its copy"),
        }
    }

    /// Makes the directories of the copy that lead to a path and that only the former copy had so far.
    fn lead_to(&mut self, path: &[u8]) -> Result<()> {
        let (parent, _) = name::split(path);
        if self.former.is_none() || self.led.as_deref() == Some(parent) {
            return Ok(());
        }
        let ends = (0..=parent.len()).filter(|end| *end == parent.len() || parent[*end] == b'/');
        for prefix in ends.map(|end| &parent[..end]).filter(|prefix| !prefix.is_empty()) {
            if self.status(prefix)?.is_some() {
                continue;
            }
            let directory = open_beneath(self.source, prefix).context(|| "open its parent")?;
            let stat = fstat(&directory).context(|| "look at its parent")?;
            let (attributes, notes) = self.reader.read(Handle::Open(std::os::fd::AsFd::as_fd(&directory)))?;
            notes.check()?;
            self.place.directory(prefix, &entry(&stat, EntryType::Directory, attributes))?;
        }
        self.led = Some(parent.to_vec());
        Ok(())
    }
}

/// Whether the copy is right about a name that is gone.
enum Gone {
    Surely,
    Doubtful,
}

/// Whether a directory of the copy hides what lies below.
enum Hides {
    Below,
    Nothing,
}

/// What a directory of the copy is completed by, seeing what the former copy has at its path.
fn completion(former: Option<&Node>, seen: &Seen, notes: Notes) -> Result<(Over, Hides)> {
    let Some(former) = former else {
        return Ok((Over::Nothing, if notes.opaque { Hides::Below } else { Hides::Nothing }));
    };
    match former.directory().filter(|_| !former.seen.is_another_file(seen)) {
        Some(directory) if directory.opaque == notes.opaque => Ok((Over::Former, Hides::Nothing)),
        Some(directory) if directory.opaque => Err(cannot_say("a directory shows again what lies below it")),
        // A directory that overlayfs made where something else was hides that.
        Some(_) | None => Ok((Over::Nothing, Hides::Below)),
    }
}

fn cannot_say(cause: &str) -> Error {
    Error::new(Kind::Unsupported, "put it over the former copy", cause)
}

impl Level<'_> {
    fn new(seen: Seen, directory: Directory, names: Vec<Vec<u8>>) -> Self {
        Self {
            names: names.into_iter(),
            before: 0,
            name: Vec::new(),
            seen,
            directory,
            suspects: None,
            former: None,
            vanished: Vec::new(),
        }
    }
}
