//! Certificates for tests, made by openssl(1).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who vouches for others.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// A new one, with its files in a directory of its own.
    pub fn new(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let authority = Self { directory: directory.to_owned() };
        let mut command = openssl(&["req", "-x509", "-days", "10", "-subj", "/CN=authority"]);
        command.args(NEW_KEY).arg("-keyout").arg(directory.join("ca.key")).arg("-out").arg(authority.certificate());
        run(command);
        authority
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate for a host, `IP:127.0.0.1` or `DNS:name`, that lasts for so many days; less than none is expired.
    pub fn issue(&self, name: &str, host: &str, days: i32) -> Certificate {
        let path = |ending: &str| self.directory.join(format!("{name}.{ending}"));
        let (request, extensions) = (path("csr"), path("ext"));
        let issued = Certificate { certificate: path("pem"), key: path("key") };
        let mut command = openssl(&["req", "-subj", &format!("/CN={name}")]);
        command.args(NEW_KEY).arg("-keyout").arg(&issued.key).arg("-out").arg(&request);
        run(command);
        fs::write(&extensions, format!("subjectAltName={host}\nextendedKeyUsage=serverAuth,clientAuth\n")).unwrap();
        let mut command = openssl(&["x509", "-req", "-CAcreateserial", "-days", &days.to_string()]);
        command.arg("-CA").arg(self.certificate()).arg("-CAkey").arg(self.directory.join("ca.key"));
        command.arg("-in").arg(request).arg("-extfile").arg(extensions).arg("-out").arg(&issued.certificate);
        run(command);
        issued
    }
}

const NEW_KEY: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments);
    command
}

fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
