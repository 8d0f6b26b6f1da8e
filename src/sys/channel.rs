//! Messages between processes: whole, in order, and with open files.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with, socketpair,
};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::fs::by_descriptor;

/// The longest message; longer ones are an error of the sender.
const LIMIT: usize = 16 << 10;
/// The most descriptors in one message.
const DESCRIPTORS: usize = 4;

/// One end of a connection that keeps messages apart (SOCK_SEQPACKET). It ends when the last copy of the other end is
/// closed, by whatever: the death of a process, the execution of a program.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What came in.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub bytes: Vec<u8>,
    /// The open files that came with it.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Two ends of one connection.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context(|| "make a pair of sockets")?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to a [`Listener`]. The directory may lie deeper than an address can say.
    ///
    /// # Errors
    /// Those of connect(2): [`Kind::NotFound`] if there is no such socket, ECONNREFUSED if nobody listens.
    pub fn connect(directory: impl AsFd, name: &str) -> Result<Self> {
        let operation = || format!("connect to socket '{name}'");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context(operation)?;
        connect(&socket, &address(&directory, name)?).context(operation)?;
        Ok(Self(socket))
    }

    /// Another name for this end in this process.
    ///
    /// # Errors
    /// Those of fcntl(F_DUPFD_CLOEXEC).
    pub fn duplicate(&self) -> Result<Self> {
        self.0.try_clone().map(Self).context(|| "duplicate a socket")
    }

    /// Sends a message. `Ok(false)` if nobody is left to read it.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Error::new(Kind::Invalid, "send a message", format!("{} descriptors", descriptors.len())));
        }
        loop {
            return match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE | Errno::CONNRESET) => Ok(false),
                Err(errno) => Err(errno).context(|| "send a message"),
            };
        }
    }

    /// Waits for the next message; `None` once the other end is closed.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn receive(&self) -> Result<Option<Received>> {
        let mut bytes = vec![0; LIMIT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                Err(errno) => return Err(errno).context(|| "receive a message"),
            }
        };
        if count == 0 {
            return Ok(None);
        }
        bytes.truncate(count);
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        Ok(Some(Received { bytes, descriptors: rights.flatten().collect() }))
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket with a name, to which others connect.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens under a name in a directory, where nothing may have that name yet.
    ///
    /// # Errors
    /// Those of bind(2) and listen(2).
    pub fn bind(directory: impl AsFd, name: &str) -> Result<Self> {
        let operation = || format!("listen on socket '{name}'");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context(operation)?;
        bind(&socket, &address(&directory, name)?).context(operation)?;
        listen(&socket, 1).context(operation)?;
        Ok(Self(socket))
    }

    /// Waits for somebody to connect.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn accept(&self) -> Result<Channel> {
        loop {
            return match accept_with(&self.0, SocketFlags::CLOEXEC) {
                Ok(socket) => Ok(Channel(socket)),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => Err(errno).context(|| "accept a connection"),
            };
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An address holds 107 bytes, and a path any number: the directory is named by its descriptor.
fn address(directory: impl AsFd, name: &str) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(by_descriptor(directory).join(name)).context(|| format!("name socket '{name}'"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;
    use crate::sys::fs::memory_file;

    #[test]
    fn messages_stay_apart_and_carry_open_files() {
        let (one, other) = Channel::pair().unwrap();
        let file = memory_file("test", b"content").unwrap();
        assert!(one.send(b"first", &[]).unwrap());
        assert!(one.send(b"second", &[file.as_fd(), file.as_fd()]).unwrap());
        drop(one);
        assert_eq!(other.receive().unwrap().unwrap().bytes, b"first");
        let mut second = other.receive().unwrap().unwrap();
        assert_eq!((second.bytes.as_slice(), second.descriptors.len()), (b"second".as_slice(), 2));
        let mut copy = std::fs::File::from(second.descriptors.remove(0));
        let mut text = String::new();
        copy.rewind().unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert!(other.receive().unwrap().is_none());
        assert!(!other.send(b"to nobody", &[]).unwrap());
    }

    #[test]
    fn a_listener_is_found_under_a_path_of_any_length() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let handle = crate::sys::fs::open_path(&deep).unwrap();
        let listener = Listener::bind(&handle, "s").unwrap();
        let caller = Channel::connect(&handle, "s").unwrap();
        let called = listener.accept().unwrap();
        caller.send(b"x", &[]).unwrap();
        assert_eq!(called.receive().unwrap().unwrap().bytes, b"x");
        drop((listener, called));
        assert!(Channel::connect(&handle, "s").is_err());
    }
}
