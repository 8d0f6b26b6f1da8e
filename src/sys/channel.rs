//! Messages between processes: whole, in order, and with open files.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    recvmsg, sendmsg, socket_with, socketpair, sockopt,
};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::fs::by_descriptor;

/// The longest message in bytes; longer ones are an error of the sender.
pub const LIMIT: usize = 256 << 10;
/// The most descriptors in one message.
pub const DESCRIPTORS: usize = 64;
/// How many may wait to be let in: one that is stuck for a while has work when it goes on, and nobody is kept by it.
const WAITING: i32 = 128;
/// How long to wait to be let in, and for room in the other end's buffer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What any sender's buffer holds without being asked for more (the kernel's own default is 208 KiB).
const ORDINARY: usize = 64 << 10;

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

/// What there is to receive now.
#[derive(Debug)]
pub enum Now {
    /// A message.
    Message(Received),
    /// Nothing yet.
    Nothing,
    /// Nothing any more: the other end is closed.
    End,
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
    /// Those of connect(2): [`Kind::NotFound`] if there is no such socket, ECONNREFUSED if nobody listens; [`Kind::Busy`] if
    /// those who connected before wait too.
    pub fn connect(directory: impl AsFd, name: &str) -> Result<Self> {
        Self::connect_within(directory, name, PATIENCE)
    }

