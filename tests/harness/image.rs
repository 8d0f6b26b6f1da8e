//! Images of a few files, well or badly made, in an OCI layout.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a layer's tar stream becomes its blob.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// As it is.
    Plain,
    /// With gzip.
    Gzip,
    /// With zstd.
    Zstd,
}

/// A tar stream in the making. Names and targets are written as they are, however wrong.
#[derive(Debug, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file.
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", content)
    }

    /// A directory.
    pub fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    /// A symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    /// A hard link.
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    /// Busybox as `sh`, `cat` and others, with the directories that a container needs.
    pub fn busybox(self) -> Self {
        let directories = ["bin", "dev", "etc", "proc", "root", "sys", "tmp"];
        let mut tar = directories.into_iter().fold(self, Self::directory);
        tar = tar.file("bin/busybox", &fs::read("/bin/busybox").unwrap());
        ["sh", "cat", "echo", "env", "id", "ls", "pwd", "stat", "true"]
            .into_iter()
            .fold(tar, |tar, name| tar.symlink(&format!("bin/{name}"), "busybox"))
    }

    /// An entry without content.
    pub fn raw(mut self, mut header: Header) -> Self {
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self
    }

    /// Anything.
    pub fn entry(mut self, kind: EntryType, name: &str, target: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Regular || kind == EntryType::Directory { 0o755 } else { 0o777 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // The crate's own setters refuse what a hostile layer has.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The whole stream.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A layout that images are put into.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// An empty layout.
    pub fn new(directory: PathBuf) -> Self {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layout = Self { directory };
        layout.write_index(&json!({"schemaVersion": 2, "manifests": []}));
        layout
    }

    /// As `--image` takes it.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.directory.display())
    }

    /// The file of a blob.
    pub fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.directory.join("blobs/sha256").join(&digest["sha256:".len()..])
    }

    /// Puts an image into it; gives its manifest.
    pub fn image(&self, tag: &str, layers: Vec<(Tar, Form)>, config: &Value) -> Value {
        let mut diff_ids = Vec::new();
        let descriptors: Vec<_> = layers
            .into_iter()
            .map(|(tar, form)| {
                let tar = tar.finish();
                diff_ids.push(digest(&tar));
                self.put(&layer_type(form), &pressed(&tar, form))
            })
            .collect();
        let image = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.put("application/vnd.oci.image.config.v1+json", image.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": descriptors});
        self.set_manifest(tag, &manifest);
        manifest
    }

    /// Lets a tag mean this manifest.
    pub fn set_manifest(&self, tag: &str, manifest: &Value) {
        let mut descriptor = self.put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let mut index: Value = serde_json::from_slice(&fs::read(self.directory.join("index.json")).unwrap()).unwrap();
        let manifests = index["manifests"].as_array_mut().unwrap();
        manifests.retain(|other| other["annotations"] != descriptor["annotations"]);
        manifests.push(descriptor);
        self.write_index(&index);
    }

    fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let descriptor = json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
        fs::write(self.blob(&descriptor), bytes).unwrap();
        descriptor
    }

    fn write_index(&self, index: &Value) {
        let new = self.directory.join("index.json.new");
        fs::write(&new, index.to_string()).unwrap();
        // Somebody may be reading the old one.
        fs::rename(new, self.directory.join("index.json")).unwrap();
    }

    /// The layout's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// A digest as OCI spells it.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn layer_type(form: Form) -> String {
    match form {
        Form::Plain => LAYER.to_owned(),
        Form::Gzip => format!("{LAYER}+gzip"),
        Form::Zstd => format!("{LAYER}+zstd"),
    }
}

fn pressed(tar: &[u8], form: Form) -> Vec<u8> {
    match form {
        Form::Plain => tar.to_vec(),
        Form::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Form::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}
