//! The words of a mount's `options`: what each means to the mount, and which are left for the file system.
//!
//! They are those of the runtime specification ("Linux mount options") and of mount(8). On a bind mount a word changes
//! what it names and nothing else: a source that is mounted `nosuid` stays so, whether or not it is said again.

use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};

use crate::sys::mount::Depth;

/// The bits of which the kernel takes exactly one value, and which have to be cleared before one is set.
const ATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR__ATIME;

/// What one word does.
#[derive(Debug, Clone, Copy)]
enum Word {
    /// It is the default, or has no meaning for a kernel of today.
    Nothing,
    /// An attribute of the mount.
    Set(MountAttrFlags),
    Clear(MountAttrFlags),
    /// An attribute of the mount and of all below it.
    SetAll(MountAttrFlags),
    ClearAll(MountAttrFlags),
    /// A flag of the file system itself: its name for fsconfig(2) and its bit for mount(2).
    Super(&'static str, MountFlags),
    NotSuper(&'static str),
    Propagate(MountPropagationFlags),
    Bind(Depth),
    IdMap(Depth),
    Remount,
    CopyUp,
    Source(Source),
}

/// How the source of a bind mount is taken if it is a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// What it points to is bound.
    #[default]
    Follow,
    /// The symlink itself is bound.
    NoFollow,
    /// A symlink with the same text is made; nothing is mounted.
    CopySymlink,
}

const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const NOATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOATIME;
const RELATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RELATIME;
const STRICTATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
const PRIVATE: MountPropagationFlags = MountPropagationFlags::PRIVATE;
const SHARED: MountPropagationFlags = MountPropagationFlags::SHARED;
const SLAVE: MountPropagationFlags = MountPropagationFlags::DOWNSTREAM;
const UNBINDABLE: MountPropagationFlags = MountPropagationFlags::UNBINDABLE;
const REC: MountPropagationFlags = MountPropagationFlags::REC;

/// Every word that is ours; all others are the file system's. Sorted, as the features document wants them.
const WORDS: &[(&str, Word)] = &[
    ("async", Word::NotSuper("sync")),
    ("atime", Word::Set(RELATIME)),
    ("bind", Word::Bind(Depth::One)),
    ("copy-symlink", Word::Source(Source::CopySymlink)),
    ("defaults", Word::Nothing),
    ("dev", Word::Clear(NODEV)),
    ("diratime", Word::Clear(NODIRATIME)),
    ("dirsync", Word::Super("dirsync", MountFlags::DIRSYNC)),
    ("exec", Word::Clear(NOEXEC)),
    ("idmap", Word::IdMap(Depth::One)),
    ("iversion", Word::Super("iversion", MountFlags::from_bits_retain(1 << 23))),
    ("lazytime", Word::Super("lazytime", MountFlags::LAZYTIME)),
    ("loud", Word::Nothing),
    ("mand", Word::Super("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING)),
    ("noatime", Word::Set(NOATIME)),
    ("nodev", Word::Set(NODEV)),
    ("nodiratime", Word::Set(NODIRATIME)),
    ("noexec", Word::Set(NOEXEC)),
    ("noiversion", Word::NotSuper("iversion")),
    ("nolazytime", Word::NotSuper("lazytime")),
    ("nomand", Word::NotSuper("mand")),
    ("norelatime", Word::Nothing),
    ("nostrictatime", Word::Clear(STRICTATIME)),
    ("nosuid", Word::Set(NOSUID)),
    ("nosymfollow", Word::Set(NOSYMFOLLOW)),
    ("private", Word::Propagate(PRIVATE)),
    ("ratime", Word::SetAll(RELATIME)),
    ("rbind", Word::Bind(Depth::All)),
    ("rdev", Word::ClearAll(NODEV)),
    ("rdiratime", Word::ClearAll(NODIRATIME)),
    ("relatime", Word::Set(RELATIME)),
    ("remount", Word::Remount),
    ("rexec", Word::ClearAll(NOEXEC)),
    ("ridmap", Word::IdMap(Depth::All)),
    ("rnoatime", Word::SetAll(NOATIME)),
    ("rnodev", Word::SetAll(NODEV)),
    ("rnodiratime", Word::SetAll(NODIRATIME)),
    ("rnoexec", Word::SetAll(NOEXEC)),
    ("rnorelatime", Word::Nothing),
    ("rnostrictatime", Word::ClearAll(STRICTATIME)),
    ("rnosuid", Word::SetAll(NOSUID)),
    ("rnosymfollow", Word::SetAll(NOSYMFOLLOW)),
    ("ro", Word::Set(RDONLY)),
    ("rprivate", Word::Propagate(PRIVATE.union(REC))),
    ("rrelatime", Word::SetAll(RELATIME)),
    ("rro", Word::SetAll(RDONLY)),
    ("rrw", Word::ClearAll(RDONLY)),
    ("rshared", Word::Propagate(SHARED.union(REC))),
    ("rslave", Word::Propagate(SLAVE.union(REC))),
    ("rstrictatime", Word::SetAll(STRICTATIME)),
    ("rsuid", Word::ClearAll(NOSUID)),
    ("rsymfollow", Word::ClearAll(NOSYMFOLLOW)),
    ("runbindable", Word::Propagate(UNBINDABLE.union(REC))),
    ("rw", Word::Clear(RDONLY)),
    ("shared", Word::Propagate(SHARED)),
    ("silent", Word::Nothing),
    ("slave", Word::Propagate(SLAVE)),
    ("src-nofollow", Word::Source(Source::NoFollow)),
    ("strictatime", Word::Set(STRICTATIME)),
    ("suid", Word::Clear(NOSUID)),
    ("symfollow", Word::Clear(NOSYMFOLLOW)),
    ("sync", Word::Super("sync", MountFlags::SYNCHRONOUS)),
    ("tmpcopyup", Word::CopyUp),
    ("unbindable", Word::Propagate(UNBINDABLE)),
];

/// The words that are understood as more than data for a file system, sorted: `mountOptions` of the features document.
pub fn words() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|(word, _)| *word)
}

/// Attributes of mounts to set and to clear; what is in neither stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// To be on afterwards.
    pub set: MountAttrFlags,
    /// To be off, unless also in `set`.
    pub clear: MountAttrFlags,
}

