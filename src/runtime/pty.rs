//! A container's terminal, held by us: the engine makes it inside and sends its other end over a socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Context, Result};
use crate::sys::tty::receive_descriptor;

/// The engine has sent it before it says that it is ready, so this is never waited for.
const LIMIT: Duration = Duration::from_secs(10);

/// The near end of a container's terminal.
#[derive(Debug)]
pub struct Pty(OwnedFd);

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket for the engine to send to.
#[derive(Debug)]
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens in a directory of ours. A socket's path may have 107 bytes, the directory's any number: it is bound
    /// under the short name that the directory's descriptor has, and the engine does likewise.
    pub(super) fn listen(directory: &Path) -> Result<Self> {
        let path = directory.join(format!("console-{}.sock", std::process::id()));
        let operation = || "listen for the container's terminal";
        let handle = rustix::fs::open(
            directory,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .context(operation)?;
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let short = crate::sys::fs::by_descriptor(&handle).join(name);
        let listener = UnixListener::bind(short).context(operation)?;
        Ok(Self { listener, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal, once the engine has said that the process is ready.
    pub(super) fn receive(self) -> Result<Pty> {
        receive_descriptor(&self.listener, LIMIT).map(Pty)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // At worst it stays until the container is deleted with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}
