//! Connections of bytes between processes of this machine (unix(7), SOCK_STREAM), with open files beside the bytes.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::fs::{CWD, Mode, OFlags, chmodat, fcntl_getfl, fcntl_setfl, renameat, unlinkat};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recv, recvmsg, sendmsg,
    socket_with, socketpair,
};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::fs::{TEMPORARY_PREFIX, by_descriptor};

/// The most descriptors that go with one send.
pub const DESCRIPTORS: usize = 64;
/// How many may wait to be accepted; the kernel takes it down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A socket with a name, to which others connect. It never blocks.
#[derive(Debug)]
pub struct StreamListener(OwnedFd);

/// What came of looking for a new connection.
#[derive(Debug)]
pub enum Accepted {
    /// One.
    Connection(Stream),
    /// There is none.
    Nobody,
    /// There is one, and no descriptor or memory for it: it waits on.
    NoRoom,
}

impl StreamListener {
    /// Listens under a name in a directory, with this mode, in place of whatever socket has that name: nobody finds it
    /// absent meanwhile, or half made.
    ///
    /// # Errors
    /// Those of bind(2), listen(2), chmod(2) and rename(2).
    pub fn replace(directory: impl AsFd, name: &str, mode: u32) -> Result<Self> {
        let operation = || format!("listen on socket '{name}'");
        let temporary = format!("{TEMPORARY_PREFIX}{name}");
        match unlinkat(&directory, &temporary, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).context(operation),
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(operation)?;
        bind(&socket, &address(&directory, &temporary)?).context(operation)?;
        // Before it listens: until then nobody can connect, whatever the mode is.
        chmodat(
            CWD,
            by_descriptor(&directory).join(&temporary),
            Mode::from_raw_mode(mode),
            rustix::fs::AtFlags::empty(),
        )
        .context(operation)?;
        listen(&socket, BACKLOG).context(operation)?;
        renameat(&directory, &temporary, &directory, name).context(operation)?;
        Ok(Self(socket))
    }

    /// Takes over a socket that somebody else has bound.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no listening stream socket of this machine.
    pub fn adopt(socket: OwnedFd) -> Result<Self> {
        let operation = || "take over a listening socket";
        let fits = socket_domain(&socket).context(operation)? == AddressFamily::UNIX
            && socket_type(&socket).context(operation)? == SocketType::STREAM
            && socket_acceptconn(&socket).context(operation)?;
        if !fits {
            return Err(Error::new(Kind::Invalid, operation(), "it is no unix stream socket that listens"));
        }
        let flags = fcntl_getfl(&socket).context(operation)?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK).context(operation)?;
        Ok(Self(socket))
    }

    /// The next connection that waits, without waiting for one.
    ///
    /// # Errors
    /// Those of accept4(2) that say something of the listener itself.
    pub fn accept(&self) -> Result<Accepted> {
        loop {
            return match accept_with(&self.0, SocketFlags::CLOEXEC) {
                Ok(socket) => Ok(Accepted::Connection(Stream(socket))),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::AGAIN) => Ok(Accepted::Nobody),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Ok(Accepted::NoRoom),
                Err(errno) => Err(errno).context(|| "accept a connection"),
            };
        }
    }
}

impl AsFd for StreamListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end of a connection of bytes.
#[derive(Debug)]
pub struct Stream(OwnedFd);

/// Who is at the other end, as the kernel noted when they connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub uid: u32,
    /// Their groups, the effective one first.
    pub groups: Vec<u32>,
    /// The process, 0 if it is none of this pid namespace; another one may have the connection by now.
    pub pid: i32,
}

/// What became of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// So many bytes went, and with the first of them the descriptors.
    Bytes(usize),
    /// The other end has to read first.
    Full,
    /// Nobody is left to read.
    Gone,
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes came.
    Bytes(usize),
    /// Nothing is there yet.
    Nothing,
    /// Nothing will come any more.
    End,
}

