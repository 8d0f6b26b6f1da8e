//! The address that a program hands to bind(2): bytes of a process that may lie, of a length that may be anything.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::sys::socket::Family;

/// The most bytes of an address that the kernel takes: `sizeof(struct sockaddr_storage)`.
pub(super) const LIMIT: usize = 128;

/// What the bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// An address and a port.
    Internet(SocketAddr),
    /// A path, as given: not empty, perhaps relative.
    Path(PathBuf),
    /// An address that no service could declare (abstract, unnamed, another family), or none at all: the kernel knows
    /// what to do with it.
    Other,
}

// Of linux/socket.h, for every processor.
const AF_UNSPEC: u16 = 0;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// How many bytes of memory to read for an address whose length the program gave; `None` for a length that the kernel
/// refuses (it is an `int`, and the upper half of the register counts for nothing).
pub(super) fn readable(length: u64) -> Option<usize> {
    let length = usize::try_from(i32::try_from(length & 0xffff_ffff).ok()?).ok()?;
    (2..=LIMIT).contains(&length).then_some(length)
}

/// Reads `bytes`, as many as the program gave, for a socket of this family: as bind(2) of that family does.
pub(super) fn parse(family: Family, bytes: &[u8]) -> Target {
    let Some((said, rest)) = bytes.split_first_chunk::<2>() else { return Target::Other };
    let said = u16::from_ne_bytes(*said);
    let target = match family {
        Family::V4 => parse_version_4(said, rest),
        Family::V6 => parse_version_6(said, rest),
        Family::Unix => parse_path(said, rest),
    };
    target.unwrap_or(Target::Other)
}

/// `struct sockaddr_in`: port, address, and eight bytes of nothing that must be there. Old programs leave the family
/// out for the wildcard, which Linux takes.
fn parse_version_4(said: u16, rest: &[u8]) -> Option<Target> {
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (ip, padding) = rest.split_first_chunk::<4>()?;
    let ip = Ipv4Addr::from(*ip);
    let understood = said == AF_INET || (said == AF_UNSPEC && ip.is_unspecified());
    let address = SocketAddrV4::new(ip, u16::from_be_bytes(*port));
    (understood && padding.len() >= 8).then_some(Target::Internet(address.into()))
}

/// `struct sockaddr_in6`: port, flow, address, and a scope that may be missing (RFC 2133).
fn parse_version_6(said: u16, rest: &[u8]) -> Option<Target> {
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (flow, rest) = rest.split_first_chunk::<4>()?;
    let (ip, rest) = rest.split_first_chunk::<16>()?;
    let scope = rest.first_chunk::<4>().map_or(0, |scope| u32::from_ne_bytes(*scope));
    let address = SocketAddrV6::new(Ipv6Addr::from(*ip), u16::from_be_bytes(*port), u32::from_be_bytes(*flow), scope);
    (said == AF_INET6).then_some(Target::Internet(address.into()))
}

/// `struct sockaddr_un`: a path that ends with the length or with a NUL. One that begins with NUL is abstract, an empty
/// one asks for a name.
fn parse_path(said: u16, rest: &[u8]) -> Option<Target> {
    let path = rest.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())?;
    // 108 bytes of path, and the family.
    let fits = rest.len() <= 108;
    (said == AF_UNIX && fits).then(|| Target::Path(PathBuf::from(OsStr::from_bytes(path))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version_4(family: u16, port: u16, ip: [u8; 4]) -> Vec<u8> {
        [&family.to_ne_bytes()[..], &port.to_be_bytes(), &ip, &[0; 8]].concat()
    }

    fn version_6(port: u16, ip: Ipv6Addr, scope: u32) -> Vec<u8> {
        let family = AF_INET6.to_ne_bytes();
        [&family[..], &port.to_be_bytes(), &[0; 4], &ip.octets(), &scope.to_ne_bytes()].concat()
    }

    fn unix(path: &[u8]) -> Vec<u8> {
        [&AF_UNIX.to_ne_bytes()[..], path].concat()
    }

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let read = parse(Family::V4, &version_4(AF_INET, 80, [127, 0, 0, 1]));
        assert_eq!(read, Target::Internet("127.0.0.1:80".parse().unwrap()));
        let read = parse(Family::V6, &version_6(80, Ipv6Addr::LOCALHOST, 0));
        assert_eq!(read, Target::Internet("[::1]:80".parse().unwrap()));
        let read = parse(Family::V6, &version_6(80, "fe80::1".parse().unwrap(), 3));
        assert_eq!(read, Target::Internet("[fe80::1%3]:80".parse().unwrap()));
        for path in [&b"/run/x\0"[..], b"/run/x", b"/run/x\0and more"] {
            assert_eq!(parse(Family::Unix, &unix(path)), Target::Path("/run/x".into()));
        }
        assert_eq!(parse(Family::Unix, &unix(b"x")), Target::Path("x".into()));
    }

    #[test]
    fn old_programs_may_leave_the_family_of_the_wildcard_out() {
        let read = parse(Family::V4, &version_4(AF_UNSPEC, 80, [0; 4]));
        assert_eq!(read, Target::Internet("0.0.0.0:80".parse().unwrap()));
        assert_eq!(parse(Family::V4, &version_4(AF_UNSPEC, 80, [127, 0, 0, 1])), Target::Other);
    }

    #[test]
    fn old_addresses_of_version_6_lack_a_scope() {
        let short = &version_6(80, Ipv6Addr::LOCALHOST, 9)[..24];
        assert_eq!(parse(Family::V6, short), Target::Internet("[::1]:80".parse().unwrap()));
        assert_eq!(parse(Family::V6, &short[..23]), Target::Other);
    }

    #[test]
    fn what_the_kernel_refuses_or_nobody_declares_is_left_to_it() {
        for (family, bytes) in [
            (Family::V4, version_4(AF_INET6, 80, [0; 4])),
            (Family::V4, version_4(AF_INET, 80, [0; 4])[..15].to_vec()),
            (Family::V6, version_4(AF_INET, 80, [0; 4])),
            (Family::Unix, unix(b"")),
            (Family::Unix, unix(b"\0abstract")),
            (Family::Unix, unix(&[b'x'; 109])),
            (Family::Unix, vec![1]),
            (Family::V4, vec![]),
        ] {
            assert_eq!(parse(family, &bytes), Target::Other, "{family:?} {bytes:?}");
        }
    }

    #[test]
    fn lengths_that_the_kernel_refuses_are_not_read() {
        for length in [0, 1, 129, u64::from(u32::MAX), 0x8000_0000, u64::MAX] {
            assert_eq!(readable(length), None, "{length}");
        }
        assert_eq!(readable(16), Some(16));
        assert_eq!(readable(128), Some(128));
        assert_eq!(readable(0xdead_beef_0000_0010), Some(16), "the kernel looks at an int");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..=LIMIT)) {
            for family in [Family::V4, Family::V6, Family::Unix] {
                if let Target::Path(path) = parse(family, &bytes) {
                    let path = path.as_os_str().as_bytes();
                    prop_assert!(!path.is_empty() && !path.contains(&0) && path.len() <= 108);
                }
            }
        }
    }
}
