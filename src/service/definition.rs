//! What an operator says about a service: what to run, where it listens, when it is ready, what to do when it ends.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use semver::Version;
use serde::{Deserialize, Serialize};

use super::address::{Address, Listen};
use crate::error::{Error, Kind, Result};
use crate::ids::Name;
use crate::sys::signal::Signal;

/// The most sockets of a service: they travel in one message, and a program gets them as descriptors 3 and up.
pub const LISTEN_MAX: usize = 32;
/// How long an instance may take to become ready.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an old instance may take to end its connections.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// One version of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its name, shared by its versions.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// What clients connect to; at least one, no two the same.
    pub listen: Vec<Listen>,
    /// What an instance is made from; none for a program that was adopted, which cannot be started again.
    pub source: Option<Source>,
    /// The ring of its containers, as typed: `RING[@SEL]`.
    pub ring: Option<String>,
    /// Whether they may start from an entry that was made over another root.
    #[serde(default)]
    pub rebase: bool,
    /// The command, in place of the source's.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory inside.
    pub workdir: Option<String>,
    /// The user inside, by name or number.
    pub user: Option<String>,
    /// How its sockets reach an instance.
    pub handover: Handover,
    /// When an instance is ready.
    pub ready: Readiness,
    /// How long it may take until then.
    #[serde(with = "milliseconds", rename = "ready_timeout_ms")]
    pub ready_timeout: Duration,
    /// How long an old instance may take to end its connections.
    #[serde(with = "milliseconds", rename = "drain_timeout_ms")]
    pub drain_timeout: Duration,
    /// What tells an instance to end: a signal's name or number.
    #[serde(with = "signal")]
    pub stop_signal: Signal,
    /// What to do when an instance ends by itself.
    pub restart: Restart,
}

/// What an instance is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A directory with a config.json, absolute.
    Bundle(PathBuf),
    /// A directory that is its root file system, absolute.
    Rootfs(PathBuf),
    /// An OCI image, as typed, with an absolute path.
    Image(String),
}

/// How sockets reach an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handover {
    /// It takes them as descriptors 3 and up (LISTEN_FDS).
    ListenFds,
    /// It binds them itself and knows nothing of it.
    Intercept,
}

/// When an instance is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Readiness {
    /// It says so: READY=1 on NOTIFY_SOCKET (sd_notify(3)).
    Notify,
    /// It accepts connections.
    Tcp,
    /// It answers a GET of this path with 2xx or 3xx.
    Http(String),
    /// Once it listens.
    None,
}

/// What to do when an instance ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Nothing.
    No,
    /// Start another one unless it ended with 0.
    OnFailure,
    /// Start another one.
    Always,
}

impl Definition {
    /// Checks what its parts cannot check alone.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming what contradicts what.
    pub fn check(&self) -> Result<()> {
        let refuse = |cause: String| Err(Error::new(Kind::Usage, format!("define service '{self}'"), cause));
        if self.listen.is_empty() {
            return refuse("it listens nowhere: give --listen ADDR".to_owned());
        }
        if self.listen.len() > LISTEN_MAX {
            return refuse(format!("{} addresses, at most {LISTEN_MAX} are possible", self.listen.len()));
        }
        for (index, listen) in self.listen.iter().enumerate() {
            let address = &listen.address;
            match self.listen[..index].iter().find(|other| other.address.overlaps(address)) {
                Some(other) if other.address == *address => return refuse(format!("address {address} is given twice")),
                Some(other) => return refuse(format!("addresses {} and {address} overlap", other.address)),
                None => {}
            }
        }
        let tcp = |listen: &Listen| matches!(listen.address, Address::Tcp(_) | Address::Auto);
        if matches!(self.ready, Readiness::Tcp | Readiness::Http(_)) && !self.listen.iter().any(tcp) {
            return refuse(format!("readiness '{}' needs a TCP address", self.ready));
        }
        match self.env.iter().find(|entry| !entry.contains('=') || entry.starts_with('=')) {
            Some(entry) => refuse(format!("variable '{}' is not NAME=VALUE", entry.escape_debug())),
            None => Ok(()),
        }
    }

