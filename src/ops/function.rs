//! What is dropped into a clone: a directory, a tar file or an image, as a mount that is attached nowhere yet.
//!
//! ```text
//! directory ──────────────────────────────────────────────> open_tree ──┐
//! tar ── sha256 ── unpacked? ── no: unpack into functions/ID ── touch ──┤ read-only, nosuid, nodev
//! image ── layers unpacked? ── no: unpack them ── overlay ──────────────┘
//! ```
//!
//! An unpacked tar file is shared by all who bring the same bytes. It goes once nobody has asked for it for a day and no mount
//! of it is left, wherever that is.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, Timespec, Timestamps, UTIME_NOW, futimens};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, open_tree};
use sha2::{Digest as _, Sha256};

use super::{Place, image};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{Digest, LayerId};
use crate::image::ImageSource;
use crate::overlay::{Detached, Stack};
use crate::pack::{Compression, Expected, Files, Limits, unpack_layer};
use crate::store::{Layers, Store, make_directory};
use crate::sys::fs::{by_descriptor, open_path};
use crate::sys::mount::{Depth, set_attributes, set_propagation};
use crate::sys::mount_table;

/// The most files and directories of a function.
const MAX_ENTRIES: u64 = 200_000;
/// What nobody asked for so long may go.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);
/// What is read at once.
const CHUNK: usize = 256 << 10;

/// A function's files, as a mount: read-only, without devices and setuid programs.
///
/// # Errors
/// [`Kind::NotFound`] if it is not there; [`Kind::Invalid`] for a tar file with anything but files, directories and links that
/// stay inside, or that is too large; those of [`crate::image::open::open_image`].
pub fn open(place: &Place, function: &Path) -> Result<OwnedFd> {
    let operation = || format!("open function {}", quote(function));
    if let Some(image) = function.to_str().filter(|text| text.starts_with("oci:") || text.starts_with("oci-archive:")) {
        return open_image(place, &image.parse()?).context(operation);
    }
    let metadata = fs::metadata(function).context(operation)?;
    if metadata.is_dir() {
        return open_directory(function).context(operation);
    }
    if metadata.is_file() && metadata.len() == 0 {
        return Err(Error::new(Kind::Invalid, operation(), "it is empty"));
    }
    if metadata.is_file() {
        return open_tar(place, function).context(operation);
    }
    let cause = "it is neither a directory nor a file";
    Err(Error::new(Kind::Invalid, operation(), cause).next("give a directory, a tar file, or oci:DIR[:TAG]"))
}

/// The same for a directory or a tar file that an annotation names. What was looked at is what is opened, whoever changes
/// names meanwhile.
///
/// # Errors
/// As [`open`]; [`Kind::Invalid`] if the administrator does not allow it.
pub(super) fn open_allowed(place: &Place, function: &Path) -> Result<OwnedFd> {
    let operation = || format!("open function {}", quote(function));
    let handle = open_path(function).context(operation)?;
    let opened = by_descriptor(&handle);
    let found = fs::read_link(&opened).context(operation)?;
    let allowed = place.config.template.function_directories.iter();
    let mut allowed = allowed.filter_map(|directory| fs::canonicalize(directory).ok());
    if allowed.any(|directory| found.starts_with(directory)) {
        return open(place, &opened).context(operation);
    }
    let cause = "it lies below no directory that the administrator allows";
    Err(Error::new(Kind::Invalid, operation(), cause)
        .next("name one in 'function-directories' of [template] in the configuration"))
}

/// What else is mounted in the directory is not seen.
fn open_directory(directory: &Path) -> Result<OwnedFd> {
    let operation = || format!("show {}", quote(directory));
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    restrict(open_tree(CWD, directory, flags).context(operation)?)
}

fn restrict(mount: OwnedFd) -> Result<OwnedFd> {
    let set = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let operation = || "make it read-only";
    set_attributes(&mount, set, MountAttrFlags::empty(), Depth::One).context(operation)?;
    set_propagation(&mount, MountPropagationFlags::PRIVATE, Depth::One).context(operation)?;
    Ok(mount)
}

fn open_image(place: &Place, image: &ImageSource) -> Result<OwnedFd> {
    let store = place.open_store()?;
    // The mount itself keeps them afterwards.
    let _lock = store.lock_images()?;
    let (base, _) = image::unpack(&store, image, &place.config)?;
    match base.directories.as_slice() {
        // The kernel stacks no single one.
        [only] => open_directory(only),
        _ => {
            let stack = Stack::view(base.directories.clone(), store.class());
            restrict(Detached::overlay(&stack, "a function")?.into_descriptor())
        }
    }
}

fn open_tar(place: &Place, path: &Path) -> Result<OwnedFd> {
    let store = place.open_store()?;
    let functions = store.functions();
    let mut file = File::open(path).context(|| "open it")?;
    let digest = copy(&mut file, None)?;
    let id = LayerId::of_image(&digest);
    if let Some(mount) = take(&store, &functions, &id)? {
        return Ok(mount);
    }
    unpack(place, &store, path)?;
    take(&store, &functions, &id)?.ok_or_else(|| {
        Error::new(Kind::Busy, "read it", "it was changed meanwhile").next("try again once it is written")
    })
}

