//! What a copy knows of its layer: the status of every name when it was looked at last, and how to write that down.
//!
//! ```text
//! "regen known 1\n" NODE                       little-endian throughout
//! NODE   length:u16 name  flags:u8  status  [count:u32 NODE…]      the last for directories
//! ```
//!
//! A file of the store: it is read in the boot in which it was written, or not at all.

use std::collections::{BTreeMap, HashSet};

use super::seen::Seen;
use crate::error::{Error, Kind, Result};

const HEADER: &[u8] = b"regen known 1\n";
const SEVERAL: u8 = 1;
const DIRECTORY: u8 = 2;
const OPAQUE: u8 = 4;
const MARKED: u8 = 8;
const WHITEOUT: u8 = 16;

/// How many names a file has, as far as that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    One,
    Several,
}

/// What is known of a name.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) seen: Seen,
    pub(super) names: Names,
    pub(super) kind: What,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub(super) enum What {
    File,
    Whiteout,
    Directory(Box<Directory>),
}

/// A directory, and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) opaque: bool,
    pub(super) marked_whiteouts: bool,
    /// Whether the copy of it lies over that of a copy before: only what differs from that one is in it.
    pub(super) over: Over,
    pub(super) children: BTreeMap<Vec<u8>, Node>,
}

/// What a directory of the copy is completed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// By nothing: all of it is in the copy.
    Nothing,
    /// By the same directory of the copy before.
    Former,
}

impl Node {
    pub(super) fn directory(&self) -> Option<&Directory> {
        match &self.kind {
            What::Directory(directory) => Some(directory),
            What::File | What::Whiteout => None,
        }
    }

    /// Writes it down. What has several names and is in `fresh`, by inode, counts as changed just now.
    pub(super) fn encode(&self, fresh: &HashSet<u64>) -> Result<Vec<u8>> {
        let mut out = HEADER.to_vec();
        let mut stack = Vec::new();
        self.put(b"", fresh, &mut out)?;
        stack.extend(self.directory().map(|directory| directory.children.iter()));
        while let Some(children) = stack.last_mut() {
            let Some((name, node)) = children.next() else {
                stack.pop();
                continue;
            };
            node.put(name, fresh, &mut out)?;
            stack.extend(node.directory().map(|directory| directory.children.iter()));
        }
        Ok(out)
    }

    fn put(&self, name: &[u8], fresh: &HashSet<u64>, out: &mut Vec<u8>) -> Result<()> {
        let too_much = |_| Error::new(Kind::Unsupported, "write down what was copied", "too many names");
        let mut flags = if self.names == Names::Several { SEVERAL } else { 0 };
        match &self.kind {
            What::File => {}
            What::Whiteout => flags |= WHITEOUT,
            What::Directory(directory) => {
                flags |= DIRECTORY;
                flags |= if directory.opaque { OPAQUE } else { 0 };
                flags |= if directory.marked_whiteouts { MARKED } else { 0 };
            }
        }
        out.extend(u16::try_from(name.len()).map_err(too_much)?.to_le_bytes());
        out.extend(name);
        out.push(flags);
        let mut seen = self.seen;
        seen.just_now |= self.names == Names::Several && fresh.contains(&seen.inode());
        seen.encode(out);
        if let What::Directory(directory) = &self.kind {
            out.extend(u32::try_from(directory.children.len()).map_err(too_much)?.to_le_bytes());
        }
        Ok(())
    }

    /// Reads what [`Node::encode`] wrote: the root. Every directory in it is over that of the copy that it is about.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        decode(bytes).ok_or_else(|| Error::new(Kind::Damaged, "read what was copied", "it is not what regen wrote"))
    }
}

/// A directory whose children are still read.
struct Open {
    name: Vec<u8>,
    node: Node,
    left: u32,
}

fn decode(bytes: &[u8]) -> Option<Node> {
    let mut input = Input(bytes.strip_prefix(HEADER)?);
    let mut stack = vec![take(&mut input)?];
    loop {
        let open = stack.last_mut()?;
        if open.left > 0 {
            open.left -= 1;
            stack.push(take(&mut input)?);
            continue;
        }
        let done = stack.pop()?;
        match stack.last_mut() {
            None => return (input.0.is_empty() && done.node.directory().is_some()).then_some(done.node),
            Some(Open { node: Node { kind: What::Directory(parent), .. }, .. }) => {
                parent.children.insert(done.name, done.node);
            }
            Some(_) => return None,
        }
    }
}

fn take(input: &mut Input<'_>) -> Option<Open> {
    let length = u16::from_le_bytes(input.array()?);
    let name = input.bytes(length.into())?.to_vec();
    let [flags] = input.array()?;
    let seen = Seen::decode(input)?;
    let names = if flags & SEVERAL == 0 { Names::One } else { Names::Several };
    let (kind, left) = if flags & DIRECTORY == 0 {
        (if flags & WHITEOUT == 0 { What::File } else { What::Whiteout }, 0)
    } else {
        let directory = Directory {
            opaque: flags & OPAQUE != 0,
            marked_whiteouts: flags & MARKED != 0,
            over: Over::Former,
            children: BTreeMap::new(),
        };
        (What::Directory(Box::new(directory)), u32::from_le_bytes(input.array()?))
    };
    Some(Open { name, node: Node { seen, names, kind }, left })
}

/// What is left to be read.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }
}
