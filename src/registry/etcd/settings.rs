//! How an etcd is reached: what the administrator says, and what the files that are named contain.

use std::fs::File;
use std::io::Read;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::config::Cluster;
use crate::error::{Context, Error, Kind, Result, quote};

/// Where etcd listens if nothing else is said.
const PORT: u16 = 2379;
/// A file of certificates, a key or a password is never as long.
const FILE_MAX: u64 = 1 << 20;
/// A member that says nothing for so long while something is awaited from it is asked whether it lives. etcd closes the
/// connection of who asks more often than every five seconds (`--grpc-keepalive-min-time`).
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How an etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `HOST:PORT` of each member.
    pub endpoints: Vec<String>,
    /// What every key begins with; it ends with `/`.
    pub prefix: String,
    /// The user, where etcd asks for one.
    pub user: Option<String>,
    /// The file with the user's password.
    pub password_file: Option<PathBuf>,
    /// Who vouches for the members (PEM); with it, connections are encrypted.
    pub ca: Option<PathBuf>,
    /// This machine's certificate (PEM).
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// How long a request may take.
    pub timeout: Duration,
}

impl Settings {
    /// For the etcd at `etcd://HOST:PORT[,HOST:PORT…]`, with what the configuration says besides.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for another sort of URL.
    pub fn new(url: &str, cluster: &Cluster) -> Result<Self> {
        let Cluster { registry: _, prefix, user, password_file, ca, certificate, key, timeout } = cluster.clone();
        Ok(Self {
            endpoints: parse_endpoints(url)?,
            prefix: format!("{}/", prefix.trim_end_matches('/')),
            user,
            password_file,
            ca,
            certificate,
            key,
            timeout: Duration::from_secs(timeout.into()),
        })
    }

    /// The URL of a member.
    pub(super) fn url(&self, endpoint: &str) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{endpoint}")
    }

    /// How long a member may take to answer before the next one is asked, where that does no harm.
    pub(super) fn share(&self) -> Duration {
        self.timeout / u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX).max(1)
    }

    /// Reads the files that are named.
    pub(super) fn options(&self) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .with_require_leader(true)
            .with_auto_token_refresh(true)
            .with_keep_alive(KEEPALIVE, self.timeout)
            // etcd closes the connection of who asks while nothing is awaited.
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(self.share());
        if let (Some(user), Some(file)) = (&self.user, &self.password_file) {
            options = options.with_user(user, read_password(file)?);
        }
        if let Some(ca) = &self.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?)).timeout(self.share());
            if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
                tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

fn read(path: &Path) -> Result<String> {
    let operation = || format!("read {}", quote(path));
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
    read.context(operation)?;
    Ok(text)
}

fn read_password(path: &Path) -> Result<String> {
    let password = read(path)?.lines().next().unwrap_or_default().to_owned();
    if password.is_empty() {
        return Err(Error::new(Kind::Invalid, format!("read {}", quote(path)), "there is no password in it")
            .next("write the password of cluster.user into its first line"));
    }
    Ok(password)
}

fn parse_endpoints(url: &str) -> Result<Vec<String>> {
    if url.contains('@') {
        // Whatever stands before it is for nobody's log.
        let cause = "users and passwords do not stand in it";
        return Err(Error::new(Kind::Invalid, "read the address of a cluster", cause)
            .next("write etcd://HOST:PORT, and cluster.user and cluster.password-file into the configuration"));
    }
    let refuse = |cause: String| {
        let operation = format!("read the address of a cluster '{}'", url.escape_debug());
        Err(Error::new(Kind::Invalid, operation, cause).next("write etcd://HOST:PORT[,HOST:PORT…]"))
    };
    let Some(list) = url.strip_prefix("etcd://") else { return refuse("it does not begin with etcd://".to_owned()) };
    let mut found: Vec<String> = Vec::new();
    for part in list.trim_end_matches('/').split(',') {
        let Some(endpoint) = parse_endpoint(part.trim()) else { return refuse(format!("'{part}' is no HOST:PORT")) };
        if !found.contains(&endpoint) {
            found.push(endpoint);
        }
    }
    Ok(found)
}

fn parse_endpoint(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        let port = if after.is_empty() { PORT } else { after.strip_prefix(':')?.parse().ok()? };
        return Some(format!("[{}]:{port}", address.parse::<Ipv6Addr>().ok()?));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (text, PORT),
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!host.is_empty() && host.chars().all(good)).then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (url, endpoints) in [
            ("etcd://a:1", vec!["a:1"]),
            ("etcd://a:1,b.example:2, 10.0.0.1", vec!["a:1", "b.example:2", "10.0.0.1:2379"]),
            ("etcd://[::1]:5,[fe80::2]/", vec!["[::1]:5", "[fe80::2]:2379"]),
            ("etcd://a:1,a:1", vec!["a:1"]),
        ] {
            assert_eq!(parse_endpoints(url).unwrap(), endpoints, "{url}");
        }
        for url in
            ["", "etcd://", "http://a:1", "etcd://a:b", "etcd://a:1,,b:2", "etcd://a:0", "etcd://[::1", "etcd://a/b:1"]
        {
            let error = parse_endpoints(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{url}");
            assert!(error.to_string().contains("etcd://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_prefix_ends_with_one_slash() {
        let prefix = |text: &str| {
            let cluster = Cluster { prefix: text.to_owned(), ..Cluster::default() };
            Settings::new("etcd://a:1", &cluster).unwrap().prefix
        };
        assert_eq!((prefix("regen/"), prefix("a/b")), ("regen/".to_owned(), "a/b/".to_owned()));
    }

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "se cret\n# of etcd\n").unwrap();
        assert_eq!(read_password(&path).unwrap(), "se cret");
        std::fs::write(&path, "\n").unwrap();
        assert!(read_password(&path).unwrap_err().to_string().contains("first line"));
        assert_eq!(read_password(&directory.path().join("none")).unwrap_err().kind(), Kind::NotFound);
    }
}