impl Stream {
    /// Two ends of one connection.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context(|| "make a pair of sockets")?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to a [`StreamListener`]. The directory may lie deeper than an address can say.
    ///
    /// # Errors
    /// Those of connect(2): [`Kind::NotFound`] if there is no such socket, ECONNREFUSED if nobody listens.
    pub fn connect(directory: impl AsFd, name: &str) -> Result<Self> {
        let operation = || format!("connect to socket '{name}'");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).context(operation)?;
        connect(&socket, &address(&directory, name)?).context(operation)?;
        Ok(Self(socket))
    }

    /// Takes over a connection that another program of ours had.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no connected stream socket of this machine.
    pub fn adopt(socket: OwnedFd) -> Result<Self> {
        let operation = || "take over a connection";
        let fits = socket_domain(&socket).context(operation)? == AddressFamily::UNIX
            && socket_type(&socket).context(operation)? == SocketType::STREAM
            && !socket_acceptconn(&socket).context(operation)?;
        if fits { Ok(Self(socket)) } else { Err(Error::new(Kind::Invalid, operation(), "it is no unix stream socket")) }
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn credentials(&self) -> Result<Credentials> {
        let operation = || "ask who is at the other end of a connection";
        let peer = getsockopt(&self.0, PeerCredentials).context(operation)?;
        let mut groups = vec![peer.gid()];
        groups.extend(supplementary_groups(self.0.as_fd()).context(operation)?);
        Ok(Credentials { uid: peer.uid(), groups, pid: peer.pid() })
    }

    /// Reads what is there, without waiting. Descriptors that come along are closed by the kernel and never get here.
    ///
    /// # Errors
    /// Those of recv(2).
    pub fn read(&self, buffer: &mut [u8]) -> Result<Read> {
        loop {
            return match recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => Ok(Read::End),
                Ok((count, _)) => Ok(Read::Bytes(count)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(Read::Nothing),
                Err(errno) => Err(errno).context(|| "read from a connection"),
            };
        }
    }

    /// Waits for bytes, and takes the descriptors that come with them: they were sent with the first byte of the last
    /// send that `buffer` then holds a part of. No bytes are the end.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn receive(&self, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => break 0,
                Err(errno) => return Err(errno).context(|| "receive from a connection"),
            }
        };
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        Ok((count, rights.flatten().collect()))
    }

    /// Sends as many of these bytes as there is room for, without waiting; the descriptors go with the first.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for more than [`DESCRIPTORS`] of them, else those of sendmsg(2).
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<Sent> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Error::new(Kind::Invalid, "send a message", format!("{} descriptors", descriptors.len())));
        }
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            return match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(count) => Ok(Sent::Bytes(count)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(Sent::Full),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(Sent::Gone),
                Err(errno) => Err(errno).context(|| "send to a connection"),
            };
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `SO_PEERGROUPS` (since Linux 4.13), which neither rustix nor nix has.
fn supplementary_groups(socket: BorrowedFd<'_>) -> std::io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let room = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(room).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the descriptor is borrowed for the call; the kernel writes at most `length` bytes into the vector, which
        // has as many, and any bits make a u32; `length` is an integer of ours that it writes the needed length to.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ERANGE) if count > groups.len() => groups.resize(count, 0),
            // A pair that was made by one process has no peer with groups.
            Some(libc::ENODATA) => return Ok(Vec::new()),
            _ => return Err(error),
        }
    }
}

/// An address holds 107 bytes, and a path any number: the directory is named by its descriptor.
fn address(directory: impl AsFd, name: &str) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(by_descriptor(directory).join(name)).context(|| format!("name socket '{name}'"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::fs::{memory_file, open_path};

    #[test]
    fn a_listener_takes_the_place_of_one_that_nobody_holds_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let handle = open_path(&deep).unwrap();
        drop(StreamListener::replace(&handle, "s", 0o600).unwrap());
        let refused = Stream::connect(&handle, "s").unwrap_err();
        assert_eq!(refused.errno(), Some(libc::ECONNREFUSED));
        let listener = StreamListener::replace(&handle, "s", 0o640).unwrap();
        assert_eq!(std::fs::metadata(deep.join("s")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(matches!(listener.accept().unwrap(), Accepted::Nobody));
        let caller = Stream::connect(&handle, "s").unwrap();
        let Accepted::Connection(called) = listener.accept().unwrap() else { panic!("nobody came") };
        assert_eq!(caller.send(b"x", &[]).unwrap(), Sent::Bytes(1));
        assert_eq!(called.read(&mut [0; 8]).unwrap(), Read::Bytes(1));
        assert_eq!(called.read(&mut [0; 8]).unwrap(), Read::Nothing);
        let who = called.credentials().unwrap();
        assert_eq!(who.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(who.pid, i32::try_from(std::process::id()).unwrap());
        let mut groups: Vec<u32> = nix::unistd::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        groups.insert(0, nix::unistd::getegid().as_raw());
        assert_eq!(who.groups, groups);
        drop(called);
        assert_eq!(caller.send(b"x", &[]).unwrap(), Sent::Gone);
        assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 1);
    }

    #[test]
    fn descriptors_come_with_the_bytes_they_were_sent_with_or_not_at_all() {
        let (one, other) = Stream::pair().unwrap();
        let file = memory_file("test", b"content").unwrap();
        assert_eq!(one.send(b"abc", &[file.as_fd(), file.as_fd()]).unwrap(), Sent::Bytes(3));
        let (count, descriptors) = other.receive(&mut [0; 8]).unwrap();
        assert_eq!((count, descriptors.len()), (3, 2));
        // What is not asked for is closed: nobody is left to write to this pipe.
        let (reader, writer) = std::io::pipe().unwrap();
        one.send(b"abc", &[writer.as_fd()]).unwrap();
        drop(writer);
        assert_eq!(other.read(&mut [0; 8]).unwrap(), Read::Bytes(3));
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
        drop(one);
        assert_eq!(other.read(&mut [0; 8]).unwrap(), Read::End);
    }

    #[test]
    fn what_is_no_listener_is_not_taken_for_one() {
        let (one, other) = Stream::pair().unwrap();
        assert_eq!(StreamListener::adopt(one.0).unwrap_err().kind(), Kind::Invalid);
        Stream::adopt(other.0).unwrap();
    }
}
