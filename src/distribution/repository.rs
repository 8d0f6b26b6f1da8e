//! What a registry keeps under one name: blobs, and manifests by tag or digest.

use std::collections::BTreeSet;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::header::{ACCEPT, CONTENT_TYPE, HeaderName, LINK};
use ureq::http::{Method, Response, StatusCode};

use super::reference::Reference;
use super::transport::{self, Call, Payload, Repeat, Transport, Trust};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;

/// The largest manifest that a registry has to take.
const MANIFEST_CAP: u64 = 4 << 20;
const TAGS_CAP: u64 = 8 << 20;
/// A list of tags that has no end is not read to it.
const TAGS_MAX: usize = 100_000;
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A blob, by what it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Of its content.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

/// A manifest or an index as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What the registry calls it.
    pub media_type: String,
    /// Its text.
    pub bytes: Vec<u8>,
    /// Of the text.
    pub digest: Digest,
}

/// A repository of a registry. A copy asks on a connection of its own.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(super) transport: Transport,
    pub(super) reference: Reference,
    /// Others of the same registry that may have what is sent.
    pub(super) relatives: Vec<String>,
}

impl Repository {
    /// Finds the registry of a reference; whether it has the repository shows later.
    ///
    /// # Errors
    /// [`Kind::System`] if the registry does not answer, those of reading credentials.
    pub fn open(reference: &Reference, trust: Trust) -> Result<Self> {
        let transport = Transport::open(reference, trust)?;
        Ok(Self { transport, reference: reference.clone(), relatives: Vec::new() })
    }

