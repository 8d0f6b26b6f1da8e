//! OCI image layouts, read and written: the way in for images, and the form in which a ring lies on disk.
//!
//! ```text
//! DIR/oci-layout              {"imageLayoutVersion":"1.0.0"}
//! DIR/index.json              the entry points; each descriptor may carry a tag (`org.opencontainers.image.ref.name`)
//! DIR/blobs/sha256/<64 hex>   manifests, configs and layers, each named by its content
//! ```
//!
//! - [`mod@reference`] says where an image is (`oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`), [`mod@open`] goes from there to
//!   a checked manifest, config and list of layers; on the way [`manifest`], [`config`] and [`platform`] read what
//!   lies there.
//! - [`layout`] is a directory of the form above, with [`stage`] for blobs that are written over a while;
//!   [`archive`] is the same form inside a tar file, [`tarball`] writes one.
//! - [`process`] and [`user`] turn a config into what is run.
//! - [`mod@write`] makes the documents of our own images.
//!
//! An image is foreign: every document has a size cap and is compared with its digest before it is parsed; blobs
//! are opened without following symbolic links and only if they are regular files. A layer's *size* is checked
//! here; its digest is checked by whoever reads all of it.

pub mod archive;
pub mod config;
pub mod layout;
pub mod manifest;
pub mod open;
pub mod platform;
pub mod process;
pub mod reference;
pub mod stage;
pub mod tarball;
pub mod user;
pub mod write;

pub use config::ImageConfig;
pub use layout::Layout;
pub use manifest::{Descriptor, Index, LayerType, Manifest};
pub use open::{Image, LayerBlob, open_image};
pub use reference::ImageSource;
