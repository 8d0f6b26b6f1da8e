//! An authority for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{DateTime, Utc};
use regen::control::remote::Certificates;
use tempfile::TempDir;

/// Its directory goes with it.
#[derive(Debug)]
pub struct Authority(TempDir);

impl Authority {
    /// A new one, and certificates of these nodes.
    pub fn new(nodes: &[&str]) -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.make(nodes, &[]);
        authority
    }

    fn make(&self, nodes: &[&str], environment: &[(&str, String)]) {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/certs"));
        command.arg(self.0.path()).args(nodes).envs(environment.iter().cloned());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A certificate that is valid in this time only.
    pub fn make_within(&self, node: &str, from: DateTime<Utc>, until: DateTime<Utc>) {
        let say = |time: DateTime<Utc>| time.format("%Y%m%d%H%M%SZ").to_string();
        self.make(&[node], &[("NOT_BEFORE", say(from)), ("NOT_AFTER", say(until))]);
    }

    /// Another authority in the place of this one, which makes new certificates for these nodes.
    pub fn renew(&self, nodes: &[&str]) {
        fs::remove_file(self.path("ca.pem")).unwrap();
        self.make(nodes, &[]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a node is given.
    pub fn certificates(&self, node: &str) -> Certificates {
        Certificates::open(&self.path(node)).unwrap()
    }
}
