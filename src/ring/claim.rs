//! How a run takes a ring, and starts from one of its entries.

use std::path::PathBuf;

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::Locked;
use super::entry::{Entry, timestamp};
use super::holder::Holder;
use super::seal::{self, Sealing};
use super::selector::{Selected, Selector};
use crate::error::{Error, Kind, Result};
use crate::ids::{ContainerId, LayerId};
use crate::store::{Run, RunRecord, Volume};
use crate::sys::process::{Identity, boot_id};

/// What a ring's chain stands on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// What identifies it: entries are bound to this.
    pub fingerprint: String,
    /// Its directories as a container is put on them, uppermost first.
    pub directories: Vec<PathBuf>,
    /// Directories that show the same and outlive the container: an engine's root file system is unmounted with it, the
    /// image's layers under that are not.
    pub lasting: Vec<PathBuf>,
}

/// What a run says when it asks for a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The container that will run.
    pub container: ContainerId,
    /// The runtime's state root in which it will be.
    pub state_root: PathBuf,
    /// What it stands on.
    pub base: Base,
    /// How ids inside the container are those on disk.
    pub id_map: Option<String>,
    /// Places that the runtime or engine fills.
    pub mount_points: Vec<PathBuf>,
    /// Bind mounts that belong to the ring.
    pub volumes: Vec<Volume>,
    /// The tag of the entry whose processes it brings back.
    pub revives: Option<String>,
    /// The process that answers for it until the container has one.
    pub holder: Identity,
}

/// Whether an entry may be put on another base than it was made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebase {
    /// Refuse.
    Refused,
    /// The operator said so.
    Allowed,
}

/// Where a run starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The entry; `None` for the bare base.
    pub entry: Option<u64>,
    /// The layers, lowest first.
    pub layers: Vec<LayerId>,
}

impl Locked {
    /// Makes sure that no run has the ring, sealing what dead ones left. `verb` is what cannot be done
    /// otherwise: `roll back`. Runs beside the main line may live on.
    ///
    /// # Errors
    /// [`Kind::Busy`], naming who has the ring, if it is in use or its last upper is still held.
    pub fn settle(&mut self, verb: &str) -> Result<()> {
        self.settle_sides()?;
        let Some(id) = self.state.run.clone() else { return Ok(()) };
        let Some(run) = Run::load(&self.ring().store, &id)? else {
            // Its claim was cut short before anything could run on it.
            self.state.run = None;
            return self.commit_claim();
        };
        let operation = format!("{verb} ring '{}'", self.ring().name());
        if let Some(busy) = in_use(&run, &operation)? {
            return Err(busy);
        }
        match seal::recover(self, &run)? {
            Sealing::Sealed(_) | Sealing::Unchanged | Sealing::NotHeldByRun => Ok(()),
            Sealing::Held(holders) => Err(not_final(&run, operation, &holders)),
        }
    }

    /// Makes entries of what dead runs left. A living container keeps the ring.
    ///
    /// # Errors
    /// As [`Locked::settle`], but for a living container.
    pub fn settle_dead(&mut self, verb: &str) -> Result<()> {
        let run = self.state.run.as_ref().map(|id| Run::load(&self.ring().store, id)).transpose()?.flatten();
        let lives = run.map(|run| run.record.living_holder().map(|holder| holder.is_some())).transpose()?;
        if lives == Some(true) { self.settle_sides() } else { self.settle(verb) }
    }

    /// As [`Locked::settle_dead`], for who takes an entry: where its number says which, it does not matter what is newest.
    ///
    /// # Errors
    /// As [`Locked::settle_dead`].
    pub fn settle_for(&mut self, selector: &Selector, verb: &str) -> Result<()> {
        match selector {
            Selector::Seq(_) | Selector::Id(_) | Selector::Base => Ok(()),
            Selector::Unsaid | Selector::Latest | Selector::Back(_) | Selector::At(_) | Selector::Ago(_) => {
                self.settle_dead(verb)
            }
        }
    }

