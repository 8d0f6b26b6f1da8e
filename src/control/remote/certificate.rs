//! Who this node is, and whom it believes: three files in one directory, read anew when they change.
//!
//! ```text
//! DIR/ca.pem     certificates of the authority; several while one is replaced by the next
//! DIR/node.pem   the node's own, then those between it and the authority; its one DNS name is the node's
//! DIR/node.key   its key, for the daemon's user alone
//! ```

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::wording::explain;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::NodeName;
use crate::sys::fs::read_capped;

/// The authority's certificates, in the directory of certificates.
pub const AUTHORITY: &str = "ca.pem";
/// The node's certificate.
pub const CERTIFICATE: &str = "node.pem";
/// The node's key.
pub const KEY: &str = "node.key";
/// More than any chain has.
const SIZE_MAX: u64 = 1 << 20;
/// Whom a key may be readable for: its owner.
const OTHERS: u32 = 0o077;

/// The certificates of a directory. Copies share what was read.
#[derive(Debug, Clone)]
pub struct Certificates(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    name: NodeName,
    read: Mutex<Read>,
}

/// What was read, and which state of the files that was.
#[derive(Debug)]
struct Read {
    stamp: Stamp,
    identity: Arc<Identity>,
}

/// One state of the three files: what changes when one is written or replaced.
type Stamp = [Option<(u64, u64, i64, i64)>; 3];

/// What one state of the files makes: both ends' side of a handshake.
#[derive(Debug)]
pub(super) struct Identity {
    name: NodeName,
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl Certificates {
    /// Reads the certificates of a directory.
    ///
    /// # Errors
    /// One line that names the file, for what is missing, unreadable, readable for too many, expired, of another authority, or
    /// does not name one node.
    pub fn open(directory: &Path) -> Result<Self> {
        let stamp = stamp(directory);
        let identity = Arc::new(load(directory)?);
        let (name, read) = (identity.name.clone(), Mutex::new(Read { stamp, identity }));
        Ok(Self(Arc::new(Shared { directory: directory.to_owned(), name, read })))
    }

    /// Who the own certificate says that this node is.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.0.name
    }

    /// What the files say now. Where they were replaced by ones that are of no use, the former count on, and the log says
    /// why.
    pub(super) fn identity(&self) -> Arc<Identity> {
        let mut read = self.0.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.0.directory);
        if stamp != read.stamp {
            match load(&self.0.directory).and_then(|identity| self.check_name(identity)) {
                Ok(identity) => {
                    tracing::info!(directory = %self.0.directory.display(), "the certificates were read anew");
                    read.identity = Arc::new(identity);
                }
                Err(error) => tracing::error!("the certificates stay as they were: {error}"),
            }
            read.stamp = stamp;
        }
        Arc::clone(&read.identity)
    }

    fn check_name(&self, identity: Identity) -> Result<Identity> {
        if identity.name == self.0.name {
            return Ok(identity);
        }
        let operation = format!("read {}", quote(self.0.directory.join(CERTIFICATE)));
        let cause = format!("it is the certificate of node '{}', and this is node '{}'", identity.name, self.0.name);
        Err(Error::new(Kind::Invalid, operation, cause).next("start the daemon anew if its name is to change"))
    }
}

fn stamp(directory: &Path) -> Stamp {
    [AUTHORITY, CERTIFICATE, KEY].map(|name| {
        let found = fs::metadata(directory.join(name)).ok()?;
        Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
    })
}

fn load(directory: &Path) -> Result<Identity> {
    let provider = Arc::new(default_provider());
    let authority = directory.join(AUTHORITY);
    let operation = || format!("read {}", quote(&authority));
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&authority)? {
        roots.add(certificate).map_err(|error| refuse(operation(), &explain(&error)))?;
    }
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|error| refuse(operation(), &error.to_string()))?;

    let own = directory.join(CERTIFICATE);
    let operation = || format!("read {}", quote(&own));
    let chain = read_certificates(&own)?;
    let name = check_own(&*verifier, &chain).map_err(|cause| refuse(operation(), &cause))?;
    let key = read_key(&directory.join(KEY))?;

    let no_match = |error: &rustls::Error| refuse(format!("use {}", quote(directory.join(KEY))), &explain(error));
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| refuse("prepare TLS".to_owned(), &error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(|error| no_match(&error))?;
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| refuse("prepare TLS".to_owned(), &error.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| no_match(&error))?;
    client.resumption = Resumption::disabled();
    Ok(Identity { name, server: Arc::new(server), client: Arc::new(client) })
}

/// That others will find the own certificate good: better known now than from each of them.
fn check_own(
    verifier: &dyn ClientCertVerifier,
    chain: &[CertificateDer<'static>],
) -> std::result::Result<NodeName, String> {
    let Some((own, between)) = chain.split_first() else { return Err("it has no certificate".to_owned()) };
    verifier.verify_client_cert(own, between, UnixTime::now()).map_err(|error| explain(&error))?;
    node_of(own)
}

/// The node that a certificate names.
///
/// # Errors
/// Why it names none, as a cause.
pub(super) fn node_of(certificate: &CertificateDer<'_>) -> std::result::Result<NodeName, String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let names: Vec<&str> = certificate.valid_dns_names().collect();
    match names.as_slice() {
        [name] => name.parse().map_err(|_| format!("its DNS name '{name}' is none of a node")),
        [] => Err("it names no node: it has no DNS name among its alternative names".to_owned()),
        [..] => Err(format!("it names {} nodes: {}", names.len(), names.join(", "))),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let operation = || format!("read {}", quote(path));
    let text = read_capped(path, SIZE_MAX).map_err(|error| missing(error, path))?;
    let certificates: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| refuse(operation(), &error.to_string()))?;
    if certificates.is_empty() {
        return Err(refuse(operation(), "it has no certificate"));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let operation = || format!("read {}", quote(path));
    let mode = match fs::metadata(path) {
        Ok(found) => found.mode(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(missing(Error::new(Kind::NotFound, operation(), "no such file"), path));
        }
        Err(error) => return Err(error).context(operation),
    };
    if mode & OTHERS != 0 {
        let cause = format!("others may read or write it: its mode is {:04o}", mode & 0o7777);
        return Err(Error::new(Kind::Invalid, operation(), cause).next(format!("run 'chmod 600 {}'", path.display())));
    }
    let text = read_capped(path, SIZE_MAX)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| refuse(operation(), &error.to_string()))
}

fn refuse(operation: String, cause: &str) -> Error {
    Error::new(Kind::Invalid, operation, cause)
}

fn missing(error: Error, path: &Path) -> Error {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match error.kind() {
        Kind::NotFound => error.next(format!("put {AUTHORITY}, {CERTIFICATE} and {KEY} into {}", directory.display())),
        _ => error,
    }
}