impl Change {
    /// Changes nothing.
    pub const NONE: Self = Self { set: MountAttrFlags::empty(), clear: MountAttrFlags::empty() };

    /// Whether there is nothing to change.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The later word wins.
    fn set(&mut self, flag: MountAttrFlags) {
        // RELATIME is the absence of the other two, so it is told by being no bit at all.
        if ATIME.contains(flag) {
            self.set = self.set.difference(ATIME) | flag;
            self.clear |= ATIME;
        } else {
            self.set |= flag;
            self.clear = self.clear.difference(flag);
        }
    }

    fn clear(&mut self, flag: MountAttrFlags) {
        self.set = self.set.difference(flag);
        // Which of the other two it was cannot be said to the kernel; not to have it is what was asked for.
        if !ATIME.contains(flag) {
            self.clear |= flag;
        }
    }
}

/// What the options of one mount come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// This mount's attributes.
    pub this: Change,
    /// Those of this mount and of all below it.
    pub all: Change,
    /// Flags of the file system: name for fsconfig(2), bit for mount(2).
    pub superblock: Vec<(&'static str, MountFlags)>,
    /// In the order in which they were said, each with `REC` if it goes for all below.
    pub propagation: Vec<MountPropagationFlags>,
    /// Binds the source; how deep.
    pub bind: Option<Depth>,
    /// Maps owners; how deep.
    pub id_map: Option<Depth>,
    /// Changes the mount that is already there.
    pub remount: bool,
    /// Fills a tmpfs with what it covers.
    pub copy_up: bool,
    /// What to do with a source that is a symlink.
    pub source: Source,
    /// For the file system, as they were written.
    pub data: Vec<String>,
}

