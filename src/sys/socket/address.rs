//! The addresses that sockets are bound to.

use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::net::addr::SocketAddrArg;
use rustix::net::{SocketAddrAny, SocketAddrUnix};

use crate::error::{Context, Error, Kind, Result, quote};

/// The longest path that a unix address holds, in bytes (unix(7): 108 with the terminating NUL).
pub const PATH_LIMIT: usize = 107;

/// An address of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP or UDP.
    Internet(SocketAddr),
    /// A unix socket that is a file.
    Path(PathBuf),
    /// A unix socket without a file: bytes after a leading NUL, which is not among them.
    Abstract(Vec<u8>),
    /// A unix socket that was not bound.
    Unnamed,
}

/// `127.0.0.1:80`, `[::1]:80`, `'/run/x'`, `@name`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet(address) => address.fmt(f),
            Self::Path(path) => f.write_str(&quote(path)),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Self::Unnamed => f.write_str("no address"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Internet(address)
    }
}

impl Address {
    /// As the kernel gave it; `None` for a family that has no services here.
    pub(super) fn from_kernel(address: SocketAddrAny) -> Option<Self> {
        if let Ok(address) = SocketAddr::try_from(address.clone()) {
            return Some(Self::Internet(address));
        }
        let address = SocketAddrUnix::try_from(address).ok()?;
        Some(match (address.abstract_name(), address.path()) {
            // The library tells no address from an empty name, which nobody uses.
            (Some([]), _) => Self::Unnamed,
            (Some(name), _) => Self::Abstract(name.to_vec()),
            (None, Some(path)) => Self::Path(PathBuf::from(OsStr::from_bytes(path.to_bytes()))),
            (None, None) => Self::Unnamed,
        })
    }

    /// Calls with the address as the kernel takes it.
    pub(super) fn apply(
        &self,
        operation: impl Fn() -> String,
        call: impl FnOnce(&SocketAddrAny) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let address = match self {
            Self::Internet(address) => address.as_any(),
            Self::Path(path) if path.as_os_str().len() > PATH_LIMIT => {
                let cause =
                    format!("the path has {} bytes, a socket's has at most {PATH_LIMIT}", path.as_os_str().len());
                return Err(Error::new(Kind::Invalid, operation(), cause).next("choose a shorter path"));
            }
            Self::Path(path) => SocketAddrUnix::new(path).context(&operation)?.as_any(),
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name).context(&operation)?.as_any(),
            Self::Unnamed => SocketAddrUnix::new_unnamed().as_any(),
        };
        call(&address).context(operation)
    }
}
