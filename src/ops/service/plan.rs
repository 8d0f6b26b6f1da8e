//! What is decided before anything is done: names of instances, what an upgrade changes, whose addresses are whose.

use std::net::IpAddr;

use semver::Version;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::Key;
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::service::address::Address;
use crate::service::definition::{Definition, Handover, Readiness, Restart, Source};
use crate::sys::signal::Signal;

/// The longest id of a container.
const ID_MAX: usize = 200;
/// The longest version: it is part of ids.
const VERSION_MAX: usize = 100;

/// What a new version is, where it differs from the one that it takes the place of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upgrade {
    /// What its instances are made from.
    pub source: Option<Source>,
    /// The ring of its containers.
    pub ring: Option<String>,
    /// The command.
    pub command: Vec<String>,
    /// `NAME=VALUE`: added, or in place of those with the same names.
    pub env: Vec<String>,
    /// The working directory inside.
    pub workdir: Option<String>,
    /// The user inside.
    pub user: Option<String>,
    /// How its sockets reach an instance.
    pub handover: Option<Handover>,
    /// When an instance is ready.
    pub ready: Option<Readiness>,
    /// How long it may take until then, in milliseconds.
    pub ready_timeout_ms: Option<u64>,
    /// How long an old instance may take to end its connections, in milliseconds.
    pub drain_timeout_ms: Option<u64>,
    /// What tells an instance to end.
    pub stop_signal: Option<SignalName>,
    /// What to do when an instance ends by itself.
    pub restart: Option<Restart>,
}

/// A signal, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignalName(pub Signal);

impl TryFrom<String> for SignalName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse().map(Self)
    }
}

impl From<SignalName> for String {
    fn from(signal: SignalName) -> Self {
        signal.0.to_string().trim_start_matches("signal ").to_owned()
    }
}

/// Whether an older version may take the place of a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Downgrade {
    /// If it is meant.
    Allowed,
    /// Not by accident.
    Refused,
}

impl Upgrade {
    /// The new version, on the addresses of the old one.
    ///
    /// # Errors
    /// [`Kind::Usage`] for what contradicts itself, for an older version, or if nothing says what to run.
    pub(super) fn apply(self, old: &Definition, to: Version, downgrade: Downgrade) -> Result<Definition> {
        let operation = || format!("upgrade service '{old}' to {to}");
        let older = to.cmp_precedence(&old.version).is_lt();
        if older && downgrade == Downgrade::Refused {
            let cause = format!("{to} is older than {}", old.version);
            return Err(Error::new(Kind::Usage, operation(), cause).next("give --allow-downgrade if that is meant"));
        }
        let mut env = old.env.clone();
        let name_of = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
        let given: Vec<_> = self.env.iter().filter_map(|entry| name_of(entry)).collect();
        env.retain(|entry| name_of(entry).is_none_or(|name| !given.contains(&name)));
        env.extend(self.env);
        let milliseconds = |given: Option<u64>, kept| given.map_or(kept, std::time::Duration::from_millis);
        let new = Definition {
            name: old.name.clone(),
            version: to.clone(),
            listen: old.listen.clone(),
            source: self.source.or_else(|| old.source.clone()),
            ring: self.ring.or_else(|| old.ring.clone()),
            command: if self.command.is_empty() { old.command.clone() } else { self.command },
            env,
            workdir: self.workdir.or_else(|| old.workdir.clone()),
            user: self.user.or_else(|| old.user.clone()),
            handover: self.handover.unwrap_or(old.handover),
            ready: self.ready.unwrap_or_else(|| old.ready.clone()),
            ready_timeout: milliseconds(self.ready_timeout_ms, old.ready_timeout),
            drain_timeout: milliseconds(self.drain_timeout_ms, old.drain_timeout),
            stop_signal: self.stop_signal.map_or(old.stop_signal, |signal| signal.0),
            restart: self.restart.unwrap_or(old.restart),
        };
        if new.source.is_none() {
            let cause = "the running program was adopted, and nothing says what the new one is made from";
            return Err(Error::new(Kind::Usage, operation(), cause)
                .next("give --rootfs DIR, --image IMAGE or --bundle DIR, and a command after '--'"));
        }
        check(&new)?;
        Ok(new)
    }
}

/// Checks what a service is to be.
///
/// # Errors
/// As [`Definition::check`]; [`Kind::Invalid`] for a version that is too long.
pub(super) fn check(definition: &Definition) -> Result<()> {
    let length = definition.version.to_string().len();
    if length > VERSION_MAX {
        let cause = format!("its version has {length} characters, at most {VERSION_MAX} are possible");
        return Err(Error::new(Kind::Invalid, format!("define service '{}'", definition.name), cause));
    }
    definition.check()
}

