//! Where something is in a registry, as a user writes it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};

const TRANSPORT: &str = "docker://";
const REPOSITORY_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A repository of a registry, and perhaps a tag in it: `docker://HOST[:PORT]/REPOSITORY[:TAG]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
}

impl Reference {
    /// The registry, with its port if it has one: what credentials are kept under.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the registry answers: Docker's own has another name for that.
    #[must_use]
    pub(super) fn authority(&self) -> &str {
        if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host }
    }

    /// The repository in it.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |cause: &str| {
            let shown: String = text.chars().take(200).collect();
            Error::new(Kind::Invalid, format!("read reference '{}'", shown.escape_debug()), cause)
                .next("give docker://HOST[:PORT]/REPOSITORY[:TAG]")
        };
        let rest = text.strip_prefix(TRANSPORT).ok_or_else(|| refuse("it does not begin with docker://"))?;
        let (host, rest) = rest.split_once('/').ok_or_else(|| refuse("it names no repository"))?;
        if !(host == "localhost" || host.contains(['.', ':'])) {
            return Err(refuse("its first part names no registry"));
        }
        if !is_host(host) {
            return Err(refuse("its first part is no host"));
        }
        if rest.contains('@') {
            return Err(refuse("a digest can't be given here"));
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if repository.len() > REPOSITORY_MAX || !repository.split('/').all(is_component) {
            return Err(refuse(
                "a repository has lower-case letters, digits, and single '.', '_', '-' and '/' between",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("a tag has letters, digits, '_', '.' and '-', and begins with none of the last two"));
        }
        Ok(Self { host: host.to_owned(), repository: repository.to_owned(), tag: tag.map(str::to_owned) })
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (text, None),
    };
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let valid = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte)),
    };
    valid && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_component(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    outer(text.bytes().next()) && outer(text.bytes().last()) && text.bytes().all(inner) && !text.contains("..")
}

fn is_tag(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    first && text.len() <= TAG_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TRANSPORT}{}/{}", self.host, self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_host_repository_and_tag() {
        for (text, host, repository, tag) in [
            ("docker://localhost:5000/a", "localhost:5000", "a", None),
            ("docker://r.example/a/b-c:v1", "r.example", "a/b-c", Some("v1")),
            ("docker://[::1]:5000/a:20261122T152448Z-000042", "[::1]:5000", "a", Some("20261122T152448Z-000042")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.host(), reference.repository(), reference.tag()), (host, repository, tag));
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_form() {
        for bad in [
            "",
            "docker:a",
            "oci:/x",
            "docker://",
            "docker://alpine",
            "docker://alpine/x",
            "docker://h:1/",
            "docker://h:1/A",
            "docker://h:1/a:",
            "docker://h:1/a:-x",
            "docker://h:1/a/../b",
            "docker://h:1/a//b",
            "docker://h:99999/a",
            "docker://u@h:1/a",
            "docker://h.x/a@sha256:00",
            "docker://h.x/a?x=y",
            "docker://[::g]:1/a",
        ] {
            let line = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(line.contains("docker://HOST[:PORT]/REPOSITORY[:TAG]"), "{bad}: {line}");
        }
    }
}
