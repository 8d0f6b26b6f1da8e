//! Templates: which there are, and that each has a keeper. The daemon's part of them.
//!
//! ```text
//!  create, rm                              the caller's thread: written down, waited for
//!        │ bell
//!        v
//!  minder (a thread per template)  ──>  keepers (a process per generation; one is ready, one may be loading)
//!        │ a keeper ended ──> another one after a while
//!        └ the source is another one now ──> a newer generation beside the old one
//! ```
//!
//! What is remembered is in the registry (`record`), what is known now with each template (`book`). Clones need none of this:
//! who wants one asks a keeper.

mod book;
mod keeper;
mod leftover;
mod mark;
mod minder;
mod record;
mod view;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use record::Key;
pub use view::{Details, Numbers, State, Summary};

use self::book::{Outcome, Template};
use self::minder::Minder;
use self::record::{PREFIX, Record, Wanted};
use crate::cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Name;
use crate::ops::Place;
use crate::registry::{Applied, Registry, Transaction};
use crate::sys::process::boot_id;
use crate::template::definition::{Definition, Source};

/// How long the removal of a template may take.
const REMOVAL: Duration = Duration::from_secs(60);
/// How long to wait for what keepers say first. Who takes longer is heard later.
const FIRST_WORDS: Duration = Duration::from_secs(2);

/// The templates of a store. There is one in a process, and one process for a store.
#[derive(Debug, Clone)]
pub struct Manager(Arc<Core>);

/// What becomes of the clones of a template that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clones {
    /// They go on.
    Spared,
    /// They are killed and deleted.
    Killed,
}

/// How a template is found that a daemon before had at work.
#[derive(Debug)]
pub enum Past {
    /// It is there, to stay.
    Kept(Box<Summary>),
    /// It goes, and takes long.
    Going,
    /// There is none.
    Gone,
}

/// What all minders share.
#[derive(Debug)]
struct Core {
    place: Place,
    cgroups: cgroup::Manager,
    boot: String,
    registry: Arc<dyn Registry>,
    templates: Mutex<BTreeMap<Key, Arc<Template>>>,
    /// Why some of what is written down cannot be read.
    damaged: Vec<String>,
}

