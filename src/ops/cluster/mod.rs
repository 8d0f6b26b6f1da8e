//! This node among others: registered as long as it lives, its services told to all, theirs known here.
//!
//! ```text
//!  roster, record of this node ──> membership ──lease, node/NAME, member/NAME/…──> registry
//!                                                                                    │ watch
//!  resolve: own first, then theirs <── Directory <───────────── feed <───────────────┘
//! ```
//!
//! Two threads: one that tells (`membership`), one that hears (`feed`). Each begins anew as long as the registry does not
//! answer, with pauses that grow, and what is told then is the state of then: whatever happened meanwhile, both sides
//! come to agree. Nothing here is waited for by those who resolve.
//!
//! When the daemon ends, instances go on, and so the lease is left to run out: the next daemon of the same store finds its
//! own record and goes on with it. Only who takes the instances away as well says so ([`Cluster::leave`]).

mod census;
mod feed;
mod here;
mod membership;
mod mourning;
mod offer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

pub use census::Census;
pub use here::{identity, node_here};
pub use mourning::mourn;

use crate::error::{Context, Error, Result};
use crate::ids::{Name, NodeName};
use crate::node::{self, Node};
use crate::registry::{Lease, Registry};
use crate::service::choice::{Wanted, newest, refuse_name, refuse_version};
use crate::service::roster::{Member, Roster};
use crate::sys::bell::Bell;

/// How long a node is there after it was heard last.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often it is heard.
const RENEWAL: Duration = Duration::from_secs(10);

/// Which nodes there are, and who serves on the others.
pub type Directory = node::Directory<Member>;

/// This node's place among others. Dropping it ends its threads, and leaves what is registered until the lease runs out.
#[derive(Debug)]
pub struct Cluster(Arc<Shared>);

/// What the threads share.
#[derive(Debug)]
struct Shared {
    registry: Arc<dyn Registry>,
    roster: Arc<Roster>,
    directory: Arc<Directory>,
    /// As it is to be registered.
    node: Mutex<Node>,
    standing: Mutex<Standing>,
    /// What counts beside services; none before it is said.
    census: OnceLock<Census>,
    /// Whether changes arrive, and whether renewing was answered: the copy is of now if both are so.
    hears: AtomicBool,
    is_heard: AtomicBool,
    /// Held while what follows from both is said, so that the last word is that of the last change.
    saying: Mutex<()>,
    ended: AtomicBool,
    /// Set when this node's own record was seen to go.
    is_missed: AtomicBool,
    /// Rung when the record has changed, or at the end.
    membership: Bell,
    /// Rung at the end.
    feed: Bell,
}

/// Whether this node is registered.
#[derive(Debug, Clone, Default)]
pub enum Standing {
    /// Not yet, or not any more: why, if anything was tried.
    #[default]
    Beginning,
    /// The last try has failed; it is tried again.
    Failing(Error),
    /// It is.
    Joined(Lease),
    /// Another host has the name; it is tried again.
    Refused(Error),
}

/// Who a client is sent to.
#[derive(Debug, Clone)]
pub enum Found {
    /// An instance of this node.
    Here(Arc<Member>),
    /// One of another node, at addresses that can be reached from here.
    There {
        /// Which.
        node: NodeName,
        /// Who, with those of its addresses that other hosts reach.
        member: Arc<Member>,
        /// How long nothing was heard of other nodes for, if that is so.
        stale: Option<Duration>,
    },
}

impl Cluster {
    /// Registers this node, and begins to hear of the others. Where the registry does not answer this goes on trying, and the
    /// copy says that nothing was heard yet.
    ///
    /// # Errors
    /// [`crate::error::Kind::Exists`] if a living node of another store has the name; that of a registry that refuses this node; those
    /// of starting threads.
    pub fn open(registry: Arc<dyn Registry>, node: Node, roster: Arc<Roster>) -> Result<Self> {
        let shared = Arc::new(Shared {
            registry,
            directory: Arc::new(Directory::new(node.name.clone())),
            roster,
            node: Mutex::new(node),
            standing: Mutex::default(),
            census: OnceLock::new(),
            hears: AtomicBool::new(false),
            is_heard: AtomicBool::new(false),
            saying: Mutex::default(),
            ended: AtomicBool::new(false),
            is_missed: AtomicBool::new(false),
            membership: Bell::new()?,
            feed: Bell::new()?,
        });
        let mut membership = membership::Membership::new(Arc::clone(&shared))?;
        membership.begin()?;
        start("cluster", move || membership.run())?;
        let theirs = Arc::clone(&shared);
        let cluster = Self(shared);
        start("cluster-feed", move || feed::run(&theirs))?;
        Ok(cluster)
    }