    /// As [`Channel::connect`], for who waits longer, or less long, to be let in.
    ///
    /// # Errors
    /// As [`Channel::connect`].
    pub fn connect_within(directory: impl AsFd, name: &str, patience: Duration) -> Result<Self> {
        let operation = || format!("connect to socket '{name}'");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context(operation)?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(patience)).context(operation)?;
        let begun = Instant::now();
        loop {
            match connect(&socket, &address(&directory, name)?) {
                // The kernel begins anew, and so does the time.
                Err(Errno::INTR) if begun.elapsed() < patience => {}
                Err(Errno::AGAIN | Errno::INTR) => {
                    let cause = format!("it does not answer: nobody was let in for {} s", patience.as_secs());
                    return Err(Error::new(Kind::Busy, operation(), cause));
                }
                other => {
                    // Messages are not to be given up in the middle.
                    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE)).context(operation)?;
                    return other.map(|()| Self(socket)).context(operation);
                }
            }
        }
    }

    /// Waits for something to receive, or the end; `false` if the time is over before. Without a limit it waits for ever.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&self, limit: Option<Duration>) -> Result<bool> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], left.as_ref()) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| "wait for a message"),
            }
        }
    }

    /// Another name for this end in this process.
    ///
    /// # Errors
    /// Those of fcntl(F_DUPFD_CLOEXEC).
    pub fn duplicate(&self) -> Result<Self> {
        self.0.try_clone().map(Self).context(|| "duplicate a socket")
    }

    /// Sends a message of 1 to [`LIMIT`] bytes with at most [`DESCRIPTORS`] open files. `Ok(false)` if nobody is left to
    /// read it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for one that is too large; else those of sendmsg(2).
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<bool> {
        if bytes.len() > LIMIT {
            return Err(Error::new(Kind::Invalid, "send a message", format!("{} bytes, at most {LIMIT}", bytes.len())));
        }
        if bytes.len() > ORDINARY {
            self.widen();
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = descriptors.len() <= DESCRIPTORS
            && (descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        if !fits {
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

    /// Whether the other end is open.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn is_open(&self) -> Result<bool> {
        // No event but those that are always told.
        let mut sources = [PollFd::new(&self.0, PollFlags::empty())];
        loop {
            match poll(&mut sources, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(count) => return Ok(count == 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| "look at a socket"),
            }
        }
    }

    /// Makes room for the longest message: the kernel refuses one that is larger than the sender's buffer.
    fn widen(&self) {
        // Only root may have more than the system's limit; without it, a message that does not fit fails by itself.
        let _ = sockopt::set_socket_send_buffer_size_force(&self.0, LIMIT)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&self.0, LIMIT));
    }

    /// Waits for the next message; `None` once the other end is closed.
    ///
    /// # Errors
    /// Those of recvmsg(2); [`Kind::Invalid`] for a message over [`LIMIT`], which stays unread, and
    /// [`Kind::State`] if not all open files of a message could be taken: there are too many, or too many of ours.
    pub fn receive(&self) -> Result<Option<Received>> {
        let operation = || "receive a message";
        // Its length first, so that a word costs no more memory than it has.
        let length = match self.take(&mut [], RecvFlags::PEEK | RecvFlags::TRUNC)? {
            Some((0, ..)) | None => return Ok(None),
            Some((length, ..)) => length,
        };
        if length > LIMIT {
            return Err(Error::new(Kind::Invalid, operation(), format!("{length} bytes, at most {LIMIT}")));
        }
        let mut bytes = vec![0; length];
        let Some((count, flags, descriptors)) = self.take(&mut bytes, RecvFlags::CMSG_CLOEXEC)? else {
            return Ok(None);
        };
        if flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::new(Kind::State, operation(), "some of its open files did not arrive")
                .next("raise the limit of open files"));
        }
        bytes.truncate(count);
        Ok(Some(Received { bytes, descriptors }))
    }

    /// As [`Self::receive`], without waiting and in one call, for whoever hears many: `room` is kept by the caller, and has
    /// to hold [`LIMIT`] bytes.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_now(&self, room: &mut [u8]) -> Result<Now> {
        let operation = || "receive a message";
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(room)], &mut control, flags) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Now::Nothing),
                Err(Errno::CONNRESET) => return Ok(Now::End),
                Err(errno) => return Err(errno).context(operation),
            }
        };
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let descriptors: Vec<OwnedFd> = rights.flatten().collect();
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(Error::new(Kind::Invalid, operation(), format!("more than {LIMIT} bytes")));
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::new(Kind::State, operation(), "some of its open files did not arrive")
                .next("raise the limit of open files"));
        }
        match message.bytes {
            0 => Ok(Now::End),
            count => Ok(Now::Message(Received { bytes: room[..count].to_vec(), descriptors })),
        }
    }

    /// As [`Self::send`], without waiting: `Ok(false)` also if the other side has not read what it was sent before.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_now(&self, bytes: &[u8]) -> Result<bool> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if bytes.len() > ORDINARY {
            self.widen();
        }
        loop {
            return match rustix::net::send(&self.0, bytes, flags) {
                Ok(_) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::PIPE | Errno::CONNRESET | Errno::AGAIN) => Ok(false),
                Err(errno) => Err(errno).context(|| "send a message"),
            };
        }
    }

    /// The user that the other end was made by, as our user namespace numbers them.
    ///
    /// # Errors
    /// Those of getsockopt(SO_PEERCRED).
    pub fn peer_user(&self) -> Result<u32> {
        sockopt::socket_peercred(&self.0).map(|peer| peer.uid.as_raw()).context(|| "ask who a caller is")
    }

    /// What recvmsg(2) gives: length, flags, open files.
    fn take(&self, bytes: &mut [u8], flags: RecvFlags) -> Result<Option<(usize, ReturnFlags, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        // Without room for open files, looking ahead makes no copies of them.
        let room = if flags.contains(RecvFlags::PEEK) { 0 } else { space.len() };
        let mut control = RecvAncillaryBuffer::new(&mut space[..room]);
        let message = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                Err(errno) => return Err(errno).context(|| "receive a message"),
            }
        };
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        Ok(Some((message.bytes, message.flags, rights.flatten().collect())))
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
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
        listen(&socket, WAITING).context(operation)?;
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

    /// Lets [`Self::accept_now`] never wait.
    ///
    /// # Errors
    /// Those of fcntl(F_SETFL).
    pub fn never_wait(&self) -> Result<()> {
        let operation = || "let no connection wait";
        let flags = rustix::fs::fcntl_getfl(&self.0).context(operation)?;
        rustix::fs::fcntl_setfl(&self.0, flags | rustix::fs::OFlags::NONBLOCK).context(operation)
    }

    /// Whoever wants to connect now; `None` if there is nobody. [`Self::never_wait`] goes before.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn accept_now(&self) -> Result<Option<Channel>> {
        loop {
            return match accept_with(&self.0, SocketFlags::CLOEXEC) {
                Ok(socket) => Ok(Some(Channel(socket))),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::AGAIN) => Ok(None),
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
    fn an_end_knows_whether_the_other_is_open_also_while_messages_wait() {
        let (one, other) = Channel::pair().unwrap();
        other.send(b"x", &[]).unwrap();
        assert!(one.is_open().unwrap());
        drop(other);
        assert!(!one.is_open().unwrap());
        assert_eq!(one.receive().unwrap().unwrap().bytes, b"x");
    }

    #[test]
    fn the_largest_message_arrives_whole_and_a_larger_one_is_refused() {
        let (one, other) = Channel::pair().unwrap();
        let file = memory_file("test", b"content").unwrap();
        let message: Vec<u8> = (0..LIMIT).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let files = vec![file.as_fd(); DESCRIPTORS];
        assert!(one.send(&message, &files).unwrap());
        let received = other.receive().unwrap().unwrap();
        assert!(received.bytes == message, "{} bytes", received.bytes.len());
        assert_eq!(received.descriptors.len(), DESCRIPTORS);
        assert!(one.send(b"x", &[]).unwrap());
        assert_eq!(other.receive().unwrap().unwrap().bytes.capacity(), 1);
        assert_eq!(one.send(&[0; LIMIT + 1], &[]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(one.send(b"x", &[file.as_fd(); DESCRIPTORS + 1]).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn what_is_not_there_yet_is_not_waited_for() {
        let (one, other) = Channel::pair().unwrap();
        let mut room = vec![0; LIMIT];
        assert!(matches!(other.receive_now(&mut room).unwrap(), Now::Nothing));
        let file = memory_file("test", b"content").unwrap();
        one.send(b"first", &[file.as_fd()]).unwrap();
        let Now::Message(received) = other.receive_now(&mut room).unwrap() else { panic!() };
        assert_eq!((received.bytes.as_slice(), received.descriptors.len()), (&b"first"[..], 1));
        assert_eq!(one.peer_user().unwrap(), nix::unistd::geteuid().as_raw());
        let mut sent = 0;
        while one.send_now(&[7; 1000]).unwrap() {
            sent += 1;
            assert!(sent < 10_000, "nobody reads, and it never says so");
        }
        drop(other);
        assert!(!one.send_now(b"x").unwrap());
        let (one, other) = Channel::pair().unwrap();
        drop(one);
        assert!(matches!(other.receive_now(&mut room).unwrap(), Now::End));
    }

    #[test]
    fn open_files_that_did_not_arrive_are_an_error() {
        let (one, other) = Channel::pair().unwrap();
        let file = memory_file("test", b"content").unwrap();
        let files = [file.as_fd(); DESCRIPTORS + 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS + 8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&one, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(other.receive().unwrap_err().kind(), Kind::State);
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
