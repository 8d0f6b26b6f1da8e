//! What becomes of a bind(2) or listen(2) of a program that knows nothing of its services: decided without I/O.
//!
//! ```text
//!                        the program shares its network      it has one of its own
//! tcp       bind         Take: bound by us, port shared      Await: it binds in its network
//!           listen       Take                                Replace: by a socket of the host's
//! mptcp     bind         Replace: no port of it is shared    Await
//!           listen       Continue                            Replace
//! udp       bind         Take                                Replace
//! unix      bind         Await: the file is the container's; a listener of the host's comes later
//!           listen       Replace
//! unix-dgram bind        Replace
//! ```
//!
//! All this is for declared addresses. Everything else is the kernel's: port 0, other families, sockets without a name,
//! addresses that are malformed. A fixed port that nobody declared is the kernel's too, and told of, because the next
//! instance will find it taken.

use std::net::{IpAddr, SocketAddr};

use crate::service::address::{Address, Listen, UnixKind};

/// Which of the two calls is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// bind(2)
    Bind,
    /// listen(2), on a socket that is bound: the address is the kernel's own word.
    Listen,
}

/// Whose network a program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// That of other instances: the host's, or one that was joined.
    Shared,
    /// One of its own.
    Private,
}

/// What a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// TCP over several paths (`IPPROTO_MPTCP`), which Go takes by default.
    MultipathTcp,
    /// UDP
    Udp,
    /// A unix socket.
    Unix(UnixKind),
    /// Anything else: netlink, packets, raw IP, vsock.
    Other,
}

/// Which versions of IP a socket takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// That of its address.
    One,
    /// Both: of version 6 without `IPV6_V6ONLY`.
    Both,
}

/// Where a program wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// An address and a port, as given: version 4 may be mapped into version 6.
    Internet(SocketAddr),
    /// The file that this declared address names, by index.
    Declared(usize),
    /// Anything that no service could have declared, or that the kernel will refuse.
    Elsewhere,
}

/// A socket that this instance has already at a declared address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it is bound.
    pub address: SocketAddr,
    /// Of which versions.
    pub versions: Versions,
    /// What its program allowed.
    pub reuse: Reuse,
    /// Whether it listens.
    pub listens: bool,
}

/// What a program allowed for its socket, before we allowed more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reuse {
    /// `SO_REUSEPORT`
    pub port: bool,
    /// `SO_REUSEADDR`
    pub address: bool,
}

/// A call, and all that matters of who makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which call.
    pub call: Call,
    /// Whose network the program has.
    pub network: Network,
    /// What its socket speaks.
    pub protocol: Protocol,
    /// Where it wants to be.
    pub wanted: Wanted,
    /// Of which versions.
    pub versions: Versions,
    /// What it allows.
    pub reuse: Reuse,
    /// Ports below this one are not for this program.
    pub forbidden_below: u16,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel does what it would have done.
    Continue,
    /// The same, and the operator should know this.
    ContinueWithNote(String),
    /// The same, and the socket is looked at again when it listens.
    Await,
    /// The program's own socket is bound or listens, by us, and its port can be shared.
    Take(Match),
    /// The program gets a socket of the host's in place of its own.
    Replace(Match),
    /// The call fails with this.
    Refuse(Refusal),
}

/// Why a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// EADDRINUSE: the program has that address already, as it would find without us.
    InUse,
    /// EACCES: a privileged port, and the program has no right to one.
    Forbidden,
}

/// What a socket is to the service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// The declared addresses that it serves, by index; none if it serves but a part of one.
    pub listen: Vec<usize>,
    /// What the operator should know.
    pub note: Option<String>,
}

/// How much of a declared address a socket serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coverage {
    /// All of it, as far as the program wants to be reached.
    Served,
    /// It is in the way of it: the same port of the other version of IP.
    Touched,
    /// Nothing.
    None,
}

/// Decides. `declared` are the service's addresses, `held` the sockets that the instance has at them already.
#[must_use]
pub fn decide(request: &Request, declared: &[Listen], held: &[Held]) -> Verdict {
    match (request.wanted, request.protocol) {
        (Wanted::Elsewhere, _)
        | (Wanted::Declared(_), Protocol::Tcp | Protocol::MultipathTcp | Protocol::Udp | Protocol::Other)
        | (Wanted::Internet(_), Protocol::Unix(_) | Protocol::Other) => Verdict::Continue,
        (Wanted::Declared(index), Protocol::Unix(kind)) => decide_file(request.call, index, kind, declared),
        (Wanted::Internet(address), protocol @ (Protocol::Tcp | Protocol::MultipathTcp | Protocol::Udp)) => {
            decide_port(request, address, protocol, declared, held)
        }
    }
}

fn decide_file(call: Call, index: usize, kind: UnixKind, declared: &[Listen]) -> Verdict {
    let Some(Address::Unix(declared_kind, path)) = declared.get(index).map(|listen| &listen.address) else {
        return Verdict::Continue;
    };
    let matching = Match { listen: vec![index], note: None };
    match (call, kind) {
        _ if kind != *declared_kind => {
            let (is, was) = (Address::Unix(kind, path.clone()), &declared[index].address);
            Verdict::ContinueWithNote(format!("it binds {is}, and {was} was declared"))
        }
        (Call::Bind, UnixKind::Datagram) => Verdict::Replace(matching),
        // A datagram socket cannot listen: the kernel says so.
        (Call::Listen, UnixKind::Datagram) => Verdict::Continue,
        (Call::Bind, UnixKind::Stream | UnixKind::Seqpacket) => Verdict::Await,
        (Call::Listen, UnixKind::Stream | UnixKind::Seqpacket) => Verdict::Replace(matching),
    }
}

