//! Bytes of a pair of sockets, encrypted over TCP. Whoever has the other end of the pair needs to know nothing of that.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt;
use rustls::Connection;

use super::certificate::node_of;
use super::wording::{CLOSED, Cause};
use crate::control::wire::wait;
use crate::error::{Context, Result};
use crate::ids::NodeName;
use crate::sys::stream::{Read, Sent, Stream};

/// Bytes that go at once: a record of TLS.
const CHUNK: usize = 16 << 10;
/// How long the last bytes may take on their way out.
const FAREWELL: Duration = Duration::from_secs(2);
/// A connection on which nothing was heard for so long is asked whether it still lives, …
const KEEPALIVE: Duration = Duration::from_secs(10);
/// … every so long, so many times.
const KEEPALIVE_EACH: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMES: u32 = 3;
/// What is sent and not confirmed for so long ends a connection (`TCP_USER_TIMEOUT`).
const UNCONFIRMED_MS: u32 = 20_000;

/// One end of an encrypted connection.
#[derive(Debug)]
pub(super) struct Tunnel {
    tcp: TcpStream,
    tls: Connection,
}

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shaken {
    /// The other end is good.
    Done,
    /// Something has to happen on the socket.
    Waits(PollFlags),
}

/// What came of looking for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    Something,
    Nothing,
    End,
}

impl Tunnel {
    /// Over a connection, before anything was said on it.
    ///
    /// # Errors
    /// Those of setting its options.
    pub(super) fn new(tcp: TcpStream, tls: impl Into<Connection>) -> Result<Self> {
        let prepare = || {
            tcp.set_nonblocking(true)?;
            tcp.set_nodelay(true)?;
            sockopt::set_socket_keepalive(&tcp, true)?;
            sockopt::set_tcp_keepidle(&tcp, KEEPALIVE)?;
            sockopt::set_tcp_keepintvl(&tcp, KEEPALIVE_EACH)?;
            sockopt::set_tcp_keepcnt(&tcp, KEEPALIVE_TIMES)?;
            sockopt::set_tcp_user_timeout(&tcp, UNCONFIRMED_MS)?;
            Ok::<_, io::Error>(())
        };
        prepare().context(|| "prepare a connection between nodes")?;
        let mut tls = tls.into();
        // What is taken from the pair is bounded: nothing more while something has still to go.
        tls.set_buffer_limit(None);
        Ok(Self { tcp, tls })
    }

    /// The connection to wait on.
    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Goes on with the handshake, as far as that goes without waiting.
    pub(super) fn shake(&mut self) -> std::result::Result<Shaken, Cause> {
        loop {
            self.flush().map_err(Cause::from)?;
            if !self.tls.is_handshaking() {
                return Ok(Shaken::Done);
            }
            match self.fill()? {
                Filled::Something => {}
                Filled::End => return Err(Cause::passing(CLOSED)),
                Filled::Nothing => return Ok(Shaken::Waits(self.wants(PollFlags::IN))),
            }
        }
    }

    /// The whole handshake.
    pub(super) fn shake_until(&mut self, until: Instant) -> std::result::Result<(), Cause> {
        loop {
            match self.shake()? {
                Shaken::Done => return Ok(()),
                Shaken::Waits(flags) => self.wait(flags, until)?,
            }
        }
    }

    /// Who is at the other end, once hands are shaken.
    pub(super) fn peer(&self) -> std::result::Result<NodeName, Cause> {
        let certificate = self.tls.peer_certificates().and_then(|chain| chain.first());
        let Some(certificate) = certificate else { return Err(Cause::lasting("it has sent no certificate")) };
        node_of(certificate).map_err(|cause| Cause::lasting(format!("of its certificate: {cause}")))
    }

    /// Sends one message and takes the next that comes, each with its NUL.
    pub(super) fn exchange(
        &mut self,
        message: &[u8],
        max: usize,
        until: Instant,
    ) -> std::result::Result<Vec<u8>, Cause> {
        self.tls.writer().write_all(message).map_err(Cause::from)?;
        let mut answer = Vec::new();
        loop {
            self.flush().map_err(Cause::from)?;
            let filled = self.fill()?;
            self.drain(&mut answer);
            if answer.ends_with(&[0]) {
                return Ok(answer);
            }
            if answer.len() > max {
                return Err(Cause::lasting(format!("its first answer has more than {max} bytes")));
            }
            match filled {
                Filled::Something => {}
                Filled::End => return Err(Cause::passing(CLOSED)),
                Filled::Nothing => self.wait(self.wants(PollFlags::IN), until)?,
            }
        }
    }

