//! The file of a unix socket.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Socket;
use crate::error::{Context, Result};

/// `SIOCUNIXFILE` of linux/un.h.
const SIOCUNIXFILE: u32 = 0x89e0;

impl Socket {
    /// The file that a unix socket was bound to, as a handle without rights (`O_PATH`), whatever it is called by now and
    /// whether or not it still has a name; `None` if it was bound to none.
    ///
    /// # Errors
    /// Those of ioctl(SIOCUNIXFILE): EPERM without CAP_NET_ADMIN in the socket's network, EINVAL for what is no unix
    /// socket.
    pub fn file(&self) -> Result<Option<OwnedFd>> {
        let operation = || "ask for the file of a socket";
        // SAFETY: this request takes no argument and writes no memory.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCUNIXFILE.into(), 0) };
        match result {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                error => Err(error).context(operation),
            },
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            descriptor => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::{Address, Family, Transport};
    use super::*;

    #[test]
    fn a_socket_knows_its_file_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        let socket = Socket::new(Family::Unix, Transport::Stream).unwrap();
        assert!(socket.file().unwrap().is_none());
        socket.bind(&Address::Path(first.clone())).unwrap();
        std::fs::rename(&first, &second).unwrap();
        let file = socket.file().unwrap().unwrap();
        let status = rustix::fs::fstat(&file).unwrap();
        assert_eq!(status.st_ino, std::fs::metadata(&second).unwrap().ino());
    }
}
