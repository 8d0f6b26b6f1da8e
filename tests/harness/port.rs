//! Ports that stay free until a test's program binds them.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the kernel gives to outgoing connections, of which tests make thousands.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// A port that nobody has at an address, and that no other test of this process was given.
pub fn free_port(ip: &str) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ip: IpAddr = ip.parse().unwrap();
    // Processes begin at different places.
    let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT)).unwrap();
    (0..COUNT)
        .map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .find(|port| TcpListener::bind((ip, *port)).is_ok() && UdpSocket::bind((ip, *port)).is_ok())
        .expect("no port is free")
}