fn decide_port(
    request: &Request,
    address: SocketAddr,
    protocol: Protocol,
    declared: &[Listen],
    held: &[Held],
) -> Verdict {
    if address.port() == 0 {
        return Verdict::Continue;
    }
    let found = |wanted| {
        let cover = |(_, listen): &(usize, &Listen)| cover(request, address, &listen.address) == wanted;
        declared.iter().enumerate().filter(cover).map(|(index, _)| index).collect::<Vec<_>>()
    };
    let (served, touched) = (found(Coverage::Served), found(Coverage::Touched));
    let alone = match request.network {
        Network::Shared => touched.is_empty(),
        // There it is in nobody's way.
        Network::Private => true,
    };
    if served.is_empty() && alone {
        return undeclared(request, address, protocol);
    }
    let note = served.is_empty().then(|| {
        let (what, of) = (shown(protocol, address), &declared[touched[0]].address);
        format!("it binds {what} where {of} was declared: it is handed over, and is no part of what must listen")
    });
    let matching = Match { listen: served, note };
    let act = |verdict: fn(Match) -> Verdict| match refusal(request, address, held) {
        Some(refusal) if request.call == Call::Bind => Verdict::Refuse(refusal),
        Some(_) | None => verdict(matching.clone()),
    };
    match (request.network, protocol, request.call) {
        (Network::Shared, Protocol::Tcp, Call::Bind | Call::Listen) | (Network::Shared, Protocol::Udp, Call::Bind) => {
            act(Verdict::Take)
        }
        (Network::Shared, Protocol::MultipathTcp, Call::Bind) | (Network::Private, Protocol::Udp, Call::Bind) => {
            act(Verdict::Replace)
        }
        (Network::Private, Protocol::Tcp | Protocol::MultipathTcp, Call::Bind) => Verdict::Await,
        (Network::Private, Protocol::Tcp | Protocol::MultipathTcp, Call::Listen) => Verdict::Replace(matching),
        (Network::Shared, Protocol::MultipathTcp, Call::Listen)
        | (Network::Shared | Network::Private, Protocol::Udp, Call::Listen)
        | (Network::Shared | Network::Private, Protocol::Unix(_) | Protocol::Other, Call::Bind | Call::Listen) => {
            Verdict::Continue
        }
    }
}

fn undeclared(request: &Request, address: SocketAddr, protocol: Protocol) -> Verdict {
    match (request.call, request.network) {
        (Call::Bind, Network::Shared) => Verdict::ContinueWithNote(format!(
            "it binds {}, which was not declared: another instance beside this one cannot",
            shown(protocol, address)
        )),
        (Call::Bind, Network::Private) => Verdict::ContinueWithNote(format!(
            "it binds {} in its own network, which was not declared: nobody outside reaches it",
            shown(protocol, address)
        )),
        (Call::Listen, Network::Shared | Network::Private) => Verdict::Continue,
    }
}

/// How much of a declared address a socket at `address` serves. The same port is a must; a wildcard on either side
/// stands for every address of its version.
fn cover(request: &Request, address: SocketAddr, declared: &Address) -> Coverage {
    let (declared, same) = match declared {
        Address::Tcp(declared) => (declared, matches!(request.protocol, Protocol::Tcp | Protocol::MultipathTcp)),
        Address::Udp(declared) => (declared, request.protocol == Protocol::Udp),
        Address::Unix(..) | Address::Auto => return Coverage::None,
    };
    if !same || declared.port() != address.port() {
        return Coverage::None;
    }
    let (is, was) = (address.ip().to_canonical(), declared.ip().to_canonical());
    let wild = is.is_unspecified() || was.is_unspecified();
    match (is, was) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) if is == was || wild => Coverage::Served,
        (IpAddr::V6(_), IpAddr::V4(_)) if is.is_unspecified() && request.versions == Versions::Both => Coverage::Served,
        (IpAddr::V6(_), IpAddr::V4(_)) | (IpAddr::V4(_), IpAddr::V6(_)) if wild => Coverage::Touched,
        (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => Coverage::None,
    }
}

/// What the kernel would say to this program, had we not made ports shared and bound for it.
fn refusal(request: &Request, address: SocketAddr, held: &[Held]) -> Option<Refusal> {
    if address.port() < request.forbidden_below {
        return Some(Refusal::Forbidden);
    }
    let in_the_way = |held: &&Held| {
        let both_share = held.reuse.port && request.reuse.port;
        let both_reuse = held.reuse.address && request.reuse.address && !held.listens;
        let transport = |protocol| protocol == Protocol::Udp;
        transport(held.protocol) == transport(request.protocol)
            && overlap((address, request.versions), (held.address, held.versions))
            && !both_share
            && !both_reuse
    };
    held.iter().find(in_the_way).map(|_| Refusal::InUse)
}

/// Whether two sockets of one port would take the same connections.
fn overlap(one: (SocketAddr, Versions), other: (SocketAddr, Versions)) -> bool {
    let takes_version_4 = |(address, versions): (SocketAddr, Versions)| match address.ip().to_canonical() {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => ip.is_unspecified() && versions == Versions::Both,
    };
    let (a, b) = (one.0.ip().to_canonical(), other.0.ip().to_canonical());
    let wild = a.is_unspecified() || b.is_unspecified();
    one.0.port() == other.0.port()
        && match (a, b) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => a == b || wild,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                takes_version_4(one) && takes_version_4(other)
            }
        }
}

fn shown(protocol: Protocol, address: SocketAddr) -> String {
    match protocol {
        Protocol::Udp => Address::Udp(address).to_string(),
        Protocol::Tcp | Protocol::MultipathTcp | Protocol::Unix(_) | Protocol::Other => {
            Address::Tcp(address).to_string()
        }
    }
}

#[cfg(test)]
mod tests;
