//! Names and numbers that cross the edge of the program, checked once, here.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The longest ring name: it becomes a directory name next to suffixes of ours.
const NAME_MAX: usize = 200;

/// Gives a checked string newtype the traits that all of them share.
macro_rules! string_id {
    ($type:ident) => {
        impl $type {
            /// The checked text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> Self {
                id.as_str().to_owned()
            }
        }
    };
}

/// The id of a container: `[A-Za-z0-9_+.-]+`, as runc takes it, at most 200 bytes, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);
string_id!(ContainerId);

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        check_name("container id", text, |c| c.is_ascii_alphanumeric() || "_+.-".contains(c))?;
        Ok(Self(text.to_owned()))
    }
}

/// One component of a ring's name: `[A-Za-z0-9_.-]+`, at most 200 bytes, not beginning with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);
string_id!(Name);

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        check_name("name", text, |c| c.is_ascii_alphanumeric() || "_.-".contains(c))?;
        if text.starts_with('.') || text.starts_with('-') {
            let cause = "a name begins with a letter, a digit or '_'";
            return Err(Error::new(Kind::Invalid, format!("check name '{text}'"), cause));
        }
        Ok(Self(text.to_owned()))
    }
}

fn check_name(what: &str, text: &str, allowed: impl Fn(char) -> bool) -> Result<()> {
    let shown: String = text.chars().take(40).collect::<String>().escape_debug().to_string();
    let refuse = |cause: &str| Err(Error::new(Kind::Invalid, format!("check {what} '{shown}'"), cause));
    if text.is_empty() {
        return refuse("it is empty: give a name");
    }
    if text.len() > NAME_MAX {
        return refuse(&format!("{} bytes, at most {NAME_MAX} are allowed", text.len()));
    }
    if text == "." || text == ".." {
        return refuse("it would name a directory");
    }
    match text.chars().find(|c| !allowed(*c)) {
        Some(c) => refuse(&format!("'{}' is not allowed: use letters, digits, '_', '.', '-'", c.escape_debug())),
        None => Ok(()),
    }
}

/// The longest name of a node: that of a host (RFC 1123, 2.1).
const NODE_NAME_MAX: usize = 253;
/// The longest part of it between dots (RFC 1035, 2.3.4).
const NODE_LABEL_MAX: usize = 63;

/// The name of a node: that of a host in lower case, `[a-z0-9-]+` in parts separated by dots, no part beginning or ending with
/// a hyphen, the last not a number. So it can stand in a certificate as a DNS name, and in a key of the registry as a part. Copies share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);
string_id!(NodeName);

impl FromStr for NodeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |cause: &str| {
            let shown: String = text.chars().take(40).collect();
            Err(Error::new(Kind::Invalid, format!("check the name of a node '{}'", shown.escape_debug()), cause)
                .next("give a name like a host's: letters a to z, digits and hyphens, in parts separated by dots"))
        };
        if text.len() > NODE_NAME_MAX {
            return refuse(&format!("{} bytes, at most {NODE_NAME_MAX} are allowed", text.len()));
        }
        for part in text.split('.') {
            let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
            if part.is_empty() || part.len() > NODE_LABEL_MAX {
                return refuse(&format!("a part has {} bytes, from 1 to {NODE_LABEL_MAX} are allowed", part.len()));
            }
            if part.starts_with('-') || part.ends_with('-') || !part.bytes().all(plain) {
                return refuse(&format!("'{}' is no part of a host's name", part.escape_debug()));
            }
        }
        let last = text.rsplit('.').next().unwrap_or(text);
        if last.bytes().all(|c| c.is_ascii_digit()) {
            return refuse("what ends in a number would be an address");
        }
        Ok(Self(text.into()))
    }
}

impl NodeName {
    /// What a machine is called that nobody named: its host name, with what a name cannot have replaced.
    #[must_use]
    pub fn of_host(name: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let part =
            |part: &str| part.chars().map(plain).take(NODE_LABEL_MAX).collect::<String>().trim_matches('-').to_owned();
        let parts: Vec<_> = name.split('.').map(part).filter(|part| !part.is_empty()).collect();
        let whole = parts.join(".");
        [whole.as_str(), parts.first().map_or("", String::as_str)]
            .into_iter()
            .find_map(|text| text.parse().ok())
            .unwrap_or_else(|| Self("localhost".into()))
    }
}