/// The id of an instance: `NAME-VERSION-GENERATION`. Of a long name only the beginning, and a digest of the whole.
pub(super) fn instance_id(key: &Key, generation: u64) -> Result<ContainerId> {
    let (name, end) = (key.name.as_str(), format!("-{}-{generation}", key.version));
    if name.len() + end.len() <= ID_MAX {
        return format!("{name}{end}").parse();
    }
    let digest: String = Sha256::digest(name).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    // Names are ASCII.
    let kept = ID_MAX.saturating_sub(end.len() + digest.len() + 1);
    format!("{}-{digest}{end}", &name[..kept.min(name.len())]).parse()
}

/// Whether sockets of two services at these addresses would get in each other's way.
pub(super) fn overlap(one: &Address, other: &Address) -> bool {
    let covers = |one: IpAddr, other: IpAddr| one == other || one.is_unspecified() && one.is_ipv4() == other.is_ipv4();
    let meet = |one: IpAddr, other: IpAddr| covers(one, other) || covers(other, one);
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) | (Address::Udp(one), Address::Udp(other)) => {
            one.port() == other.port() && meet(one.ip(), other.ip())
        }
        (Address::Unix(_, one), Address::Unix(_, other)) => one == other,
        (Address::Tcp(_) | Address::Udp(_) | Address::Unix(..) | Address::Auto, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    fn key(name: &str, version: &str) -> Key {
        Key { name: name.parse().unwrap(), version: version.parse().unwrap() }
    }

    #[test]
    fn an_instance_is_named_after_its_service() {
        assert_eq!(instance_id(&key("web", "1.2.0-rc.1+b7"), 12).unwrap().as_str(), "web-1.2.0-rc.1+b7-12");
        let (one, other) = ("x".repeat(199) + "a", "x".repeat(199) + "b");
        let (one, other) =
            (instance_id(&key(&one, "1.0.0"), 1).unwrap(), instance_id(&key(&other, "1.0.0"), 1).unwrap());
        assert_eq!((one.as_str().len(), other.as_str().len()), (ID_MAX, ID_MAX));
        assert_ne!(one, other, "cut names stay apart");
        assert!(one.as_str().ends_with("-1.0.0-1"));
    }

    #[test]
    fn an_upgrade_keeps_what_it_does_not_change() {
        let old = Definition { env: vec!["A=1".into(), "B=2".into()], ..record().definition };
        let change = Upgrade {
            env: vec!["B=3".into(), "C=4".into()],
            command: vec!["new".into()],
            ready_timeout_ms: Some(7000),
            ..Upgrade::default()
        };
        let new = change.apply(&old, Version::new(1, 3, 0), Downgrade::Refused).unwrap();
        assert_eq!(new.env, ["A=1", "B=3", "C=4"]);
        assert_eq!((new.command.as_slice(), new.ready_timeout.as_secs()), (&["new".to_owned()][..], 7));
        assert_eq!((&new.source, &new.listen, new.restart), (&old.source, &old.listen, old.restart));
    }

    #[test]
    fn an_older_version_has_to_be_meant() {
        let old = record().definition;
        let to = |downgrade| Upgrade::default().apply(&old, Version::new(1, 1, 0), downgrade);
        let line = to(Downgrade::Refused).unwrap_err().to_string();
        assert_eq!(
            line,
            "upgrade service 'web@1.2.0' to 1.1.0: 1.1.0 is older than 1.2.0: give --allow-downgrade if that is meant"
        );
        assert_eq!(to(Downgrade::Allowed).unwrap().version, Version::new(1, 1, 0));
    }

    #[test]
    fn what_was_adopted_is_upgraded_by_saying_what_to_run() {
        let old = Definition { source: None, ..record().definition };
        let error = Upgrade::default().apply(&old, Version::new(2, 0, 0), Downgrade::Refused).unwrap_err();
        assert!(error.to_string().contains("give --rootfs DIR"), "{error}");
        let change = Upgrade { source: Some(Source::Rootfs("/r".into())), ..Upgrade::default() };
        assert!(change.apply(&old, Version::new(2, 0, 0), Downgrade::Refused).is_ok());
    }

    #[test]
    fn a_version_that_is_too_long_is_refused() {
        let mut definition = record().definition;
        definition.version.build = semver::BuildMetadata::new(&"b".repeat(VERSION_MAX)).unwrap();
        assert_eq!(check(&definition).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn addresses_that_would_get_in_each_others_way_are_known() {
        let overlap = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(&one, &other), overlap(&other, &one));
            overlap(&one, &other)
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