    /// Refuses what cannot be done while any container has the ring, or goes on beside its main line.
    ///
    /// # Errors
    /// [`Kind::Busy`], naming it; those of reading the runs and /proc.
    pub fn check_unused(&self, verb: &str) -> Result<()> {
        let operation = format!("{verb} ring '{}'", self.ring().name());
        for id in self.state.runs() {
            let Some(run) = Run::load(&self.ring().store, id)? else { continue };
            if let Some(busy) = in_use(&run, &operation)? {
                return Err(busy);
            }
            // The settling before has tried it; only runs beside the main line may stay so.
            if self.state.run.as_ref() != Some(id) {
                let container = &run.record.container;
                let cause = format!("what container '{container}' left is not final: something still holds it");
                return Err(Error::new(Kind::Busy, operation, cause)
                    .next(format!("end what holds it, or 'regen delete --force {container}', then try again")));
            }
        }
        Ok(())
    }

    /// Finds where a run starts, and refuses what would not be the same file system.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for the selector, [`Kind::State`] for a ring that is elsewhere, another base or an entry that a
    /// power cut may have torn, [`Kind::Invalid`] for another class of overlay attributes.
    pub fn find_start(&self, selector: &Selector, base: &Base, rebase: Rebase) -> Result<Start> {
        self.check_here("start from")?;
        let entry = match self.state.select_start(selector) {
            Ok(Selected::Base) => return Ok(Start { entry: None, layers: Vec::new() }),
            Ok(Selected::Entry(entry)) => entry,
            Err(error) => return Err(error.during(format!("start from ring '{}'", self.ring().name()))),
        };
        let name = format!("{}@{}", self.ring().name(), entry.seq);
        check_start(entry, &format!("start from '{name}'"), base, rebase)?;
        self.check_synced("start from", entry, selector)?;
        if entry.class != self.ring().store.class() {
            let cause = "its layers spell overlay attributes in another way than this mount would read them";
            return Err(Error::new(Kind::Invalid, format!("start from '{name}'"), cause));
        }
        Ok(Start { entry: Some(entry.seq), layers: entry.layers.clone() })
    }

    /// Refuses to start from files that belong to other users than the container's.
    ///
    /// # Errors
    /// [`Kind::State`], naming both maps.
    pub fn check_ids(&self, start: &Start, id_map: Option<&str>) -> Result<()> {
        let Some(entry) = start.entry.and_then(|seq| self.state.entry(seq)) else { return Ok(()) };
        if entry.id_map.as_deref() == id_map {
            return Ok(());
        }
        let name = |map: Option<&str>| map.map_or("no id map".to_owned(), |map| format!("the id map {map}"));
        let cause = format!("it was made with {}, not with {}", name(entry.id_map.as_deref()), name(id_map));
        Err(Error::new(Kind::State, format!("start from '{}@{}'", self.ring().name(), entry.seq), cause)
            .next("give the container the user namespace that it was made with"))
    }

    /// An entry whose data may not have been on disk when the machine went down is never chosen silently.
    pub(super) fn check_synced(&self, verb: &str, entry: &Entry, selector: &Selector) -> Result<()> {
        let explicit = matches!(selector, Selector::Seq(_) | Selector::Id(_));
        if entry.synced || explicit || entry.boot_id == boot_id()? {
            return Ok(());
        }
        let (ring, seq) = (self.ring().name(), entry.seq);
        let cause = "the machine went down before this entry was known to be on disk: files in it may be torn";
        let before = self.state.entries.iter().rev().find(|older| older.seq < seq && older.synced && !older.side);
        let other = before.map_or("base".into(), |older| older.seq.to_string());
        Err(Error::new(Kind::State, format!("{verb} '{ring}@{seq}'"), cause)
            .next(format!("say '{ring}@{seq}' to take it as it is, or 'regen ring rollback {ring} --to @{other}'")))
    }

