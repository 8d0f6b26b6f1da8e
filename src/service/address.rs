//! What clients connect to: `tcp://HOST:PORT`, `udp://HOST:PORT`, `unix:/PATH`, `auto`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ids::Name;

/// The longest path of a socket: `sun_path` without its NUL (unix(7)).
const PATH_MAX: usize = 107;

/// An address that a service is reached at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A TCP port, on one address of this machine or on all.
    Tcp(SocketAddr),
    /// A UDP port.
    Udp(SocketAddr),
    /// A socket in the file system.
    Unix(UnixKind, PathBuf),
    /// A free TCP port of 127.0.0.1, chosen when the first instance starts.
    Auto,
}

/// How a unix socket keeps what is sent apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnixKind {
    /// Connections of bytes (`unix:`).
    Stream,
    /// Connections of messages (`unix-seqpacket:`).
    Seqpacket,
    /// Messages without a connection (`unix-dgram:`).
    Datagram,
}

impl UnixKind {
    const ALL: [Self; 3] = [Self::Stream, Self::Seqpacket, Self::Datagram];

    fn scheme(self) -> &'static str {
        match self {
            Self::Stream => "unix:",
            Self::Seqpacket => "unix-seqpacket:",
            Self::Datagram => "unix-dgram:",
        }
    }
}

impl Address {
    /// Where a client on this machine connects to: the loopback address, for what listens on all.
    #[must_use]
    pub fn reachable(&self) -> Self {
        let loopback = |address: &SocketAddr| match address {
            SocketAddr::V4(place) if place.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, place.port()).into(),
            SocketAddr::V6(place) if place.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, place.port()).into(),
            SocketAddr::V4(_) | SocketAddr::V6(_) => *address,
        };
        match self {
            Self::Tcp(address) => Self::Tcp(loopback(address)),
            Self::Udp(address) => Self::Udp(loopback(address)),
            Self::Unix(..) | Self::Auto => self.clone(),
        }
    }
}

impl Address {
    /// Whether sockets of two instances at these addresses would get in each other's way.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let covers =
            |one: IpAddr, other: IpAddr| one == other || one.is_unspecified() && one.is_ipv4() == other.is_ipv4();
        let meet = |one: IpAddr, other: IpAddr| covers(one, other) || covers(other, one);
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) | (Self::Udp(one), Self::Udp(other)) => {
                one.port() == other.port() && meet(one.ip(), other.ip())
            }
            (Self::Unix(_, one), Self::Unix(_, other)) => one == other,
            (Self::Tcp(_) | Self::Udp(_) | Self::Unix(..) | Self::Auto, _) => false,
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(place) = text.strip_prefix("tcp://") {
            return parse_place(text, place).map(Self::Tcp);
        }
        if let Some(place) = text.strip_prefix("udp://") {
            return parse_place(text, place).map(Self::Udp);
        }
        for kind in UnixKind::ALL {
            if let Some(path) = text.strip_prefix(kind.scheme()) {
                return parse_path(text, path).map(|path| Self::Unix(kind, path));
            }
        }
        Err(refuse(text, "it has no known scheme")
            .next("give tcp://HOST:PORT, udp://HOST:PORT, unix:/PATH, unix-seqpacket:/PATH, unix-dgram:/PATH or auto"))
    }
}

/// `HOST:PORT`, with an address in numbers: names would mean something else tomorrow.
fn parse_place(text: &str, place: &str) -> Result<SocketAddr> {
    let address = match place.strip_prefix("localhost:") {
        Some(port) => port.parse().ok().map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => place.parse::<SocketAddr>().ok(),
    };
    let address = address.ok_or_else(|| {
        refuse(text, "it is no address and port")
            .next("give numbers: tcp://0.0.0.0:80, tcp://[::]:80, tcp://localhost:80")
    })?;
    if address.port() == 0 {
        return Err(refuse(text, "port 0 is none").next("give a port, or 'auto' for a free one"));
    }
    Ok(address)
}

