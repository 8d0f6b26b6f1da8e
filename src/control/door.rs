//! One daemon for a state root: its lock, its socket, and how both go over to the next program in the same process.

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::SOCKET;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::open_path;
use crate::sys::lock::{Lock, Sharing};
use crate::sys::stream::{Stream, StreamListener};
use crate::sys::supervisor::{Passed, notify};

/// The file below the state root that the daemon has locked, with its pid in it.
pub const LOCK: &str = "serve.lock";
/// Everybody may connect: who may do what is decided by who they are, and those who may do nothing are told so.
const MODE: u32 = 0o666;
/// A daemon that was told to end has so much time for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What our descriptors are called when they are passed on. A listener of another name is a supervisor's.
const OUR_LISTENER: &str = "listener";
const OUR_LOCK: &str = "lock";
const CONNECTION: &str = "connection";

/// A message has room for 253 descriptors (`SCM_MAX_FD`).
const AT_ONCE: usize = 128;

/// The right to be the daemon of a state root, and where callers come in.
#[derive(Debug)]
pub struct Door {
    lock: Lock,
    /// What the listener was called when it was passed to us, or [`OUR_LISTENER`].
    name: String,
    socket: PathBuf,
}

/// What comes in through a door.
#[derive(Debug)]
pub struct Opened {
    /// The door.
    pub door: Door,
    /// Where callers wait.
    pub listener: StreamListener,
    /// Callers of the program before this one, with nothing half said.
    pub connections: Vec<Stream>,
}

impl Door {
    /// Becomes the daemon of a state root, which is made if it is not there. What was passed to this process is used:
    /// a supervisor's socket, or what the program had that this one replaces.
    ///
    /// # Errors
    /// [`Kind::Busy`] with the pid of the daemon that is there already, else those of locking and binding.
    pub fn open(root: &Path, passed: Vec<Passed>) -> Result<Opened> {
        make_root(root)?;
        let (mut lock, mut listener, mut connections) = (None, None, Vec::new());
        for Passed { name, descriptor } in passed {
            match name.as_str() {
                OUR_LOCK => lock = Some(Lock::adopt(descriptor)?),
                CONNECTION => connections.push(Stream::adopt(descriptor)?),
                _ if listener.is_some() => {
                    let cause = format!("'{}' is a second one", name.escape_debug());
                    return Err(Error::new(Kind::Invalid, "take over the control socket", cause));
                }
                _ => listener = Some((StreamListener::adopt(descriptor)?, name)),
            }
        }
        let lock = match lock {
            Some(lock) => lock,
            None => take_lock(root)?,
        };
        lock.sign(&format!("{}\n", std::process::id()))?;
        let (listener, name) = match listener {
            Some(listener) => listener,
            // Whoever has the lock is alone: a socket that is there is a dead daemon's.
            None => (StreamListener::replace(open_path(root)?, SOCKET, MODE)?, OUR_LISTENER.to_owned()),
        };
        Ok(Opened { door: Self { lock, name, socket: root.join(SOCKET) }, listener, connections })
    }

    /// Whether what was passed to this process is from the daemon whose place it takes.
    #[must_use]
    pub fn was_passed(passed: &[Passed]) -> bool {
        passed.iter().any(|one| one.name == OUR_LOCK)
    }

    /// What the next program in this process needs to go on where this one stopped.
    pub fn pass<'a>(&'a self, listener: BorrowedFd<'a>, connections: &'a [Stream]) -> Vec<(&'a str, BorrowedFd<'a>)> {
        let mut passed = vec![(self.name.as_str(), listener), (OUR_LOCK, self.lock.as_fd())];
        passed.extend(connections.iter().map(|connection| (CONNECTION, connection.as_fd())));
        passed
    }

    /// Gives connections on which nothing is half said to the supervisor, which passes them to the next daemon. Where there
    /// is none, or it keeps nothing, they end with this process.
    ///
    /// # Errors
    /// Those of [`notify`].
    pub fn leave(connections: &[Stream]) -> Result<()> {
        for some in connections.chunks(AT_ONCE) {
            let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            notify(&format!("FDSTORE=1\nFDNAME={CONNECTION}"), &some)?;
        }
        Ok(())
    }

    /// Takes the socket away: nobody will listen. A supervisor's stays.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn close(self) -> Result<()> {
        if self.name == OUR_LISTENER {
            fs::remove_file(&self.socket).context(|| format!("remove {}", quote(&self.socket)))?;
        }
        Ok(())
    }
}

/// The state root, through which those who may call can reach the socket.
fn make_root(root: &Path) -> Result<()> {
    let operation = || format!("make {}", quote(root));
    DirBuilder::new().recursive(true).mode(0o711).create(root).context(operation)?;
    let found = fs::metadata(root).context(operation)?;
    let own = found.uid() == nix::unistd::geteuid().as_raw();
    if own && found.mode() & 0o011 != 0o011 {
        fs::set_permissions(root, Permissions::from_mode(found.mode() & 0o7777 | 0o011)).context(operation)?;
    }
    Ok(())
}

fn take_lock(root: &Path) -> Result<Lock> {
    let path = root.join(LOCK);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = Lock::try_take(&path, Sharing::Exclusive)? {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let cause = format!("process {} is the daemon of this root", holder.trim().escape_debug());
            return Err(Error::new(Kind::Busy, format!("serve {}", quote(root)), cause)
                .next("stop it first, or give another --root"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_daemon_and_a_socket_that_is_left_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("a/b");
        let first = Door::open(&root, Vec::new()).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o711);
        let error = Door::open(&root, Vec::new()).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains(&format!("process {} is", std::process::id())), "{error}");
        // As after a SIGKILL: the lock is free, the socket is there.
        drop(first);
        assert!(root.join(SOCKET).exists());
        Door::open(&root, Vec::new()).unwrap().door.close().unwrap();
        assert!(!root.join(SOCKET).exists());
    }

    #[test]
    fn what_is_passed_on_is_what_is_taken_over() {
        let base = tempfile::tempdir().unwrap();
        let opened = Door::open(base.path(), Vec::new()).unwrap();
        let (one, other) = Stream::pair().unwrap();
        let connections = [one];
        let own = |(name, descriptor): &(&str, BorrowedFd<'_>)| Passed {
            name: (*name).to_owned(),
            descriptor: descriptor.try_clone_to_owned().unwrap(),
        };
        let passed = opened.door.pass(opened.listener.as_fd(), &connections).iter().map(own).collect();
        let again = Door::open(base.path(), passed).unwrap();
        assert_eq!((again.connections.len(), again.door.name.as_str()), (1, OUR_LISTENER));
        let foreign = Passed { name: "regen.socket".into(), descriptor: other.as_fd().try_clone_to_owned().unwrap() };
        assert_eq!(Door::open(base.path(), vec![foreign]).unwrap_err().kind(), Kind::Invalid);
    }
}