/// Reads the words in their order. None is wrong by itself: what is not known here may be known to the file system.
#[must_use]
pub fn parse(words: &[String]) -> Options {
    let mut options = Options {
        this: Change::NONE,
        all: Change::NONE,
        superblock: Vec::new(),
        propagation: Vec::new(),
        bind: None,
        id_map: None,
        remount: false,
        copy_up: false,
        source: Source::Follow,
        data: Vec::new(),
    };
    for text in words {
        let Ok(index) = WORDS.binary_search_by_key(&text.as_str(), |(word, _)| word) else {
            if !text.is_empty() {
                options.data.push(text.clone());
            }
            continue;
        };
        match WORDS[index].1 {
            Word::Nothing => {}
            Word::Set(flag) => options.this.set(flag),
            Word::Clear(flag) => options.this.clear(flag),
            Word::SetAll(flag) => options.all.set(flag),
            Word::ClearAll(flag) => options.all.clear(flag),
            Word::Super(name, flag) => options.superblock.push((name, flag)),
            Word::NotSuper(name) => options.superblock.retain(|(other, _)| *other != name),
            Word::Propagate(flags) => options.propagation.push(flags),
            Word::Bind(depth) => options.bind = Some(depth),
            Word::IdMap(depth) => options.id_map = Some(depth),
            Word::Remount => options.remount = true,
            Word::CopyUp => options.copy_up = true,
            Word::Source(source) => options.source = source,
        }
    }
    options
}

impl Options {
    /// The attributes as flags of mount(2), for kernels and file systems that lack the newer calls.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        let pairs = [
            (RDONLY, MountFlags::RDONLY),
            (NOSUID, MountFlags::NOSUID),
            (NODEV, MountFlags::NODEV),
            (NOEXEC, MountFlags::NOEXEC),
            (NOATIME, MountFlags::NOATIME),
            (STRICTATIME, MountFlags::STRICTATIME),
            (NODIRATIME, MountFlags::NODIRATIME),
            (NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
        ];
        let mut flags = MountFlags::empty();
        for (attribute, flag) in pairs {
            if (self.this.set | self.all.set).contains(attribute) {
                flags |= flag;
            }
        }
        self.superblock.iter().fold(flags, |flags, (_, flag)| flags | *flag)
    }
}

/// The word of `linux.rootfsPropagation`, with and without the `r`.
#[must_use]
pub fn parse_propagation(word: &str) -> Option<MountPropagationFlags> {
    let index = WORDS.binary_search_by_key(&word, |(word, _)| word).ok()?;
    match WORDS[index].1 {
        Word::Propagate(flags) => Some(flags),
        Word::Nothing
        | Word::Set(_)
        | Word::Clear(_)
        | Word::SetAll(_)
        | Word::ClearAll(_)
        | Word::Super(..)
        | Word::NotSuper(_)
        | Word::Bind(_)
        | Word::IdMap(_)
        | Word::Remount
        | Word::CopyUp
        | Word::Source(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(words: &[&str]) -> Options {
        parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_list_is_sorted_as_the_search_wants_it() {
        assert!(words().is_sorted());
        let once = words().collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(once, words().count());
    }

    #[test]
    fn the_later_word_wins() {
        assert_eq!(parse_all(&["ro", "rw"]).this, Change { set: MountAttrFlags::empty(), clear: RDONLY });
        assert_eq!(parse_all(&["rw", "ro"]).this, Change { set: RDONLY, clear: MountAttrFlags::empty() });
        assert_eq!(parse_all(&["sync", "mand", "async"]).superblock[0].0, "mand");
        assert_eq!(parse_all(&["noatime", "strictatime"]).this, Change { set: STRICTATIME, clear: ATIME });
        assert_eq!(parse_all(&["noatime", "relatime"]).this, Change { set: RELATIME, clear: ATIME });
        assert_eq!(parse_all(&["strictatime", "nostrictatime"]).this.set, MountAttrFlags::empty());
        assert_eq!(parse_all(&["bind", "rbind"]).bind, Some(Depth::All));
    }

    #[test]
    fn words_with_an_r_are_for_all_that_is_below() {
        let options = parse_all(&["rro", "rnoatime", "rsuid", "nodev"]);
        assert_eq!(options.all, Change { set: RDONLY | NOATIME, clear: ATIME | NOSUID });
        assert_eq!(options.this, Change { set: NODEV, clear: MountAttrFlags::empty() });
    }

    #[test]
    fn what_is_not_known_is_for_the_file_system() {
        let options = parse_all(&["size=64k", "ro", "newinstance", "", "defaults", "rprivate"]);
        assert_eq!(options.data, ["size=64k", "newinstance"]);
        assert_eq!(options.propagation, [PRIVATE | REC]);
    }

    #[test]
    fn only_a_propagation_is_one() {
        assert_eq!(parse_propagation("rslave"), Some(SLAVE | REC));
        assert_eq!(parse_propagation("shared"), Some(SHARED));
        assert_eq!(parse_propagation("ro"), None);
        assert_eq!(parse_propagation("sharde"), None);
    }
}
