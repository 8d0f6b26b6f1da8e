//! A ring leaves for another node, and what of it stays.
//!
//! ```text
//! here     ring.json: away ── its entries go to a registry ─────────────────────────── stays behind as a copy
//! there                                          fetched ── ring.json: at home there
//! ```
//!
//! The mark comes first: from then on no run starts here, so nothing can be added that the other node does not get. Where a
//! ring is given away although a container has it, that goes on in a fork, a ring of its own that shares the entries; so
//! does what a node wrote that was out of reach when its ring was taken elsewhere.

use std::fs;

use chrono::Utc;

use super::elsewhere::Elsewhere;
use super::index::write_index;
use super::{Locked, Ring};
use crate::error::{Context, Result, quote};
use crate::ids::RingName;
use crate::image::layout::Layout;
use crate::store::Run;
use crate::sys::fs::sync_directory;

/// What is done about a container that has the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// The ring stays with it, and does not leave.
    Idle,
    /// It goes on in a fork.
    Forced,
}

/// A node that a ring goes to.
#[derive(Debug, Clone, Copy)]
pub struct Heading<'a> {
    /// Its name.
    pub to: &'a str,
    /// Where it fetches the ring.
    pub reference: &'a str,
}

impl Locked {
    /// Notes that the ring is another node's from now on, and says what became of a container that has it: the fork that it
    /// goes on in. Noting the same again changes nothing.
    ///
    /// # Errors
    /// [`Busy`](crate::error::Kind::Busy) if it is in use and nothing is forced, [`State`](crate::error::Kind::State) if it is elsewhere already; those of making the
    /// fork. The ring is then as it was.
    pub fn depart(&mut self, heading: Heading<'_>, consent: Consent) -> Result<Option<RingName>> {
        match &self.state.elsewhere {
            Some(Elsewhere::Away { to, .. }) if to == heading.to => return Ok(None),
            Some(_) => self.check_here("move")?,
            None => {}
        }
        let moves = self.state.moves + 1;
        let fork = match consent {
            Consent::Idle => {
                self.settle("move")?;
                self.check_unused("move")?;
                None
            }
            Consent::Forced => {
                self.settle_dead("move")?;
                if self.state.runs().next().is_some() { Some(self.fork(moves)?) } else { None }
            }
        };
        self.leave(heading, moves)?;
        Ok(fork)
    }

    /// Learns that the ring was taken to another node without this one: what is here and not there goes on in a fork.
    /// `taken` is the number of the newest entry that the other node has, `moves` how often the ring has moved with that.
    ///
    /// # Errors
    /// Those of making the fork and of writing; the ring is then as it was.
    pub fn disown(&mut self, heading: Heading<'_>, taken: u64, moves: u64) -> Result<Option<RingName>> {
        if self.state.moves >= moves {
            return Ok(None);
        }
        self.settle_dead("move")?;
        let more = self.state.last_seq > taken || self.state.runs().next().is_some();
        let fork = if more { Some(self.fork(moves)?) } else { None };
        self.leave(heading, moves)?;
        Ok(fork)
    }

    /// Takes the mark away again: the other node does not have the ring, and will not. That there is none is no error.
    ///
    /// # Errors
    /// [`State`](crate::error::Kind::State) if the ring went to another node than this, those of writing.
    pub fn stay(&mut self, to: &str) -> Result<()> {
        match &self.state.elsewhere {
            None => Ok(()),
            Some(Elsewhere::Away { to: there, .. }) if there == to => {
                self.state.elsewhere = None;
                self.commit()
            }
            Some(_) => self.check_here("keep"),
        }
    }

    fn leave(&mut self, heading: Heading<'_>, moves: u64) -> Result<()> {
        let (to, reference) = (heading.to.to_owned(), heading.reference.to_owned());
        self.state.elsewhere = Some(Elsewhere::Away { to, reference, since: Utc::now() });
        self.state.moves = moves;
        self.state.run = None;
        self.state.sides.clear();
        self.commit()
    }

    /// Makes a ring that has all that this one has, its containers included. Until this one lets go of them, both name
    /// them: whoever comes first makes an entry of their end, and the other finds that they are over.
    fn fork(&self, moves: u64) -> Result<RingName> {
        let name = fork_name(self.ring().name(), moves)?;
        let operation = || format!("let what has ring '{}' go on in '{name}'", self.ring().name());
        let from = self.ring().name().to_string();
        let fork = Ring::open_or_expect(self.ring().store(), &name, self.state.limits(), &from).context(operation)?;
        let mut locked = fork.lock().context(operation)?;
        // One that is finished was made by who was killed afterwards, and may have gone on since.
        if locked.state.elsewhere.is_some() {
            link_blobs(self.ring(), &fork).context(operation)?;
            locked.state = self.state.clone();
            (locked.state.elsewhere, locked.state.moves) = (None, 0);
            locked.state.forget_memory();
            write_index(&locked).context(operation)?;
            locked.commit().context(operation)?;
        }
        for id in self.state.runs() {
            if let Some(mut run) = Run::load(self.ring().store(), id)? {
                run.record.ring = Some(name.clone());
                run.write().context(operation)?;
            }
        }
        Ok(name)
    }
}

/// `web` that moves for the second time leaves `web-forked-2`.
fn fork_name(ring: &RingName, moves: u64) -> Result<RingName> {
    let end = format!("-forked-{moves}");
    let own: String = ring.name.as_str().chars().take(200 - end.len()).collect();
    Ok(RingName { owner: ring.owner.clone(), name: format!("{own}{end}").parse()? })
}

/// Blobs never change: two rings of one store share their files.
fn link_blobs(from: &Ring, to: &Ring) -> Result<()> {
    let (from, to) = (Layout::open(from.directory())?, Layout::open(to.directory())?);
    for digest in from.blobs()? {
        let (old, new) = (from.blob_path(&digest), to.blob_path(&digest));
        match fs::hard_link(&old, &new) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.context(|| format!("link {}", quote(&old)))?,
        }
        if let Some(parent) = new.parent() {
            sync_directory(parent)?;
        }
    }
    Ok(())
}
