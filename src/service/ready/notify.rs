//! What a program says on its notify socket, as sd_notify(3) has it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Result, quote};

/// The longest message that is read; systemd's own limit.
const LONGEST: usize = 4096;
/// The longest status, in characters.
const LONGEST_STATUS: usize = 300;

/// What one message says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// `READY=1`
    pub ready: bool,
    /// `STATUS=`
    pub status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=`: how long from now on it may take.
    pub extend: Option<Duration>,
}

/// Reads one message. What is unknown or malformed says nothing.
#[must_use]
pub fn parse(message: &[u8]) -> Said {
    let mut said = Said::default();
    for line in message.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        match line.split_once('=') {
            Some(("READY", "1")) => said.ready = true,
            Some(("STATUS", text)) => {
                let shown = text.chars().filter(|c| !c.is_control()).take(LONGEST_STATUS).collect();
                said.status = Some(shown);
            }
            Some(("EXTEND_TIMEOUT_USEC", text)) => said.extend = text.parse().ok().map(Duration::from_micros),
            Some(_) | None => {}
        }
    }
    said
}

/// The socket on which the program is heard.
#[derive(Debug)]
pub struct Socket(UnixDatagram);

impl Socket {
    /// Makes it under this path, where nothing may be yet. Whoever finds it may write to it: programs run as any user,
    /// and only theirs finds it.
    ///
    /// # Errors
    /// Those of bind(2) and chmod(2).
    pub fn bind(path: &Path) -> Result<Self> {
        let operation = || format!("make notify socket {}", quote(path));
        let socket = UnixDatagram::bind(path).context(operation)?;
        socket.set_nonblocking(true).context(operation)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).context(operation)?;
        Ok(Self(socket))
    }

    /// What has been said since; nothing if there is no message. Descriptors that come along are closed.
    ///
    /// # Errors
    /// Those of recv(2).
    pub fn hear(&self) -> Result<Option<Said>> {
        let mut message = [0; LONGEST];
        match self.0.recv(&mut message) {
            Ok(length) => Ok(Some(parse(&message[..length]))),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context(|| "read the notify socket"),
        }
    }
}

impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_its_lines_say() {
        let said = parse(b"STATUS=warming \x1bup\nREADY=1\nMAINPID=7\nEXTEND_TIMEOUT_USEC=1500000");
        let extend = Some(Duration::from_millis(1500));
        assert_eq!(said, Said { ready: true, status: Some("warming up".to_owned()), extend });
        for nothing in [b"".as_slice(), b"READY=0", b"ready=1", b"\xff=\n\n=", b"EXTEND_TIMEOUT_USEC=soon"] {
            assert_eq!(parse(nothing), Said::default(), "{nothing:?}");
        }
    }

    #[test]
    fn the_socket_hears_in_order_and_never_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(socket.hear().unwrap(), None);
        let program = UnixDatagram::unbound().unwrap();
        program.send_to(b"STATUS=a", &path).unwrap();
        program.send_to(b"READY=1", &path).unwrap();
        assert_eq!(socket.hear().unwrap().unwrap().status.as_deref(), Some("a"));
        assert!(socket.hear().unwrap().unwrap().ready);
        assert_eq!(socket.hear().unwrap(), None);
    }
}
