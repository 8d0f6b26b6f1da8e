//! User and password for a registry, from where `podman login`, `skopeo login` and `docker login` put them.
//!
//! Helper programs and identity tokens that those files may name are not used.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::read_capped;

const CAP: u64 = 1 << 20;

/// User and password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    /// `user:password` in base64, as a header has it.
    encoded: String,
}

impl Credential {
    /// The value of a header `Authorization`.
    pub(super) fn header(&self) -> String {
        format!("Basic {}", self.encoded)
    }
}

/// Secrets stand in no log.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<String>,
}

/// Looks for the credential for a repository; there may be none.
///
/// # Errors
/// [`Kind::NotFound`] if `$REGISTRY_AUTH_FILE` names no file, [`Kind::Invalid`] if a file is no such document.
pub(super) fn find(host: &str, repository: &str) -> Result<Option<Credential>> {
    let named = env::var_os("REGISTRY_AUTH_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let must_exist = named.is_some();
    let files = named.map_or_else(usual_files, |file| vec![file]);
    for file in files {
        let content = match read_capped(&file, CAP) {
            Err(error) if error.kind() == Kind::NotFound && !must_exist => continue,
            other => other.context(|| format!("read credentials from {}", quote(&file)))?,
        };
        let found = choose(&content, host, repository).map_err(|cause| {
            Error::new(Kind::Invalid, format!("read credentials from {}", quote(&file)), cause)
                .next(format!("write them anew: 'podman login {host}'"))
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn usual_files() -> Vec<PathBuf> {
    let directory = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let runtime = directory("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{}", nix::unistd::getuid())),
        |dir| dir.join("containers"),
    );
    let mut files = vec![runtime.join("auth.json")];
    if let Some(home) = directory("HOME") {
        files.extend([home.join(".config/containers/auth.json"), home.join(".docker/config.json")]);
    }
    files
}

/// What a document has under `auths`; there may be nothing.
fn read(content: &[u8]) -> serde_json::Result<BTreeMap<String, Auth>> {
    let mut document: Map<String, Value> = serde_json::from_slice(content)?;
    document.remove("auths").map_or_else(|| Ok(BTreeMap::new()), serde_json::from_value)
}

/// The credential of the longest name that covers the repository: `HOST/a/b`, `HOST/a`, `HOST`.
fn choose(content: &[u8], host: &str, repository: &str) -> Result<Option<Credential>, String> {
    let auths = read(content).map_err(|error| format!("not valid: {error}"))?;
    let full = format!("{host}/{repository}");
    let names = std::iter::successors(Some(&*full), |name| name.rsplit_once('/').map(|(parent, _)| parent));
    // As Docker has always written its own.
    let old = ["", "v1/", "v2/"]
        .map(|version| format!("https://{}/{version}", if host == "docker.io" { "index.docker.io" } else { host }));
    for name in
        names.map(str::to_owned).chain(old.iter().flat_map(|url| [url.clone(), url.trim_end_matches('/').to_owned()]))
    {
        let Some(auth) = auths.get(&name).and_then(|auth| auth.auth.as_ref()) else { continue };
        let decoded = STANDARD.decode(auth.trim()).map_err(|_| format!("what it has for '{name}' is no base64"))?;
        if !decoded.contains(&b':') {
            return Err(format!("what it has for '{name}' is no user:password"));
        }
        return Ok(Some(Credential { encoded: STANDARD.encode(decoded) }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_name_wins_and_nothing_leaks_to_others() {
        let text = br#"{"auths":{"r.example":{"auth":"YTph"},"r.example/team":{"auth":"YjpiCg=="},
            "https://index.docker.io/v1/":{"auth":"ZDpk"},"empty.example":{}},"credsStore":"x"}"#;
        let header = |host: &str, repository: &str| choose(text, host, repository).unwrap().map(|found| found.header());
        assert_eq!(header("r.example", "other").as_deref(), Some("Basic YTph"));
        assert_eq!(header("r.example", "team/x").as_deref(), Some("Basic YjpiCg=="));
        assert_eq!(header("docker.io", "library/x").as_deref(), Some("Basic ZDpk"));
        for (host, repository) in [("r.example:5000", "x"), ("example", "x"), ("empty.example", "x")] {
            assert_eq!(header(host, repository), None, "{host}");
        }
    }

    #[test]
    fn what_is_no_credential_is_told_without_telling_it() {
        let line = choose(br#"{"auths":{"h":{"auth":"c2VjcmV0"}}}"#, "h", "x").unwrap_err();
        assert!(!line.contains("secret") && !line.contains("c2Vj"), "{line}");
        assert!(choose(b"[]", "h", "x").is_err());
        assert_eq!(format!("{:?}", Credential { encoded: "YTph".into() }), "Credential");
    }
}
