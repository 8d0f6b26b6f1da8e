//! The directory of a template, which its keepers share: of several the newest that is ready has the socket.
//!
//! ```text
//! STORE/templates/OWNER/NAME/   0700
//!   socket                      requests: of the newest keeper that is ready (rename(2) of socket-N)
//!   control-N                   commands to the keeper of generation N
//!   keeper-N                    locked (flock(2)) as long as that keeper lives
//!   base-N                      what the containers of that generation are made from
//!   program.json                what the program of a clone has, unless somebody says otherwise
//!   module/                     what is bound to /run/regen-zygote in its containers
//!   function/                   empty: what is bound to /function in its containers
//! ```

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::channel::Listener;
use crate::sys::fs::open_path;
use crate::sys::lock::{Lock, Sharing};
use crate::template::definition::Order;
use crate::template::message::{CONTROL, SOCKET};
use crate::template::python;

/// What is bound to `/run/regen-zygote`.
pub(super) const MODULE: &str = "module";
/// What is bound to `/function`.
pub(super) const FUNCTION: &str = "function";
/// What containers of a generation are made from, before its number.
pub(super) const BASE: &str = "base-";
const KEEPER: &str = "keeper-";
const NEXT_SOCKET: &str = "socket-";

/// A template's directory, for the keeper of one generation.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    directory: File,
    generation: u64,
    /// The inode of our socket for requests, once it has its name.
    published: Option<u64>,
    /// Says that we live.
    _alive: Lock,
}

impl Home {
    /// Makes the directory if it is not there, and says in it that this keeper lives.
    ///
    /// # Errors
    /// [`Kind::Exists`] if another keeper of this generation lives.
    pub(super) fn enter(order: &Order) -> Result<Self> {
        let path = order.directory();
        let operation = || format!("make the directory of template '{}'", order.definition);
        for directory in [&path, &path.join(FUNCTION)] {
            DirBuilder::new().mode(0o700).recursive(true).create(directory).context(operation)?;
        }
        // Whoever the program is in there may look at it.
        let visible = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path.join(FUNCTION), visible).context(operation)?;
        python::write(&path.join(MODULE))?;
        let generation = order.generation;
        let lock = path.join(format!("{KEEPER}{generation}"));
        let alive = Lock::try_take(&lock, Sharing::Exclusive)?.ok_or_else(|| {
            Error::new(Kind::Exists, operation(), format!("the keeper of generation {generation} lives already"))
        })?;
        let directory = open_path(&path)?;
        Ok(Self { path, directory, generation, published: None, _alive: alive })
    }

    /// Listens for commands.
    pub(super) fn listen_for_commands(&self) -> Result<Listener> {
        let name = format!("{CONTROL}{}", self.generation);
        self.unlink(&name)?;
        Listener::bind(&self.directory, &name)
    }

    /// Listens for requests, in place of whoever did before.
    pub(super) fn listen_for_requests(&mut self) -> Result<Listener> {
        let name = format!("{NEXT_SOCKET}{}", self.generation);
        self.unlink(&name)?;
        let listener = Listener::bind(&self.directory, &name)?;
        let _turn = self.turn()?;
        let (from, to) = (self.path.join(&name), self.path.join(SOCKET));
        self.published = Some(fs::symlink_metadata(&from).context(|| format!("look at {}", quote(&from)))?.ino());
        fs::rename(&from, &to).context(|| format!("rename {}", quote(&from)))?;
        Ok(listener)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the socket for requests away, if it is still ours: who comes from now on finds nobody, or the next keeper.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        let Some(own) = self.published.take() else { return Ok(()) };
        // Or we could take away what a newer keeper has just put there.
        let _turn = self.turn()?;
        match fs::symlink_metadata(self.path.join(SOCKET)) {
            Ok(metadata) if metadata.ino() == own => self.unlink(SOCKET),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context(|| "look at the socket for requests"),
        }
    }

    /// Takes away what only this keeper has.
    pub(super) fn leave(mut self) -> Result<()> {
        self.withdraw()?;
        self.sweep(self.generation)
    }

    /// The generations of whose keepers something is left that are dead. None of them will live again.
    pub(super) fn dead(&self) -> Result<Vec<u64>> {
        let operation = || format!("list {}", quote(&self.path));
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).context(operation)? {
            let name = entry.context(operation)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(KEEPER)?.parse::<u64>().ok());
            found.extend(number.filter(|number| *number != self.generation));
        }
        found.retain(|generation| self.is_dead(*generation));
        Ok(found)
    }

    /// Whether no keeper of this generation lives.
    pub(super) fn is_dead(&self, generation: u64) -> bool {
        let lock = self.path.join(format!("{KEEPER}{generation}"));
        generation != self.generation
            && (!lock.exists() || matches!(Lock::try_take(&lock, Sharing::Exclusive), Ok(Some(_))))
    }

    /// Takes away what a keeper had in the directory. Its lock goes last: without it nobody looks for the rest.
    pub(super) fn sweep(&self, generation: u64) -> Result<()> {
        for prefix in [NEXT_SOCKET, CONTROL, BASE, KEEPER] {
            self.unlink(&format!("{prefix}{generation}"))?;
        }
        Ok(())
    }

    fn unlink(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("remove {}", quote(&path))),
        }
    }

    /// Of several keepers one at a time changes who has the socket.
    fn turn(&self) -> Result<Lock> {
        Lock::wait_at(&self.path, Sharing::Exclusive)
    }
}