/// The full name of a ring: who owns it and what they call it, `root/alice`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RingName {
    /// `root`, another user's name or number, or what an engine says (never a user's annotation).
    pub owner: Name,
    /// The owner's own name for it.
    pub name: Name,
}

impl RingName {
    /// Reads `NAME` (which belongs to `caller`) or `OWNER/NAME`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if either part is not a [`Name`], or an entry is named beside it.
    pub fn parse(text: &str, caller: &Name) -> Result<Self> {
        if text.split_once('@').is_some_and(|(ring, _)| !ring.is_empty()) {
            let shown: String = text.chars().take(40).collect();
            let operation = format!("check name '{}'", shown.escape_debug());
            return Err(Error::new(Kind::Invalid, operation, "it names an entry where a whole ring is meant")
                .next("leave out '@' and what follows; 'regen ring show' tells of one entry"));
        }
        let (owner, name) = match text.split_once('/') {
            Some((owner, name)) => (owner.parse()?, name.parse()?),
            None => (caller.clone(), text.parse()?),
        };
        Ok(Self { owner, name })
    }
}

impl fmt::Display for RingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A sha256 digest in its OCI spelling, `sha256:<64 hex>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// From the 32 bytes that a hash function gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 lower-case hex digits, without the algorithm: a blob's file name.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            let shown: String = text.chars().take(80).collect();
            let operation = format!("check digest '{}'", shown.escape_debug());
            Error::new(Kind::Invalid, operation, "it must be 'sha256:' and 64 lower-case hex digits")
        };
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).ok_or_else(refuse)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let value = |digit: u8| match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'a'..=b'f' => Some(digit - b'a' + 10),
                _ => None,
            };
            *byte = match (value(pair[0]), value(pair[1])) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(refuse()),
            };
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The name of a directory under `STORE/layers` or `STORE/runs`: 32 hex digits drawn at random for what a run
/// left, or the 64 digits of its diff id for a layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);
string_id!(LayerId);

impl LayerId {
    /// A layer of an image is named by what it holds, so that images share it.
    #[must_use]
    pub fn of_image(diff_id: &Digest) -> Self {
        Self(diff_id.hex())
    }

    /// Whether this is a layer of an image, not one that a run left.
    #[must_use]
    pub fn is_image(&self) -> bool {
        self.0.len() == 64
    }

    /// A run's upper has no content yet when it is named.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && (text.len() == 32 || text.len() == 64) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(80).collect();
        let operation = format!("check layer id '{}'", shown.escape_debug());
        Err(Error::new(Kind::Invalid, operation, "it must be 32 or 64 lower-case hex digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_names_that_could_leave_the_store_are_refused() {
        let root: Name = "root".parse().unwrap();
        for bad in ["", ".", "..", "a/b/c", "../x", "a/", "/a", ".hidden", "a b", "a\nb", &"x".repeat(256)] {
            assert!(RingName::parse(bad, &root).is_err(), "{bad:?} was taken");
        }
        assert_eq!(RingName::parse("alice", &root).unwrap().to_string(), "root/alice");
        assert_eq!(RingName::parse("k8s.io_default/a", &root).unwrap().to_string(), "k8s.io_default/a");
    }

    #[test]
    fn nodes_are_named_like_hosts() {
        for good in ["a", "n1", "node-1.rack-2.example.org", "1a", &"x".repeat(63)] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        let long = format!("{}.", "x".repeat(60)).repeat(5);
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "1",
            "10.0.0.1",
            "-a",
            "a-",
            "A",
            "a_b",
            "a/b",
            "*.a",
            "a b",
            "é",
            &"x".repeat(64),
            &long,
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn digests_round_trip_and_refuse_other_spellings() {
        let text = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for bad in ["", "sha256:", "sha512:00", &text.to_uppercase(), &text[..70], "sha256:../../etc/passwd"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn layer_ids_are_plain_hex() {
        assert!("ab".repeat(16).parse::<LayerId>().is_ok());
        for bad in ["", "../x", "zz", &"AB".repeat(16)] {
            assert!(bad.parse::<LayerId>().is_err(), "{bad:?} was taken");
        }
    }
}
