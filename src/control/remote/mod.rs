//! The same interfaces, from node to node: over TCP, encrypted, both ends known by their certificates (TLS 1.3, mutual).
//!
//! ```text
//!  caller                                      called
//!  Dialer ─ Client ─ pair ─ Tunnel ══ TCP ══ Tunnel ─ pair ─ Entrance: a connection like any other
//!                                               ▲
//!                              Gate: accepts, shakes hands, bounded in number and time
//! ```
//!
//! Nobody reads a byte of a message before the certificate of who sends it was found good: handshakes are done by one
//! thread that knows of nothing else. A node is who its certificate says, in its one DNS name (RFC 5280, 4.2.1.6), and whoever
//! has one of the same authority is a node. What nodes may call is said by the interfaces ([`super::Reach`]); open files do
//! not go with an answer.
//!
//! Sessions are not resumed: what was found good once would be good for the life of a ticket, whatever the certificate says
//! by then.

mod certificate;
mod dialer;
mod gate;
mod tunnel;
mod wording;

use std::net::SocketAddr;

pub use certificate::{AUTHORITY, CERTIFICATE, Certificates, KEY};
pub use dialer::{Dialer, Line, Timeouts};
pub use gate::{Bounds, Gate, bind};

use crate::error::{Error, Kind, Result};

/// Reads `HOST:PORT`, at which a node is reached by the others: in numbers, because names would mean something else tomorrow
/// or elsewhere, and of one address, because they are told it.
///
/// # Errors
/// [`Kind::Invalid`]
pub fn parse_address(text: &str) -> Result<SocketAddr> {
    let refuse = |cause: &str| {
        let shown: String = text.chars().take(100).collect();
        Err(Error::new(Kind::Invalid, format!("read the node's address '{}'", shown.escape_debug()), cause)
            .next("give an address of this host and a port in numbers: 10.0.0.1:7700 or [fd00::1]:7700"))
    };
    match text.parse::<SocketAddr>() {
        Err(_) => refuse("it is no address and port"),
        Ok(address) if address.ip().is_unspecified() => refuse("other nodes cannot connect to all addresses"),
        Ok(address) => Ok(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reached_at_one_address_in_numbers() {
        for good in ["10.0.0.1:7700", "127.0.0.1:0", "[fd00::1]:7700"] {
            assert_eq!(parse_address(good).unwrap().to_string(), good);
        }
        for bad in ["", "10.0.0.1", "localhost:7700", "0.0.0.0:7700", "[::]:1", "10.0.0.1:70000", "tcp://10.0.0.1:1"] {
            assert!(parse_address(bad).is_err(), "{bad} was taken");
        }
    }
}