    /// Gives the ring to a run. The ring is settled and its layers are there.
    ///
    /// # Errors
    /// Those of making the run's directories; the ring is then as it was.
    pub fn claim(&mut self, claim: Claim, start: Start) -> Result<Run> {
        let store = self.ring().store.clone();
        // What came from elsewhere does not say where its base is: from here on it can be looked at, too.
        if self.state.entries.iter().any(|entry| entry.base == claim.base.fingerprint) {
            self.state.bases.insert(claim.base.fingerprint.clone(), claim.base.lasting.clone());
        }
        let record = RunRecord {
            version: 1,
            container: claim.container,
            state_root: claim.state_root,
            ring: Some(self.ring().name().clone()),
            parent: start.entry,
            revives: claim.revives,
            layers: start.layers,
            base: claim.base.fingerprint,
            base_directories: claim.base.directories,
            base_lasting: claim.base.lasting,
            class: store.class(),
            id_map: claim.id_map,
            mount_points: claim.mount_points,
            holders: vec![claim.holder],
            cgroups: Vec::new(),
            device: None,
            mount_namespace: None,
            mounted_at: None,
            volumes: claim.volumes,
            started: Utc::now(),
        };
        // Sweeping takes runs that no ring names: it has to wait until this one is named.
        let _lock = store.lock_against_collection()?;
        let run = Run::create(&store, record)?;
        self.state.give_to(run.id());
        match self.commit_claim() {
            Ok(()) => Ok(run),
            Err(error) => {
                self.state.take_from(run.id());
                // The failed commit is what is reported; an unnamed run is swept later.
                let _ = run.remove();
                Err(error)
            }
        }
    }

    /// Takes the ring back from a run whose container never came to be.
    ///
    /// # Errors
    /// Those of writing and removing.
    pub fn release(&mut self, run: &Run) -> Result<()> {
        if self.state.run.as_ref() != Some(run.id()) {
            return Ok(());
        }
        self.state.take_from(run.id());
        self.commit_claim()?;
        run.remove()
    }

    /// The entries that the present runs started from: theirs are made by changes to them.
    ///
    /// # Errors
    /// Those of reading the runs.
    pub(super) fn in_use(&self) -> Result<Vec<u64>> {
        self.parents(self.state.runs())
    }

    /// The same without a run that is about to be over.
    pub(super) fn parents_but(&self, ending: &LayerId) -> Result<Vec<u64>> {
        self.parents(self.state.runs().filter(|run| *run != ending))
    }

    fn parents<'a>(&self, runs: impl Iterator<Item = &'a LayerId>) -> Result<Vec<u64>> {
        let mut parents = Vec::new();
        for id in runs {
            parents.extend(Run::load(&self.ring().store, id)?.and_then(|run| run.record.parent));
        }
        Ok(parents)
    }
}

/// Why what a dead run left keeps others from the ring.
pub(super) fn not_final(run: &Run, operation: String, holders: &[Holder]) -> Error {
    let (container, who) = (&run.record.container, super::holder::name(holders));
    let cause = format!("the state of container '{container}' is not final: {who}");
    let next = format!("end what holds it, or 'regen delete --force {container}', then try again");
    Error::new(Kind::Busy, operation, cause).next(next)
}

/// Why a run keeps others from the ring, if its container lives.
pub(super) fn in_use(run: &Run, operation: &str) -> Result<Option<Error>> {
    let RunRecord { container, started, .. } = &run.record;
    let Some(holder) = run.record.living_holder()? else { return Ok(None) };
    let since = timestamp(*started);
    let cause = format!("in use by container '{container}' (process {}, since {since})", holder.pid);
    let error = Error::new(Kind::Busy, operation, cause);
    Ok(Some(error.next(format!("wait for its end, or stop it with 'regen delete --force {container}'"))))
}

fn check_start(entry: &Entry, operation: &str, base: &Base, rebase: Rebase) -> Result<()> {
    if entry.base == base.fingerprint || rebase == Rebase::Allowed {
        return Ok(());
    }
    let cause = format!("it was made over {}, not over {}", entry.base, base.fingerprint);
    Err(Error::new(Kind::State, operation, cause).next(
        "give the base that it was made over, or '--rebase' (run.regen.ring.rebase=always) to put it on this one",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::entry::Outcome;
    use super::super::entry::tests::entry;
    use super::*;

    #[test]
    fn another_base_is_refused_with_both_named() {
        let base = Base { fingerprint: "dir:/srv/b".into(), directories: Vec::new(), lasting: Vec::new() };
        let error = check_start(&entry(1, Outcome::Good), "start", &base, Rebase::Refused).unwrap_err();
        assert!(error.to_string().contains("made over base, not over dir:/srv/b"), "{error}");
        assert!(check_start(&entry(1, Outcome::Good), "start", &base, Rebase::Allowed).is_ok());
    }
}
