//! What a program says on its notify socket, as sd_notify(3) has it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::{Context, Result, quote};
use crate::sys::socket;

/// The longest message that is read; systemd's own limit.
const LONGEST: usize = 4096;
/// The most descriptors of one message (`SCM_MAX_FD`).
const DESCRIPTORS: usize = 253;
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

    /// What has been said since; nothing if there is no message. Descriptors that come along are closed, which tells
    /// whoever waits for that (sd_notify_barrier(3)); a connection among them keeps nobody waiting for its peer.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn hear(&self) -> Result<Option<Said>> {
        let mut message = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut message)];
        let length = match recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno).context(|| "read the notify socket"),
        };
        for received in control.drain() {
            let RecvAncillaryMessage::ScmRights(descriptors) = received else { continue };
            for socket in descriptors.map(socket::Socket::from) {
                // What is no socket waits for nobody.
                let _ = socket.close_at_once();
            }
        }
        Ok(Some(parse(message.get(..length).unwrap_or_default())))
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

    #[test]
    fn a_connection_that_is_sent_along_keeps_nobody_waiting() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};
        use std::io::{IoSlice, Write};
        use std::os::fd::AsFd;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = Socket::bind(&path).unwrap();
        // Its peer never reads, and whoever closes it waits for that.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut full = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        full.set_nonblocking(true).unwrap();
        while full.write(&[0; 1 << 16]).is_ok() {}
        sockopt::set_socket_linger(&full, Some(Duration::from_secs(3600))).unwrap();
        let program = UnixDatagram::unbound().unwrap();
        program.connect(&path).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let rights = [full.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
        sendmsg(&program, &[IoSlice::new(b"READY=1")], &mut control, SendFlags::empty()).unwrap();
        drop(full);
        let (sender, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(socket.hear().unwrap().unwrap().ready));
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
}