fn parse_path(text: &str, path: &str) -> Result<PathBuf> {
    if !path.starts_with('/') {
        return Err(refuse(text, "the path is not absolute").next("begin it with '/'"));
    }
    if path.len() > PATH_MAX {
        let cause = format!("the path has {} bytes, a socket's has at most {PATH_MAX}", path.len());
        return Err(refuse(text, &cause).next("choose a shorter one"));
    }
    if path.contains('\0') || path.ends_with('/') {
        return Err(refuse(text, "the path names no file"));
    }
    Ok(Path::new(path).to_owned())
}

fn refuse(text: &str, cause: &str) -> Error {
    let shown: String = text.chars().take(150).collect();
    Error::new(Kind::Invalid, format!("read address '{}'", shown.escape_debug()), cause)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Unix(kind, path) => write!(f, "{}{}", kind.scheme(), path.display()),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

/// An address with the name that programs find its socket under (LISTEN_FDNAMES).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// The service's own name if none was given.
    pub name: Name,
    /// Where.
    pub address: Address,
}

impl Listen {
    /// Reads `ADDR` or `NAME=ADDR`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for what is neither.
    pub fn parse(text: &str, service: &Name) -> Result<Self> {
        match text.split_once('=') {
            Some((name, address)) if !name.contains([':', '/']) => {
                Ok(Self { name: name.parse()?, address: address.parse()? })
            }
            _ => Ok(Self { name: service.clone(), address: text.parse()? }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in [
            "tcp://127.0.0.1:80",
            "tcp://[::]:8080",
            "udp://0.0.0.0:53",
            "unix:/run/x.sock",
            "unix-dgram:/run/log",
            "unix-seqpacket:/run/s",
            "auto",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("tcp://localhost:1".parse::<Address>().unwrap().to_string(), "tcp://127.0.0.1:1");
    }

    #[test]
    fn clients_of_what_listens_on_all_addresses_are_sent_to_this_machine() {
        for (address, reachable) in [
            ("tcp://0.0.0.0:80", "tcp://127.0.0.1:80"),
            ("udp://[::]:53", "udp://[::1]:53"),
            ("tcp://10.0.0.1:80", "tcp://10.0.0.1:80"),
            ("unix:/run/x", "unix:/run/x"),
        ] {
            assert_eq!(address.parse::<Address>().unwrap().reachable().to_string(), reachable);
        }
    }

    #[test]
    fn what_nobody_could_listen_on_is_refused() {
        let long = format!("unix:/{}", "x".repeat(PATH_MAX));
        for text in
            ["", "80", "tcp://80", "tcp://host:80", "tcp://1.2.3.4:0", "tcp://::1:80", "unix:x", "unix:/d/", &long]
        {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_socket_has_the_services_name_unless_it_has_its_own() {
        let service: Name = "web".parse().unwrap();
        assert_eq!(Listen::parse("auto", &service).unwrap().name.as_str(), "web");
        let named = Listen::parse("admin=unix:/run/a=b", &service).unwrap();
        assert_eq!((named.name.as_str(), named.address.to_string().as_str()), ("admin", "unix:/run/a=b"));
        assert_eq!(Listen::parse("unix:/run/a=b", &service).unwrap().name.as_str(), "web");
    }

    #[test]
    fn addresses_that_would_get_in_each_others_way_are_known() {
        let overlap = |one: &str, other: &str| {
            let (one, other): (Address, Address) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.overlaps(&other), other.overlaps(&one));
            one.overlaps(&other)
        };
        assert!(overlap("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"));
        assert!(overlap("tcp://0.0.0.0:80", "tcp://127.0.0.1:80"));
        assert!(overlap("udp://[::]:80", "udp://[::1]:80"));
        assert!(overlap("unix:/run/x", "unix-dgram:/run/x"));
        assert!(!overlap("tcp://127.0.0.1:80", "tcp://127.0.0.2:80"));
        assert!(!overlap("tcp://0.0.0.0:80", "tcp://[::1]:80"));
        assert!(!overlap("tcp://0.0.0.0:80", "udp://0.0.0.0:80"));
        assert!(!overlap("tcp://0.0.0.0:80", "tcp://0.0.0.0:81"));
        assert!(!overlap("auto", "auto"));
    }
}