    /// The readiness of a service that was given none.
    #[must_use]
    pub fn default_readiness(listen: &[Listen]) -> Readiness {
        let tcp = |listen: &Listen| matches!(listen.address, Address::Tcp(_) | Address::Auto);
        if listen.iter().any(tcp) { Readiness::Tcp } else { Readiness::None }
    }
}

/// `NAME@VERSION`.
impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl FromStr for Readiness {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let operation = || format!("read readiness '{}'", text.escape_debug());
        match text {
            "notify" => Ok(Self::Notify),
            "tcp" => Ok(Self::Tcp),
            "none" => Ok(Self::None),
            _ => match text.strip_prefix("http:") {
                Some(path) if path.starts_with('/') && !path.contains(|c: char| c.is_control() || c == ' ') => {
                    Ok(Self::Http(path.to_owned()))
                }
                Some(_) => {
                    Err(Error::new(Kind::Invalid, operation(), "the path must begin with '/' and have no spaces"))
                }
                None => {
                    Err(Error::new(Kind::Invalid, operation(), "unknown").next("give notify, tcp, http:/PATH or none"))
                }
            },
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notify => f.write_str("notify"),
            Self::Tcp => f.write_str("tcp"),
            Self::Http(path) => write!(f, "http:{path}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl TryFrom<String> for Readiness {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Readiness> for String {
    fn from(readiness: Readiness) -> Self {
        readiness.to_string()
    }
}

/// Times as whole milliseconds.
pub(super) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::service) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(in crate::service) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// Signals by name.
mod signal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::sys::signal::Signal;

    pub(super) fn serialize<S: Serializer>(signal: &Signal, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&signal.to_string().trim_start_matches("signal "))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Signal, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(listen: &[&str], ready: Readiness) -> Definition {
        let name: Name = "web".parse().unwrap();
        Definition {
            listen: listen.iter().map(|text| Listen::parse(text, &name).unwrap()).collect(),
            name,
            version: Version::new(1, 2, 3),
            source: Some(Source::Rootfs("/srv/root".into())),
            ring: None,
            rebase: false,
            command: vec!["serve".into()],
            env: vec!["A=b".into()],
            workdir: None,
            user: None,
            handover: Handover::ListenFds,
            ready,
            ready_timeout: READY_TIMEOUT,
            drain_timeout: Duration::from_millis(1500),
            stop_signal: "RTMIN+3".parse().unwrap(),
            restart: Restart::OnFailure,
        }
    }

    #[test]
    fn a_definition_survives_being_written_down() {
        let definition = definition(&["auto", "unix:/run/web"], Readiness::Http("/health".into()));
        definition.check().unwrap();
        let text = serde_json::to_string(&definition).unwrap();
        assert!(text.contains(r#""drain_timeout_ms":1500"#) && text.contains(r#""handover":"listen-fds""#), "{text}");
        assert_eq!(serde_json::from_str::<Definition>(&text).unwrap(), definition);
    }

    #[test]
    fn contradictions_are_named() {
        let cause = |listen: &[&str], ready| definition(listen, ready).check().unwrap_err().to_string();
        assert!(cause(&[], Readiness::None).contains("listens nowhere"));
        assert!(cause(&["unix:/a", "unix:/a"], Readiness::None).contains("given twice"));
        let both = cause(&["tcp://0.0.0.0:80", "tcp://127.0.0.1:80"], Readiness::None);
        assert!(both.contains("addresses tcp://0.0.0.0:80 and tcp://127.0.0.1:80 overlap"), "{both}");
        assert!(cause(&["unix:/a"], Readiness::Tcp).contains("needs a TCP address"));
        let mut without_value = definition(&["auto"], Readiness::None);
        without_value.env = vec!["A".into()];
        assert!(without_value.check().unwrap_err().to_string().contains("NAME=VALUE"));
    }

    #[test]
    fn readiness_is_read_and_refused() {
        for text in ["notify", "tcp", "none", "http:/up?x=1"] {
            assert_eq!(text.parse::<Readiness>().unwrap().to_string(), text);
        }
        for text in ["", "http", "http:", "http:up", "http:/a b", "TCP"] {
            assert!(text.parse::<Readiness>().is_err(), "{text}");
        }
    }
}