impl Manager {
    /// Takes over the keepers that are there, and starts those that are not.
    ///
    /// # Errors
    /// Those of the registry, and of starting threads.
    pub fn open(place: &Place, cgroups: cgroup::Manager, registry: Arc<dyn Registry>) -> Result<Self> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for entry in registry.list(PREFIX)?.entries {
            match Record::read(&entry) {
                Ok(record) => records.push((record, entry.modified)),
                Err(error) => {
                    tracing::error!("{error}");
                    damaged.push(error.to_string());
                }
            }
        }
        let core = Arc::new(Core {
            place: place.clone(),
            cgroups,
            boot: boot_id()?,
            registry,
            templates: Mutex::default(),
            damaged,
        });
        let manager = Self(core);
        for (record, revision) in records {
            let template = Arc::new(Template::new(record, revision)?);
            manager.0.lock().insert(template.key.clone(), Arc::clone(&template));
            Minder::found(Arc::clone(&manager.0), template)?;
        }
        manager.wait_for_first_words();
        Ok(manager)
    }

    /// Who asks right after the start is to be told how things are.
    fn wait_for_first_words(&self) {
        let deadline = Instant::now() + FIRST_WORDS;
        let templates: Vec<_> = self.0.lock().values().cloned().collect();
        for template in templates {
            let left = deadline.saturating_duration_since(Instant::now());
            template.wait_for(left, |seen| seen.looked.then_some(()));
        }
    }

    /// Whose templates these are.
    #[must_use]
    pub fn owner(&self) -> &Name {
        &self.0.place.owner
    }

    /// What a ring was made over, for a template that is made from its entry.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such ring or entry, [`Kind::Usage`] if that was no single directory.
    pub fn base_of(&self, ring: &str) -> Result<Source> {
        mark::base(ring, &self.0.place)
    }

    /// All templates, in order.
    #[must_use]
    pub fn list(&self) -> Vec<Summary> {
        let templates: Vec<_> = self.0.lock().values().cloned().collect();
        templates.iter().map(|template| template.summary(&self.0.place)).collect()
    }

    /// All templates, in numbers.
    #[must_use]
    pub fn numbers(&self) -> Vec<Numbers> {
        let templates: Vec<_> = self.0.lock().values().cloned().collect();
        templates.iter().map(|template| template.numbers(&self.0.place)).collect()
    }

    /// All that is known of one.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none.
    pub fn show(&self, name: &Name) -> Result<Details> {
        let template = self.find(name, "show")?;
        Ok(template.details(&self.0.place))
    }

    /// Why some of what is written down cannot be read, a line each.
    #[must_use]
    pub fn damaged(&self) -> &[String] {
        &self.0.damaged
    }

    /// Makes a template, and returns when it can be cloned. `pass` is called before anything is done, when nobody else can do
    /// anything about it; what it refuses is not done. `tell` is told what is being done.
    ///
    /// # Errors
    /// [`Kind::Exists`] if the name is taken; else why it cannot be cloned, and nothing of it is left.
    pub fn create(
        &self,
        definition: Definition,
        pass: &dyn Fn() -> Result<()>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Summary> {
        let key = Key::of(&definition);
        let operation = format!("create template '{}'", key.name);
        definition.check()?;
        check_free(&self.0.lock(), &key, &operation)?;
        mark::check(&definition, &self.0.place).context(|| operation.clone())?;
        let template = self.begin(definition, pass, &operation)?;
        Minder::create(Arc::clone(&self.0), Arc::clone(&template))?;
        let mut told = String::new();
        loop {
            let news = template.wait_for(Duration::MAX, |seen| match &mut seen.creation {
                Some(outcome) => Some(Ok(std::mem::replace(outcome, Outcome::Told))),
                None if seen.step != told => Some(Err(seen.step.clone())),
                None => None,
            });
            match news {
                Some(Err(step)) => {
                    tell(&step);
                    told = step;
                }
                Some(Ok(Outcome::Ready | Outcome::Told)) | None => return Ok(template.summary(&self.0.place)),
                Some(Ok(Outcome::Failed(error))) => return Err(error).context(|| operation),
            }
        }
    }

    /// Writes a new template down, as one that is to go until it has come.
    fn begin(&self, definition: Definition, pass: &dyn Fn() -> Result<()>, operation: &str) -> Result<Arc<Template>> {
        let key = Key::of(&definition);
        let record = Record::first(definition, &self.0.boot);
        let mut templates = self.0.lock();
        check_free(&templates, &key, operation)?;
        pass()?;
        let transaction = Transaction::replace(&key.path(), 0, record.write()?);
        let Applied::Committed(revision) = self.0.registry.apply(&transaction)? else {
            let cause = "something is written down under its name that cannot be read";
            return Err(Error::new(Kind::Damaged, operation, cause).next("choose another name"));
        };
        let template = Arc::new(Template::new(record, revision)?);
        templates.insert(key, Arc::clone(&template));
        Ok(template)
    }

    /// Takes a template out. Returns when nothing of it is left. `pass` is called as in [`Manager::create`].
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Busy`] if its keeper does not end.
    pub fn remove(&self, name: &Name, clones: Clones, pass: &dyn Fn() -> Result<()>) -> Result<()> {
        let template = self.find(name, "remove")?;
        let operation = || format!("remove template '{name}'");
        {
            let mut seen = template.lock();
            pass()?;
            if clones == Clones::Killed {
                seen.clones = Clones::Killed;
            }
            if seen.record.wanted == Wanted::Kept {
                self.0.save(&template.key, &mut seen, |record| record.wanted = Wanted::Removed).context(operation)?;
            }
            seen.removed = true;
            seen.gone = None;
        }
        template.ring();
        let gone = template.wait_for(REMOVAL, |seen| seen.gone.clone());
        match gone {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(error).context(operation),
            None => {
                let cause = format!("its keeper has not ended in {} s", REMOVAL.as_secs());
                Err(Error::new(Kind::Busy, operation(), cause).next(format!("see 'regen template show {name}'")))
            }
        }
    }

    /// Whether it is there and was never ready yet, and nobody has removed it.
    #[must_use]
    pub fn is_being_made(&self, name: &Name) -> bool {
        self.find(name, "find").is_ok_and(|template| {
            let seen = template.lock();
            seen.record.wanted == Wanted::Removed && seen.creation.is_none() && !seen.removed
        })
    }

    /// How a template is that the daemon before made or removed, once what was half done is undone.
    #[must_use]
    pub fn past(&self, name: &Name) -> Past {
        let Ok(template) = self.find(name, "find") else { return Past::Gone };
        if template.lock().record.wanted == Wanted::Kept {
            return Past::Kept(Box::new(template.summary(&self.0.place)));
        }
        let gone = template.wait_for(REMOVAL, |seen| seen.gone.clone());
        match gone {
            Some(Ok(())) => Past::Gone,
            Some(Err(_)) | None => Past::Going,
        }
    }

    fn find(&self, name: &Name, verb: &str) -> Result<Arc<Template>> {
        let key = Key { owner: self.0.place.owner.clone(), name: name.clone() };
        self.0.lock().get(&key).cloned().ok_or_else(|| {
            let cause = "there is no such template";
            Error::new(Kind::NotFound, format!("{verb} template '{name}'"), cause).next("see 'regen template ls'")
        })
    }
}

/// Refuses a name that is taken.
fn check_free(templates: &BTreeMap<Key, Arc<Template>>, key: &Key, operation: &str) -> Result<()> {
    if !templates.contains_key(key) {
        return Ok(());
    }
    let next = format!("choose another name, or remove that one: 'regen template rm {}'", key.name);
    Err(Error::new(Kind::Exists, operation, "there is one already").next(next))
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Template>>> {
        self.templates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is written down of a template.
    ///
    /// # Errors
    /// Those of the registry; everything is then as it was.
    fn save(&self, key: &Key, seen: &mut book::Seen, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = seen.record.clone();
        change(&mut record);
        record.boot.clone_from(&self.boot);
        let transaction = Transaction::replace(&key.path(), seen.revision, record.write()?);
        let Applied::Committed(revision) = self.registry.apply(&transaction)? else {
            let cause = "somebody else has changed it in the registry";
            return Err(
                Error::new(Kind::Damaged, format!("write down template '{key}'"), cause).next("restart 'regen serve'")
            );
        };
        seen.record = record;
        seen.revision = revision;
        Ok(())
    }

    /// Takes a template out of everything: nothing of it is left but what is written down.
    fn forget(&self, key: &Key) -> Result<()> {
        let transaction = Transaction { deletes: vec![key.path()], ..Transaction::default() };
        self.registry.apply(&transaction)?;
        self.lock().remove(key);
        Ok(())
    }
}
