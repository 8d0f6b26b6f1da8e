//! The keeper's own directory, by which it is found.
//!
//! ```text
//! ROOT/@keepers/INSTANCE/     0700; appears whole, by rename from @keepers/@INSTANCE
//!   order.json                what it keeps
//!   control                   socket for commands
//!   notify                    socket on which the program is heard, if it says when it is ready
//!   outcome.json              how the instance ended, once it did
//! ```

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::service::keeper::{CONTROL, ORDER};
use crate::service::message::{KEEPERS, Order, Outcome};
use crate::service::ready::notify;
use crate::sys::channel::Listener;
use crate::sys::fs::{Durability, by_descriptor, open_path, replace_file};

const NOTIFY: &str = "notify";
const OUTCOME: &str = "outcome.json";

/// A keeper's directory, made by this process.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
}

impl Home {
    /// Makes it, with the order and the control socket in it.
    ///
    /// # Errors
    /// [`Kind::Exists`] if the instance has a keeper, or had one that left its directory.
    pub(super) fn make(order: &Order) -> Result<(Self, Listener)> {
        let operation = || format!("make the directory of the keeper of instance '{}'", order.instance);
        let keepers = order.root.join(KEEPERS);
        DirBuilder::new().mode(0o700).recursive(true).create(&keepers).context(operation)?;
        let hidden = hidden(&keepers, &order.instance);
        let path = keepers.join(order.instance.as_str());
        let made = (|| {
            DirBuilder::new().mode(0o700).create(&hidden).context(operation)?;
            let text = serde_json::to_vec(order).context(operation)?;
            replace_file(&hidden, ORDER, &text, Durability::Volatile)?;
            let control = Listener::bind(open_path(&hidden)?, CONTROL)?;
            match renameat_with(CWD, &hidden, CWD, &path, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(control),
                Err(Errno::EXIST) => Err(Error::new(Kind::Exists, operation(), "there is one already")),
                Err(errno) => Err(errno).context(operation),
            }
        })();
        match made {
            Ok(control) => Ok((Self { path }, control)),
            Err(error) => {
                discard(&hidden);
                Err(error)
            }
        }
    }

    /// Where the program's notify socket lies.
    pub(super) fn notify(&self) -> PathBuf {
        self.path.join(NOTIFY)
    }

    /// Makes that socket.
    pub(super) fn listen_for_readiness(&self) -> Result<notify::Socket> {
        // Its path may be longer than an address: the directory is named by its descriptor.
        let directory = open_path(&self.path)?;
        notify::Socket::bind(&by_descriptor(&directory).join(NOTIFY))
    }

    /// Writes down how the instance ended, for a daemon that comes when nobody is left to be asked.
    pub(super) fn note(&self, outcome: &Outcome) -> Result<()> {
        let text = serde_json::to_vec(outcome).context(|| "write down how the instance ended")?;
        replace_file(&self.path, OUTCOME, &text, Durability::Volatile)
    }

    /// Takes it away.
    pub(super) fn remove(self) {
        discard(&self.path);
    }
}

/// What a keeper that is dead has left of its directory, at any time of its life.
///
/// # Errors
/// Those of removing it.
pub fn clear(root: &Path, instance: &ContainerId) -> Result<()> {
    let keepers = root.join(KEEPERS);
    for path in [hidden(&keepers, instance), keepers.join(instance.as_str())] {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.context(|| format!("remove {}", quote(&path)))?,
        }
    }
    Ok(())
}

/// Where it is made; no id has an `@`.
fn hidden(keepers: &Path, instance: &ContainerId) -> PathBuf {
    keepers.join(format!("@{instance}"))
}

/// What cannot be removed is found by the next daemon.
fn discard(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("remove {}: {error}", quote(path));
        }
        Ok(()) | Err(_) => {}
    }
}
