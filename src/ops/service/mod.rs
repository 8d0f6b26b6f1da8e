//! Services: which there are, which instance of each serves, and what becomes of both. The daemon's part of them.
//!
//! ```text
//!  add, restart, upgrade, adopt, rm        one thread each: the caller's
//!        │ claim: one change of a version at a time
//!        v
//!  change ── removal                       written down, begun, done, written down
//!        │ orders, commands
//!        v
//!  keepers (a process per instance)  ──>  watch: one thread that sleeps over all of them
//!                                            │ an instance ended ──> policy ──> crew: a successor
//!                                            └ an old one ended  ──> crossed out
//! ```
//!
//! What is remembered is in the registry (`record`), what is known now in the book (`book`); clients ask the roster.
//! Neither the death of this process nor its return disturbs an instance: see `judge`.

mod book;
mod bystander;
mod change;
mod core;
mod crew;
mod event;
mod farewell;
mod judge;
mod mandate;
mod orphan;
mod past;
mod plan;
mod record;
mod recover;
mod removal;
mod ring;
mod tenancy;
mod view;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use semver::Version;
use serde::{Deserialize, Serialize};

pub use book::Drained;
pub use bystander::Bystander;
pub use change::Step;
pub use mandate::Mandate;
pub use past::Past;
pub use plan::Downgrade;
pub use record::{Change, ChangeId, ChangeKind, Key};
pub use removal::Removal;
pub use view::{Details, InstanceView, State, Summary};

use self::core::{Claim, Core};
use book::{Book, Running, Service};
use change::{Done, ENDING, Goal, carry_out, first_record};
use watch::Watch;

use crate::cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{ContainerId, Name};
use crate::ops::Place;
use crate::registry::{Applied, Registry, Sqlite, Transaction};
use crate::service::definition::Definition;
use crate::service::roster::Roster;
use crate::service::settings::Settings;
use crate::sys::process::{Identity, boot_id};

/// The services of a store, and their instances. There is one in a process, and one process for a store.
#[derive(Debug, Clone)]
pub struct Manager(Arc<Core>);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The new instance serves.
    Serving,
    /// And the old one is gone.
    Drained,
}

/// What a change led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The change.
    pub change: ChangeId,
    /// The service.
    pub name: Name,
    /// Its version now.
    pub version: Version,
    /// The instance that serves.
    pub instance: ContainerId,
    /// Where, with ports that were chosen.
    pub addresses: Vec<String>,
    /// The instance before, if there was one that served.
    pub old: Option<ContainerId>,
    /// How that one went, if that was waited for.
    pub drained: Option<Drained>,
}

/// What the registry and the state root have that no service explains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strays {
    /// Instances that have a keeper.
    pub instances: Vec<ContainerId>,
    /// Why some of what is written down cannot be read, a line each.
    pub damaged: Vec<String>,
}

impl Manager {
    /// Opens the registry, finds the instances that are there, and goes on with what was half done. From then on one thread
    /// watches.
    ///
    /// # Errors
    /// Those of [`Sqlite::open`] and of starting a thread; [`Kind::Busy`] if another daemon has the store.
    pub fn open(place: &Place, cgroups: cgroup::Manager) -> Result<Self> {
        let store = place.open_store()?;
        let registry = Arc::new(Sqlite::open(store.directory())?);
        let core = Core {
            place: place.clone(),
            cgroups,
            boot: boot_id()?,
            registry,
            _tenancy: tenancy::take(store.directory())?,
            roster: Roster::new(),
            watch: Watch::new()?,
            crew: crew::Crew::default(),
            book: Mutex::default(),
            news: Condvar::new(),
        };
        core.load()?;
        let core = Arc::new(core);
        let watcher = Arc::clone(&core);
        let thread = std::thread::Builder::new().name("watch".to_owned());
        thread.spawn(move || watcher.attend()).context(|| "start the thread that watches keepers")?;
        core.go_on();
        Ok(Self(core))
    }

    /// What is remembered, for others who remember something.
    #[must_use]
    pub fn registry(&self) -> Arc<dyn Registry> {
        Arc::clone(&self.0.registry)
    }

