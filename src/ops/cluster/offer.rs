//! What other hosts are told of an instance here. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use semver::Version;

use crate::error::{Context, Result};
use crate::ids::Name;
use crate::node::{NodeName, Offer, member_key};
use crate::service::address::{Address, Listen};
use crate::service::roster::{Member, Snapshot};

impl Offer for Member {
    fn service(&self) -> &Name {
        &self.name
    }

    fn version(&self) -> &Version {
        &self.version
    }
}

/// Where another host reaches what listens at an address of this one, whose own is `node`; none if it cannot.
fn plan_address(address: &Address, node: Option<IpAddr>) -> Option<Address> {
    let place = |place: SocketAddr| {
        let (ip, any_family) = (place.ip(), place.is_ipv6());
        if ip.is_loopback() || matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback())) {
            return None;
        }
        if !ip.is_unspecified() {
            return Some(place);
        }
        // What listens on [::] takes connections over IPv4, too.
        let node = node.filter(|node| !node.is_loopback() && (any_family || node.is_ipv4()))?;
        Some(SocketAddr::new(node, place.port()))
    };
    match address {
        Address::Tcp(address) => place(*address).map(Address::Tcp),
        Address::Udp(address) => place(*address).map(Address::Udp),
        Address::Unix(..) | Address::Auto => None,
    }
}

/// An instance with those of its addresses that other hosts reach; none if there is none.
fn plan_member(member: &Member, node: Option<IpAddr>) -> Option<Member> {
    let reach = |listen: &Listen| {
        plan_address(&listen.address, node).map(|address| Listen { name: listen.name.clone(), address })
    };
    let listen: Vec<_> = member.listen.iter().filter_map(reach).collect();
    (!listen.is_empty()).then(|| Member { listen, ..member.clone() })
}

/// Every key that tells of who serves here, with its value.
///
/// # Errors
/// For what JSON cannot say.
pub(super) fn plan_members(
    now: &Snapshot,
    name: &NodeName,
    address: Option<SocketAddr>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let ip = address.map(|address| address.ip());
    let told = now.members().filter_map(|member| plan_member(member, ip));
    told.map(|member| {
        let value = serde_json::to_vec(&member).context(|| "write who serves")?;
        Ok((member_key(name, &member.name, &member.version), value))
    })
    .collect()
}

/// What is known of a key in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It has this value, and goes with our lease.
    Value(Vec<u8>),
    /// It is there, as another daemon left it.
    Left,
}

/// A key that has to be changed, and to what; none if it has to go.
pub(super) type Correction = (String, Option<Vec<u8>>);

/// What makes the registry say what is so.
pub(super) fn plan_corrections(told: &BTreeMap<String, Told>, wanted: &BTreeMap<String, Vec<u8>>) -> Vec<Correction> {
    let gone = told.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (key.clone(), None));
    let differs = |(key, value): &(&String, &Vec<u8>)| told.get(*key) != Some(&Told::Value((*value).clone()));
    let put = wanted.iter().filter(differs).map(|(key, value)| (key.clone(), Some(value.clone())));
    gone.chain(put).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(address: &str, node: &str) -> Option<String> {
        plan_address(&address.parse().unwrap(), Some(node.parse().unwrap())).map(|address| address.to_string())
    }

    #[test]
    fn only_what_other_hosts_reach_is_told_to_them() {
        let v4 = "10.0.0.1";
        assert_eq!(planned("tcp://10.0.0.9:80", v4).as_deref(), Some("tcp://10.0.0.9:80"));
        assert_eq!(planned("tcp://0.0.0.0:80", v4).as_deref(), Some("tcp://10.0.0.1:80"));
        assert_eq!(planned("udp://[::]:53", v4).as_deref(), Some("udp://10.0.0.1:53"));
        assert_eq!(planned("tcp://[::]:80", "fd00::1").as_deref(), Some("tcp://[fd00::1]:80"));
        for (address, node) in [
            ("tcp://127.0.0.1:80", v4),
            ("tcp://127.8.8.8:80", v4),
            ("tcp://[::1]:80", v4),
            ("tcp://[::ffff:127.0.0.1]:80", v4),
            ("unix:/run/x", v4),
            ("tcp://0.0.0.0:80", "fd00::1"),
            ("tcp://0.0.0.0:80", "127.0.0.1"),
        ] {
            assert_eq!(planned(address, node), None, "{address} of {node}");
        }
        assert_eq!(plan_address(&"tcp://0.0.0.0:80".parse().unwrap(), None), None);
    }

    #[test]
    fn what_is_corrected_is_what_differs() {
        let value = |text: &str| text.as_bytes().to_vec();
        let told = [
            ("a".to_owned(), Told::Value(value("1"))),
            ("b".to_owned(), Told::Value(value("1"))),
            ("c".to_owned(), Told::Left),
            ("d".to_owned(), Told::Left),
        ];
        let wanted = [("a", "1"), ("b", "2"), ("c", "1"), ("e", "1")].map(|(key, text)| (key.to_owned(), value(text)));
        let expected = [("d", None), ("b", Some("2")), ("c", Some("1")), ("e", Some("1"))];
        let expected = expected.map(|(key, text)| (key.to_owned(), text.map(value)));
        assert_eq!(plan_corrections(&told.into(), &wanted.into()), expected);
    }
}