/// A mount of what is unpacked; `None` if it is not there. From then on it counts as just used.
fn take(store: &Store, functions: &Layers, id: &LayerId) -> Result<Option<OwnedFd>> {
    let content = functions.content(id);
    // So that nobody collects it before the mount is there.
    let _lock = store.lock_against_collection()?;
    let Some(home) = content.parent().filter(|_| content.is_dir()) else { return Ok(None) };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let touched = File::open(home)
        .and_then(|home| Ok(futimens(&home, &Timestamps { last_access: now, last_modification: now })?));
    touched.context(|| format!("mark {} as used", quote(home)))?;
    open_directory(&content).map(Some)
}

/// What is unpacked is a copy that nobody else can change any more, so that it is what its name says.
fn unpack(place: &Place, store: &Store, path: &Path) -> Result<()> {
    let functions = store.functions();
    make_directory(functions.directory())?;
    let stage = functions.stage()?;
    let mut blob = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(stage.directory().join("blob"))
        .context(|| "copy it")?;
    let digest = copy(&mut File::open(path).context(|| "open it")?, Some(&mut blob))?;
    let compression = sniff(&blob)?;
    let content = stage.directory().join("diff");
    fs::create_dir(&content).context(|| format!("create {}", quote(&content)))?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&content, readable).context(|| format!("let {} be read", quote(&content)))?;
    let expected = Expected { digest: digest.clone(), diff_id: None };
    let limits = Limits {
        max_bytes: place.config.template.max_function_bytes.0,
        max_entries: MAX_ENTRIES,
        files: Files::Inside,
    };
    unpack_layer(&blob, &expected, compression, store.class(), &limits, &content)?;
    let id = LayerId::of_image(&digest);
    adopt(store, &id, &content)?;
    // Who adds something takes away what is old.
    drop(stage);
    if let Err(error) = collect(store) {
        tracing::debug!("{error}");
    }
    Ok(())
}

/// Of two who unpack the same at once the first one's stays.
fn adopt(store: &Store, id: &LayerId, content: &Path) -> Result<()> {
    let _lock = store.lock_for_collection()?;
    let functions = store.functions();
    if functions.has(id) { Ok(()) } else { functions.adopt(id, content) }
}

/// Reads a file to its end; its digest.
fn copy(from: &mut File, mut to: Option<&mut File>) -> Result<Digest> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_bytes(hash.finalize().into())),
            Ok(count) => {
                hash.update(&buffer[..count]);
                if let Some(to) = &mut to {
                    to.write_all(&buffer[..count]).context(|| "copy it")?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "read it"),
        }
    }
}

/// How it is compressed, by what it begins with.
fn sniff(file: &File) -> Result<Compression> {
    let mut begin = [0; 4];
    let count = std::os::unix::fs::FileExt::read_at(file, &mut begin, 0).context(|| "read it")?;
    Ok(match &begin[..count] {
        [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
        [0x1f, 0x8b, ..] => Compression::Gzip,
        _ => Compression::None,
    })
}

/// Removes unpacked functions that nobody has asked for in a day, and that no mount shows any more.
///
/// # Errors
/// Those of reading the store and /proc; what is in use is not touched.
pub fn collect(store: &Store) -> Result<()> {
    let functions = store.functions();
    if !functions.directory().is_dir() {
        return Ok(());
    }
    let old: Vec<_> = functions.list()?.into_iter().filter(|id| is_old(&functions, id)).collect();
    if !old.is_empty() {
        let used = used(&functions)?;
        let _lock = store.lock_for_collection()?;
        // One that was asked for meanwhile is not old any more.
        for id in old.iter().filter(|id| !used.contains(*id) && is_old(&functions, id)) {
            functions.remove(id)?;
        }
    }
    functions.sweep()
}

fn is_old(functions: &Layers, id: &LayerId) -> bool {
    let home = functions.directory().join(id.as_str());
    let modified = fs::metadata(home).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|age| age > OLD))
}

/// What some mount shows, in whatever mount namespace.
fn used(functions: &Layers) -> Result<HashSet<LayerId>> {
    let mut used = HashSet::new();
    for table in mount_table::read_all()? {
        used.extend(mount_table::parse(&table?).filter_map(|mount| functions.shown_by(&mount.root)));
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_the_directory_that_it_shows() {
        let functions = Layers::new("/var/lib/regen/functions".into());
        let id = "ab".repeat(32);
        // The file system may begin anywhere above.
        for root in [format!("/var/lib/regen/functions/{id}/diff"), format!("/functions/{id}/diff")] {
            assert_eq!(functions.shown_by(Path::new(&root)).unwrap().as_str(), id, "{root}");
        }
        for root in ["/", "/functions", "/layers/ab/diff", &format!("/functions/{id}"), "/functions/x/diff"] {
            assert_eq!(functions.shown_by(Path::new(root)), None, "{root}");
        }
    }

    #[test]
    fn compression_is_known_by_the_first_bytes() {
        let of = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            sniff(&file).unwrap()
        };
        assert_eq!(of(b"\x28\xb5\x2f\xfdx"), Compression::Zstd);
        assert_eq!(of(b"\x1f\x8b"), Compression::Gzip);
        assert_eq!((of(b""), of(b"app.py")), (Compression::None, Compression::None));
    }
}