    /// Which it is, whatever tag it was opened with: `HOST/REPOSITORY`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.reference.host(), self.reference.repository())
    }

    /// What is sent may be there already, in another repository: if that is of the same registry, it is taken from there.
    pub fn may_take_from(&mut self, other: &Reference) {
        let is_other = other.repository() != self.reference.repository();
        if other.host() == self.reference.host() && is_other {
            self.transport.reads_also(other.repository());
            self.relatives.push(other.repository().to_owned());
        }
    }

    /// Whether a blob is there.
    ///
    /// # Errors
    /// As all calls: no answer, or one that says neither yes nor no.
    pub fn has_blob(&mut self, digest: &Digest) -> Result<bool> {
        let operation = format!("look for blob {digest} in '{}'", self.reference);
        let target = self.path(&format!("blobs/{digest}"));
        self.exists(&operation, &target).map(|found| found.is_some())
    }

    /// The digest of the manifest with a tag, if there is one; the registry's word for it.
    ///
    /// # Errors
    /// As [`Repository::has_blob`].
    pub fn manifest_digest(&mut self, name: &str) -> Result<Option<Digest>> {
        let operation = format!("look for '{name}' in '{}'", self.reference);
        let target = self.path(&format!("manifests/{name}"));
        let Some(response) = self.exists(&operation, &target)? else { return Ok(None) };
        let digest = response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
        match digest {
            Some(digest) => digest.parse::<Digest>().map(Some).context(|| operation),
            // A registry need not say it of itself.
            None => Ok(self.fetch_manifest(name)?.map(|document| document.digest)),
        }
    }

    /// Fetches a blob that is a short text.
    ///
    /// # Errors
    /// As [`Repository::fetch_blob`].
    pub fn fetch_text(&mut self, blob: &Blob) -> Result<Vec<u8>> {
        let operation = format!("fetch blob {} from '{}'", blob.digest, self.reference);
        let target = self.path(&format!("blobs/{}", blob.digest));
        let mut response = self.get(&operation, &target)?;
        if response.status() != StatusCode::OK {
            return Err(self.transport.refusal(&operation, response));
        }
        let bytes = transport::read_capped(&mut response, blob.size).context(|| operation.clone())?;
        let found = Digest::from_bytes(Sha256::digest(&bytes).into());
        if found == blob.digest && bytes.len() as u64 == blob.size {
            return Ok(bytes);
        }
        let cause = format!("what the registry sends has {} bytes and digest {found}", bytes.len());
        Err(Error::new(Kind::Damaged, operation, cause))
    }

    /// Fetches a manifest or an index by tag or digest; `None` if there is none.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if it is too large, or not what the digest in its name says.
    pub fn fetch_manifest(&mut self, name: &str) -> Result<Option<Document>> {
        let operation = format!("fetch '{name}' from '{}'", self.reference);
        let target = self.path(&format!("manifests/{name}"));
        let mut response = self.get(&operation, &target)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.transport.refusal(&operation, response)),
        }
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = transport::read_capped(&mut response, MANIFEST_CAP).context(|| operation.clone())?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        if name.parse::<Digest>().is_ok_and(|wanted| wanted != digest) {
            return Err(Error::new(Kind::Damaged, operation, format!("what the registry sends has digest {digest}")));
        }
        Ok(Some(Document { media_type, bytes, digest }))
    }

    /// Puts a manifest or an index under a tag, or under its digest.
    ///
    /// # Errors
    /// As [`Repository::send_blob`].
    pub fn send_manifest(&mut self, name: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let operation = format!("put '{name}' into '{}'", self.reference);
        let target = self.path(&format!("manifests/{name}"));
        let response = self.transport.call(&Call {
            operation: &operation,
            method: Method::PUT,
            target: &target,
            headers: vec![(CONTENT_TYPE, media_type.to_owned())],
            payload: Payload::Text(bytes),
            repeat: Repeat::Safe,
        })?;
        if response.status() == StatusCode::CREATED {
            Ok(())
        } else {
            Err(self.transport.refusal(&operation, response))
        }
    }

    /// All tags of the repository, as the registry spells them; none if there is no such repository.
    ///
    /// # Errors
    /// As [`Repository::has_blob`]; [`Kind::Damaged`] for a list without an end.
    pub fn tags(&mut self) -> Result<BTreeSet<String>> {
        #[derive(Deserialize)]
        struct List {
            tags: Option<Vec<String>>,
        }
        let operation = format!("list the tags of '{}'", self.reference);
        let mut found = BTreeSet::new();
        let mut target = Some(self.path("tags/list?n=1000"));
        while let Some(page) = target.take() {
            let mut response = self.get(&operation, &page)?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => break,
                _ => return Err(self.transport.refusal(&operation, response)),
            }
            let next = response.headers().get(LINK).and_then(|value| value.to_str().ok()).and_then(next_page);
            let next = next.map(|next| self.transport.own_target(&operation, &next)).transpose()?;
            let text = transport::read_capped(&mut response, TAGS_CAP).context(|| operation.clone())?;
            let list: List = serde_json::from_slice(&text).context(|| operation.clone())?;
            let before = found.len();
            found.extend(list.tags.unwrap_or_default());
            // A page that brings nothing new is one of a circle.
            if found.len() > TAGS_MAX || (next.is_some() && found.len() == before) {
                return Err(Error::new(Kind::Damaged, operation, "the registry's list has no end"));
            }
            target = next;
        }
        Ok(found)
    }

    fn exists(&mut self, operation: &str, target: &str) -> Result<Option<Response<Body>>> {
        let response = self.transport.call(&Call {
            operation,
            method: Method::HEAD,
            target,
            headers: vec![(ACCEPT, ACCEPTED.to_owned())],
            payload: Payload::Nothing,
            repeat: Repeat::Safe,
        })?;
        match response.status() {
            StatusCode::OK => Ok(Some(response)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.transport.refusal(operation, response)),
        }
    }

    fn get(&mut self, operation: &str, target: &str) -> Result<Response<Body>> {
        self.transport.call(&Call {
            operation,
            method: Method::GET,
            target,
            headers: vec![(ACCEPT, ACCEPTED.to_owned())],
            payload: Payload::Nothing,
            repeat: Repeat::Safe,
        })
    }

    pub(super) fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.reference.repository())
    }
}

/// `</v2/…?last=x>; rel="next"`
fn next_page(header: &str) -> Option<String> {
    let (url, relation) = header.trim().strip_prefix('<')?.split_once('>')?;
    (relation.contains("rel=\"next\"") || relation.contains("rel=next")).then(|| url.to_owned())
}