    /// Which nodes there are, and who serves on the others.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.0.directory
    }

    /// This node, as it is to be registered.
    #[must_use]
    pub fn node(&self) -> Node {
        self.0.node().clone()
    }

    /// Changes the record of this node: its state, or what is counted. Others hear of it soon.
    pub fn change(&self, change: impl FnOnce(&mut Node)) {
        change(&mut self.0.node());
        self.0.membership.ring();
    }

    /// Says how much there is here, from now on; before that only services are counted.
    pub fn count_by(&self, census: Census) {
        // There is one for a node.
        let _ = self.0.census.set(census);
        self.0.membership.ring();
    }

    /// Whether this node is registered.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.0.standing().clone()
    }

    /// Who a client is sent to: the newest version here that satisfies, else the newest elsewhere; equals take turns. It asks
    /// nobody.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`], naming the versions that are there, or the services with a name like it.
    pub fn resolve(&self, wanted: &Wanted) -> Result<Found> {
        let own = self.0.roster.snapshot();
        let refused = match own.resolve(wanted) {
            Ok(member) => return Ok(Found::Here(member)),
            Err(refused) => refused,
        };
        let others = self.0.directory.snapshot();
        let placed =
            others.resolve(&wanted.name, |sorted| newest(sorted, |placed| &placed.offer.version, &wanted.requirement));
        if let Some(placed) = placed {
            let (node, member) = (placed.node.clone(), Arc::clone(&placed.offer));
            return Ok(Found::There { node, member, stale: self.0.directory.stale_for() });
        }
        let elsewhere = others.service(&wanted.name);
        let here = own.members().filter(|member| member.name == wanted.name);
        let versions: Vec<_> =
            here.map(|member| &member.version).chain(elsewhere.iter().map(|placed| &placed.offer.version)).collect();
        let error = match versions.is_empty() {
            false => refuse_version(wanted, versions),
            true if others.services().next().is_none() => refused,
            true => {
                let mut known: Vec<&Name> = own.members().map(|member| &member.name).chain(others.services()).collect();
                known.dedup();
                refuse_name(wanted, known)
            }
        };
        Err(self.0.say_age(error))
    }

    /// Takes this node away, and all that it has registered: for when its instances go, too.
    ///
    /// # Errors
    /// Those of the registry; the lease runs out then.
    pub fn leave(self) -> Result<()> {
        let held = match &*self.0.standing() {
            Standing::Joined(lease) => Some(*lease),
            Standing::Beginning | Standing::Failing(_) | Standing::Refused(_) => None,
        };
        self.0.end();
        match held {
            Some(lease) => self.0.registry.revoke(lease).map_err(|failure| {
                let name = self.0.node().name.clone();
                Error::from(failure).during(format!("take away node '{name}'"))
            }),
            None => Ok(()),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Shared {
    fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the threads, which may still wait for the registry's last answer.
    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.membership.ring();
        self.feed.ring();
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Notes what one of the threads knows of the connection to the registry.
    fn note(&self, what: &AtomicBool, so: bool) {
        let _alone = self.saying.lock().unwrap_or_else(PoisonError::into_inner);
        what.store(so, Ordering::Release);
        if self.hears.load(Ordering::Acquire) && self.is_heard.load(Ordering::Acquire) {
            self.directory.set_fed();
        } else {
            self.directory.set_unfed();
        }
    }

    /// That what is not found may be there by now.
    fn say_age(&self, error: Error) -> Error {
        match self.directory.stale_for() {
            Some(age) if error.next_step().is_none() => {
                error.next(format!("other nodes were heard {} s ago, look for the registry", age.as_secs()))
            }
            Some(_) | None => error,
        }
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map(drop).context(|| format!("start the thread '{name}'"))
}

/// Pauses that grow, from a fifth of a second to five.
#[derive(Debug, Default)]
struct Pauses(u32);

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(200 << self.0.min(5)).min(Duration::from_secs(5));
        self.0 += 1;
        pause
    }

    fn reset(&mut self) {
        self.0 = 0;
    }
}