    /// Whom clients can be sent to.
    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.0.roster)
    }

    /// All versions of all services, in order.
    #[must_use]
    pub fn list(&self) -> Vec<Summary> {
        self.0.lock().summaries()
    }

    /// All that is known of one; of several versions one has to be named.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Usage`] if there are several.
    pub fn show(&self, name: &Name, version: Option<&Version>) -> Result<Details> {
        let book = self.0.lock();
        let key = book.select(&format!("show service '{name}'"), name, version)?;
        book.details(&key).ok_or_else(|| Error::new(Kind::NotFound, format!("show service '{key}'"), "there is none"))
    }

    /// The version that is meant; none if there is none, or if it had to be said which.
    #[must_use]
    pub fn find(&self, name: &Name, version: Option<&Version>) -> Option<Key> {
        self.0.lock().select("find a service", name, version).ok()
    }

    /// Whether all that is meant, a version or all of them, is being removed.
    #[must_use]
    pub fn is_being_removed(&self, name: &Name, version: Option<&Version>) -> bool {
        let book = self.0.lock();
        let versions = book.versions(name);
        let mut meant = versions.iter().filter(|key| version.is_none_or(|version| key.version == *version)).peekable();
        let goes = |key: &Key| {
            let running = book.services.get(key).and_then(|service| service.running.as_ref());
            running.is_some_and(|running| running.change.kind == ChangeKind::Remove)
        };
        meant.peek().is_some() && meant.all(goes)
    }

    /// The directory of a service's log, and the service.
    ///
    /// # Errors
    /// As [`Manager::show`].
    pub fn log(&self, name: &Name, version: Option<&Version>) -> Result<(Key, PathBuf)> {
        let mut book = self.0.lock();
        let key = book.select(&format!("read the log of service '{name}'"), name, version)?;
        let directory = self.0.log_directory(&book.get(&key)?.record.log);
        Ok((key, directory))
    }

    /// What no service explains.
    #[must_use]
    pub fn strays(&self) -> Strays {
        let book = self.0.lock();
        Strays { instances: book.strangers.clone(), damaged: book.damaged.clone() }
    }

    /// Adds a service, and returns when its first instance serves.
    ///
    /// # Errors
    /// [`Kind::Exists`] if the version or an address is taken; else why the instance does not serve, and nothing of it is
    /// left.
    pub fn add(&self, definition: Definition, mandate: &Mandate<'_>, tell: &mut dyn FnMut(Step)) -> Result<Report> {
        if definition.source.is_none() {
            let operation = format!("add service '{definition}'");
            return Err(Error::new(Kind::Usage, operation, "nothing says what it is made from"));
        }
        self.begin(Goal { to: definition, adopt: None }, mandate.begin(ChangeKind::Add)?, mandate, tell)
    }

    /// Makes a program that runs already the first instance of a service.
    ///
    /// # Errors
    /// As [`Manager::add`]; the program is left as it is.
    pub fn adopt(
        &self,
        (definition, pid): (Definition, i32),
        mandate: &Mandate<'_>,
        tell: &mut dyn FnMut(Step),
    ) -> Result<Report> {
        let process = Identity::of(pid).context(|| format!("adopt service '{definition}'"))?;
        self.begin(Goal { to: definition, adopt: Some(process) }, mandate.begin(ChangeKind::Adopt)?, mandate, tell)
    }

    /// Puts a new instance in the place of the old one.
    ///
    /// # Errors
    /// [`Kind::Busy`] while it is being changed; else why the new instance does not serve: the old one was not touched.
    pub fn restart(
        &self,
        (name, version): (&Name, Option<&Version>),
        until: Until,
        mandate: &Mandate<'_>,
        tell: &mut dyn FnMut(Step),
    ) -> Result<Report> {
        let operation = format!("restart service '{}'", spelled(name, version));
        let mut book = self.0.lock();
        let key = book.select(&operation, name, version)?;
        let to = book.get(&key)?.record.definition.clone();
        let change = mandate.begin(ChangeKind::Restart)?;
        let claim = self.0.claim(&mut book, &key, change, &operation);
        drop(book);
        let claim = claim?;
        mandate.pass()?;
        if to.source.is_none() {
            return Err(Error::new(
                Kind::State,
                operation,
                "its program was adopted, and nothing says how to start it",
            )
            .next(format!("say it: 'regen service upgrade {name} --to VERSION --rootfs DIR -- COMMAND'")));
        }
        self.carry_out(claim, Goal { to, adopt: None }, until, tell)
    }

    /// Puts an instance of another version in the place of the old one; what is not given stays as it is.
    ///
    /// # Errors
    /// As [`Manager::restart`]; [`Kind::Exists`] if that version is there, [`Kind::Usage`] if it is older.
    pub fn upgrade(
        &self,
        (name, version, until): (&Name, Option<&Version>, Until),
        (to, changes, downgrade): (Version, Settings, Downgrade),
        mandate: &Mandate<'_>,
        tell: &mut dyn FnMut(Step),
    ) -> Result<Report> {
        let operation = format!("upgrade service '{}' to {to}", spelled(name, version));
        let mut book = self.0.lock();
        let key = book.select(&operation, name, version)?;
        let target = Key { name: name.clone(), version: to.clone() };
        book.check_idle(&key, &operation)?;
        book.check_idle(&target, &operation)?;
        if book.services.contains_key(&target) {
            let next = format!("choose another version, or remove that one: 'regen service rm {target}'");
            return Err(Error::new(Kind::Exists, operation, format!("version {to} is there already")).next(next));
        }
        let new = plan::upgrade(&book.get(&key)?.record.definition, to.clone(), changes, downgrade)?;
        let change = mandate.begin(ChangeKind::Upgrade)?;
        let claim = self.0.claim(&mut book, &key, change, &operation);
        if let (Ok(_), Some(Service { running: Some(running), .. })) = (&claim, book.services.get_mut(&key)) {
            running.to = Some(to);
        }
        drop(book);
        let claim = claim?;
        mandate.pass()?;
        self.carry_out(claim, Goal { to: new, adopt: None }, until, tell)
    }

    /// Takes a service out: one version, or all of them if none is named. Returns when nothing of it is left.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Busy`] if one is being changed or does not end.
    pub fn remove(
        &self,
        (name, version): (&Name, Option<&Version>),
        how: Removal,
        mandate: &Mandate<'_>,
    ) -> Result<Vec<Key>> {
        let operation = format!("remove service '{}'", spelled(name, version));
        let book = self.0.lock();
        let keys = match (version, book.versions(name)) {
            (None, versions) if !versions.is_empty() => versions,
            (None | Some(_), _) => vec![book.select(&operation, name, version)?],
        };
        drop(book);
        self.0.remove(&keys, how, mandate)?;
        Ok(keys)
    }

    /// Writes a new service down, as one that is to go until it has come.
    fn begin(&self, goal: Goal, change: Change, mandate: &Mandate<'_>, tell: &mut dyn FnMut(Step)) -> Result<Report> {
        let operation = format!("{} service '{}'", change.kind.verb(), goal.to);
        plan::check(&goal.to).context(|| operation.clone())?;
        let key = Key::of(&goal.to);
        let log = format!("{}-{}", key.name, &change.id.to_string()[..8]);
        let record = first_record(goal.to.clone(), log, &self.0.boot);
        let mut book = self.0.lock();
        book.check_free(&goal.to, &operation)?;
        mandate.pass()?;
        let transaction = Transaction::replace(&key.path(), 0, record.write()?);
        let Applied::Committed(revision) = self.0.registry.apply(&transaction)? else {
            let cause = "something is written down under its name that cannot be read";
            return Err(Error::new(Kind::Damaged, operation, cause).next("choose another version"));
        };
        let running = Some(Running { change: change.clone(), to: None });
        book.services.insert(key.clone(), Service { running, ..Service::new(record, revision) });
        drop(book);
        self.carry_out(Claim { core: &self.0, key, change }, goal, Until::Serving, tell)
    }

    fn carry_out(&self, claim: Claim<'_>, goal: Goal, until: Until, tell: &mut dyn FnMut(Step)) -> Result<Report> {
        let (change, key) = (claim.change.id.clone(), Key::of(&goal.to));
        let limit = goal.to.drain_timeout + ENDING;
        let Done { instance, listen, old } = carry_out(claim, goal, tell)?;
        let waits = old.clone().filter(|_| until == Until::Drained);
        Ok(Report {
            change,
            name: key.name.clone(),
            version: key.version.clone(),
            instance,
            addresses: listen.iter().map(|listen| listen.address.to_string()).collect(),
            old,
            drained: waits.and_then(|old| self.wait_for_drain(&key, &old, limit)),
        })
    }

    /// How an old instance went; `None` if it does not go, or nobody could see it.
    fn wait_for_drain(&self, key: &Key, old: &ContainerId, limit: Duration) -> Option<Drained> {
        self.0.wait_for(limit, |book: &mut Book| (!book.instances.contains_key(old)).then_some(()))?;
        let book = self.0.lock();
        book.services.get(key)?.drained.clone().filter(|drained| drained.instance == *old)
    }
}

/// As it was typed.
fn spelled(name: &Name, version: Option<&Version>) -> String {
    version.map_or_else(|| name.to_string(), |version| format!("{name}@{version}"))
}
