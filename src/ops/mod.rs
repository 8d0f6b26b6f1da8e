//! The only room that combines a runtime, rings, images and the store.
//!
//! ```text
//! load    request ── claim ── mount ── create      a container on a ring's entry, or on a scratch upper
//! fork    lock ── fork or read                    the same without having the ring, for any number at once
//! save    stop ── seal ── remove                   its end, and what becomes of its upper
//! snapshot copy ── freeze ── copy ── thaw ── seal  an entry of a container that goes on
//! memory  check ── freeze ── dump; restore         the processes of a container, with a snapshot and back
//! look    view ── read, put back                       what a state holds, without running it
//! handover snapshot ── step aside                  its ring is free for a successor, while it goes on
//! clone   function ── job ── ask                     a container from a template, for who wants one
//! function open ── unpack ── mount                  what is dropped into a clone
//! push    pack ── blobs ── manifests ── index        a ring goes to a registry; only what is not there
//! pull    list ── fetch ── unpack ── accept          and comes from one, or from a layout or an archive
//! export  pack ── base ── layers ── manifest         an entry goes anywhere, with what it stands on or without
//! tally   drain ── add                            what short-lived processes have counted
//! ring_move give ── take                             a ring goes to another node by a registry
//! ownership claim ── keep ── watch                   which node has a ring, where several share a registry
//! sender  is it behind ── push ── note             a ring goes where the configuration says, in a process of its own
//! worker  sync ── pack ── evict ── fold ── collect what takes time, in a process of its own
//! keep    order ── make ── watch ── end            an instance of a service, in a process of its own
//! service plan ── start ── serve ── drain          which instance serves: the daemon's part
//! cluster register ── tell ── hear ── resolve       this node among others
//! template start ── watch ── start again ── stop   that templates have keepers: the daemon's part
//! operation submit ── queue ── carry out ── end       what is asked of the daemon, answered at once and done by threads
//! warm    order ── load ── fork ── answer          a loaded program and its clones, in a process of its own; or, where it
//!         start ── ready ── save ── restore        cannot fork, containers that begin where another one was
//! ```

mod apart;
mod base;
pub mod clone;
pub mod cluster;
pub mod doctor;
pub mod export;
mod fork;
pub mod function;
pub mod handover;
mod id_map;
mod image;
pub mod interval;
pub mod invoke;
pub mod keep;
pub mod load;
pub mod look;
mod machine;
mod memory;
pub mod name;
mod notify;
pub mod operation;
mod order;
mod origin;
pub mod ownership;
pub mod prune;
pub mod pull;
pub mod push;
mod quota;
pub mod request;
pub mod ring_move;
pub mod save;
mod seen;
pub mod sender;
mod sent;
pub mod service;
pub mod snapshot;
pub mod tally;
pub mod template;
pub mod transfer;
mod volume;
pub mod warm;
pub mod worker;

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::ids::Name;
use crate::runtime::StateRoot;
use crate::store::Store;
use crate::sys::user;
use crate::sys::user_namespace::outside;

/// Where and for whom something is done.
#[derive(Debug, Clone)]
pub struct Place {
    /// The runtime's state root.
    pub root: StateRoot,
    /// The store's directory, which need not exist.
    pub store: PathBuf,
    /// What the administrator says.
    pub config: Config,
    /// The file that says so, if one was named: a worker is to read the same.
    pub config_file: Option<PathBuf>,
    /// The owner of rings that are named without one.
    pub owner: Name,
}

impl Place {
    /// The place that a process of ours was ordered to work in, as its own user.
    ///
    /// # Errors
    /// Those of [`Config::load`] and [`caller`].
    fn of_order(root: &Path, store: &Path, config_file: Option<&Path>) -> Result<Self> {
        Ok(Self {
            root: StateRoot::new(root.to_owned()),
            store: store.to_owned(),
            config: Config::load(config_file)?,
            config_file: config_file.map(Path::to_owned),
            owner: caller()?,
        })
    }

    /// The store, made if it is not there.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_store(&self) -> Result<Store> {
        Store::open(&self.store)
    }
}

/// The owner of the rings of the calling user: `root`, or the user's name, or the number of one without a name. Root of a
/// user namespace that a user of this machine has made, as podman does for them, is that user.
///
/// # Errors
/// Those of looking into the user database.
pub fn caller() -> Result<Name> {
    let uid = nix::unistd::geteuid();
    let outside = outside(uid.as_raw()).filter(|_| uid.is_root());
    let name_of = |uid: u32| Ok::<_, Error>(user::by_id(uid)?.and_then(|user| user.name.parse().ok()));
    if uid.is_root() {
        return outside.map_or(Ok(None), name_of)?.map_or_else(|| "root".parse(), Ok);
    }
    name_of(uid.as_raw())?.map_or_else(|| format!("uid{uid}").parse(), Ok)
}
