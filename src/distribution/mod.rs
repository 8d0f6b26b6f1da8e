//! Registries of OCI images, spoken to over HTTP: the distribution specification, version 1.
//!
//! ```text
//! Reference   docker://HOST[:PORT]/REPOSITORY[:TAG], as a user writes it
//! Credential  what containers' auth.json knows for it
//! Transport   one request: scheme, token, redirects, and again what may pass
//! Repository  blobs and manifests: looked for, sent, fetched; what broke off goes on
//! ```
//!
//! A registry is foreign. Every body has a size that is known or capped before it is read, what is fetched by digest is
//! compared with it, credentials go to the host that they are for and to the one that it names for tokens, and an upload
//! goes nowhere else. Blobs are streamed: memory does not grow with them.

mod challenge;
mod credential;
mod download;
mod reference;
mod repository;
mod transport;
mod upload;

pub use reference::Reference;
pub use repository::{Blob, Document, Repository};
pub use transport::Trust;
pub use upload::PIECES_FROM;
