//! What somebody says about a new version of a service, and what follows where they say nothing.

use std::time::Duration;

use semver::Version;
use serde::{Deserialize, Serialize};

use super::address::{Address, Listen};
use super::definition::{DRAIN_TIMEOUT, Definition, Handover, READY_TIMEOUT, Readiness, Restart, Source};
use crate::error::{Error, Result};
use crate::ids::Name;
use crate::sys::signal::Signal;

/// What is said. For a new service the rest has defaults, for a new version the rest is as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// What its instances are made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The ring of its containers: `RING[@SEL]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring: Option<String>,
    /// Whether they may start from an entry that was made over another root; once said it stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rebase: bool,
    /// The command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `NAME=VALUE`: added, or in place of those with the same names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The working directory inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The user inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How its sockets reach an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    /// When an instance is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
    /// How long it may take until then, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_timeout_ms: Option<u64>,
    /// How long an old instance may take to end its connections, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_ms: Option<u64>,
    /// What tells an instance to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<StopSignal>,
    /// What to do when an instance ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
}

/// A signal, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StopSignal(pub Signal);

impl TryFrom<String> for StopSignal {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse().map(Self)
    }
}

impl From<StopSignal> for String {
    fn from(signal: StopSignal) -> Self {
        signal.0.to_string().trim_start_matches("signal ").to_owned()
    }
}

/// An address, with the name of its socket if that is not the service's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The address.
    pub address: Address,
}

impl Settings {
    /// A new service.
    #[must_use]
    pub fn define(self, name: Name, version: Version, places: Vec<Place>) -> Definition {
        let named = |place: Place| Listen { name: place.name.unwrap_or_else(|| name.clone()), address: place.address };
        let listen: Vec<Listen> = places.into_iter().map(named).collect();
        let plain = Definition {
            ready: Definition::default_readiness(&listen),
            name,
            version: version.clone(),
            listen,
            source: None,
            ring: None,
            rebase: false,
            command: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            handover: Handover::ListenFds,
            ready_timeout: READY_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
            stop_signal: Signal::TERM,
            restart: Restart::OnFailure,
        };
        self.apply(&plain, version)
    }

    /// Another version of a service, at the same addresses.
    #[must_use]
    pub fn apply(self, old: &Definition, version: Version) -> Definition {
        let name_of = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
        let given: Vec<_> = self.env.iter().filter_map(|entry| name_of(entry)).collect();
        let mut env = old.env.clone();
        env.retain(|entry| name_of(entry).is_none_or(|name| !given.contains(&name)));
        env.extend(self.env);
        let time = |given: Option<u64>, kept| given.map_or(kept, Duration::from_millis);
        Definition {
            name: old.name.clone(),
            version,
            listen: old.listen.clone(),
            source: self.source.or_else(|| old.source.clone()),
            ring: self.ring.or_else(|| old.ring.clone()),
            rebase: self.rebase || old.rebase,
            command: if self.command.is_empty() { old.command.clone() } else { self.command },
            env,
            workdir: self.workdir.or_else(|| old.workdir.clone()),
            user: self.user.or_else(|| old.user.clone()),
            handover: self.handover.unwrap_or(old.handover),
            ready: self.ready.unwrap_or_else(|| old.ready.clone()),
            ready_timeout: time(self.ready_timeout_ms, old.ready_timeout),
            drain_timeout: time(self.drain_timeout_ms, old.drain_timeout),
            stop_signal: self.stop_signal.map_or(old.stop_signal, |signal| signal.0),
            restart: self.restart.unwrap_or(old.restart),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &str) -> Place {
        Place { name: None, address: address.parse().unwrap() }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let define = |address: &str| {
            Settings::default().define("web".parse().unwrap(), Version::new(1, 0, 0), vec![place(address)])
        };
        let web = define("auto");
        assert_eq!((web.ready, web.handover, web.restart), (Readiness::Tcp, Handover::ListenFds, Restart::OnFailure));
        assert_eq!((web.listen[0].name.as_str(), web.ready_timeout), ("web", READY_TIMEOUT));
        assert_eq!(define("unix:/run/web").ready, Readiness::None);
    }

    #[test]
    fn another_version_keeps_what_is_not_said() {
        let old =
            Settings { env: vec!["A=1".into(), "B=2".into()], command: vec!["old".into()], ..Settings::default() };
        let old = old.define("web".parse().unwrap(), Version::new(1, 0, 0), vec![place("unix:/run/web")]);
        let change = Settings {
            env: vec!["B=3".into(), "C=4".into()],
            ready_timeout_ms: Some(7000),
            stop_signal: Some(StopSignal(Signal::QUIT)),
            ..Settings::default()
        };
        let new = change.apply(&old, Version::new(1, 3, 0));
        assert_eq!(new.env, ["A=1", "B=3", "C=4"]);
        assert_eq!((new.command.as_slice(), new.ready_timeout.as_secs()), (&["old".to_owned()][..], 7));
        assert_eq!((new.stop_signal, new.version, &new.listen), (Signal::QUIT, Version::new(1, 3, 0), &old.listen));
    }

    #[test]
    fn only_what_is_said_is_written() {
        assert_eq!(serde_json::to_string(&Settings::default()).unwrap(), "{}");
        let text = r#"{"source":{"rootfs":"/r"},"stop_signal":"SIGQUIT","restart":"no"}"#;
        let settings: Settings = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&settings).unwrap(), text);
        assert!(serde_json::from_str::<Settings>(r#"{"stop_signal":"SIGNOPE"}"#).is_err());
    }
}