    /// Carries bytes both ways, until one of the ends is closed. What is wrong with the connection is not told: it ends.
    pub(super) fn carry(mut self, inner: &Stream) {
        let mut inbound = Vec::new();
        let mut ended: Option<Instant> = None;
        loop {
            self.drain(&mut inbound);
            give(inner, &mut inbound);
            if self.flush().is_err() {
                break;
            }
            let outgoing = self.tls.wants_write();
            let mut flags = if inbound.is_empty() { PollFlags::IN } else { PollFlags::empty() };
            flags = self.wants(flags);
            let mut pair = if outgoing { PollFlags::empty() } else { PollFlags::IN };
            pair.set(PollFlags::OUT, !inbound.is_empty());
            let mut sources = vec![PollFd::new(&self.tcp, flags)];
            // Its end would be told again and again while the last bytes are on their way.
            if ended.is_none() || !outgoing {
                sources.push(PollFd::new(inner, pair));
            }
            let limit = ended.map(|until| until.saturating_duration_since(Instant::now()));
            if !wait(&mut sources, limit).unwrap_or(false) {
                break;
            }
            let told = sources[0].revents();
            let theirs = sources.get(1).map_or(PollFlags::empty(), PollFd::revents);
            if flags.contains(PollFlags::IN) {
                if !told.is_empty() && !matches!(self.fill(), Ok(Filled::Something | Filled::Nothing)) {
                    self.drain(&mut inbound);
                    give(inner, &mut inbound);
                    break;
                }
            } else if told.intersects(PollFlags::HUP | PollFlags::ERR) {
                break;
            }
            if !outgoing && !theirs.is_empty() && !self.take(inner) {
                break;
            }
            if theirs.contains(PollFlags::HUP) {
                ended.get_or_insert_with(|| Instant::now() + FAREWELL);
            }
        }
        self.part();
    }

    /// Takes bytes from the pair; `false` if nothing will come any more.
    fn take(&mut self, inner: &Stream) -> bool {
        let mut chunk = [0; CHUNK];
        match inner.read(&mut chunk) {
            Ok(Read::Bytes(count)) => self.tls.writer().write_all(&chunk[..count]).is_ok(),
            Ok(Read::Nothing) => true,
            Ok(Read::End) | Err(_) => false,
        }
    }

    /// Says that nothing more will come, and sees to it that the other end reads that.
    fn part(mut self) {
        let until = Instant::now() + FAREWELL;
        self.tls.send_close_notify();
        while self.flush().is_ok() && self.tls.wants_write() {
            if self.wait(PollFlags::OUT, until).is_err() {
                return;
            }
        }
        // What was not read when a socket is closed makes it forget what was sent.
        let _ = self.tcp.shutdown(Shutdown::Write);
        let mut chunk = [0; CHUNK];
        while self.wait(PollFlags::IN, until).is_ok() {
            match self.tcp.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn wants(&self, mut flags: PollFlags) -> PollFlags {
        flags.set(PollFlags::OUT, self.tls.wants_write());
        flags
    }

    fn wait(&self, flags: PollFlags, until: Instant) -> std::result::Result<(), Cause> {
        let left = until.saturating_duration_since(Instant::now());
        match wait(&mut [PollFd::new(&self.tcp, flags)], Some(left)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Cause::passing("it does not answer")),
            Err(error) => Err(Cause::passing(error.to_string())),
        }
    }

    /// Sends what is ready, as far as there is room.
    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.tcp) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there. Where it is not good, the other end is told.
    fn fill(&mut self) -> std::result::Result<Filled, Cause> {
        match self.tls.read_tls(&mut self.tcp) {
            Ok(0) => return Ok(Filled::End),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(Filled::Nothing);
            }
            Err(error) => return Err(error.into()),
        }
        match self.tls.process_new_packets() {
            Ok(state) if state.peer_has_closed() => Ok(Filled::End),
            Ok(_) => Ok(Filled::Something),
            Err(error) => {
                // An alert; who does not read it is not told.
                let _ = self.flush();
                Err(Cause::from(&error))
            }
        }
    }

    /// Adds what was decrypted.
    fn drain(&mut self, into: &mut Vec<u8>) {
        let mut chunk = [0; CHUNK];
        while let Ok(count @ 1..) = self.tls.reader().read(&mut chunk) {
            into.extend_from_slice(&chunk[..count]);
        }
    }
}

/// Gives bytes to the pair, as far as there is room. Where nobody is left to read them they are dropped: what was said to
/// them before that, such as why not, is still to be carried.
fn give(inner: &Stream, inbound: &mut Vec<u8>) {
    while !inbound.is_empty() {
        match inner.send(inbound, &[]) {
            Ok(Sent::Bytes(count)) => drop(inbound.drain(..count)),
            Ok(Sent::Full) => return,
            Ok(Sent::Gone) | Err(_) => inbound.clear(),
        }
    }
}
