//! What a chain of layers stands on, and how it is recognised again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::{Digest, LayerId};
use crate::ring::Base;
use crate::store::Store;
use crate::sys::mount_table;

/// A directory as the base: recognised by its path and inode, or, if it is itself an overlay, by the layers of that,
/// which are an image's and the same for every container that an engine makes from it.
///
/// # Errors
/// [`Kind::NotFound`] or [`Kind::Invalid`] if it is no directory.
pub(super) fn of_directory(path: &Path) -> Result<Base> {
    let operation = || format!("use {} as root file system", quote(path));
    let path = fs::canonicalize(path).context(operation)?;
    let metadata = fs::metadata(&path).context(operation)?;
    if !metadata.is_dir() {
        return Err(Error::new(Kind::Invalid, operation(), "it is not a directory"));
    }
    let mounts = mount_table::read().context(operation)?;
    let Some(Mounted { mut lowers, upper }) = mounted_overlay(&mounts, &path) else {
        let fingerprint = format!("dir:{}#{}", path.display(), metadata.ino());
        return Ok(Base { fingerprint, lasting: vec![path.clone()], directories: vec![path] });
    };
    // Docker shortens long lists of layers to names below its own directory, in which the container's is.
    let home = path.ancestors().nth(2).unwrap_or(&path);
    if let (Some(first), Some(upper)) = (lowers.first(), upper)
        && fs::canonicalize(home.join(first)).is_ok_and(|first| is_initial_layer(&first, &home.join(upper)))
    {
        lowers.remove(0);
    }
    Ok(Base { fingerprint: of_lowers(&lasting_names(&lowers, &path)), directories: vec![path], lasting: lowers })
}

/// What the lowers of a container's overlay are called for every container of the image. To a container with other ids podman
/// shows the image through mounts that have these, below a directory of that container's own and gone with it:
/// `ID/mapped/0/l/LAYER` is `l/LAYER`. What is shown so has other owners, and is another base.
fn lasting_names(lowers: &[PathBuf], merged: &Path) -> Vec<PathBuf> {
    let unmapped = |lower: &PathBuf| {
        let own = merged.parent()?;
        let mut numbered = lower.strip_prefix(own.join("mapped")).ok()?.components();
        numbered.next()?;
        Some(own.parent()?.join(numbered.as_path()))
    };
    let names: Vec<_> = lowers.iter().map(unmapped).collect();
    let mark = names.iter().any(Option::is_some).then(|| PathBuf::from("mapped"));
    names.into_iter().zip(lowers).map(|(name, lower)| name.unwrap_or_else(|| lower.clone())).chain(mark).collect()
}

/// Engines count their layers from 1: if all were thrown away, another image gets the names of the old one. So the layers
/// are also known by their inodes and, because these are given anew as well, by when they were made.
pub(super) fn of_lowers(lowers: &[PathBuf]) -> String {
    let mut hasher = Sha256::new();
    for lower in lowers {
        hasher.update(lower.as_os_str().as_encoded_bytes());
        // Engines shorten long lists of layers to names that are relative to a place that is not known here.
        if let Some(metadata) = fs::metadata(lower).ok().filter(|_| lower.is_absolute()) {
            hasher.update(format!("#{}", metadata.ino()));
            let made = metadata.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
            hasher.update(made.map(|made| format!("@{}", made.as_nanos())).unwrap_or_default());
        }
        hasher.update("\n");
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    format!("overlay:{}", &digest.hex()[..16])
}

/// An unpacked image as the base: recognised by the digests of its layers' contents.
#[must_use]
pub(super) fn of_image(store: &Store, diff_ids: &[Digest]) -> Base {
    let mut hasher = Sha256::new();
    for diff_id in diff_ids {
        hasher.update(diff_id.to_string());
        hasher.update("\n");
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    let layers = store.layers();
    let directories: Vec<PathBuf> =
        diff_ids.iter().rev().map(|diff_id| layers.content(&LayerId::of_image(diff_id))).collect();
    Base { fingerprint: format!("image:{}", &digest.hex()[..16]), lasting: directories.clone(), directories }
}

/// What is known of a mounted overlay.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    /// Uppermost first.
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
}

/// Docker puts a layer between the image and each container, with the files that it mounts over: `ID-init/diff` under
/// `ID/diff`. It goes with the container, and says nothing about the image.
fn is_initial_layer(lower: &Path, upper: &Path) -> bool {
    let split = |path: &Path| {
        let layer = path.parent()?;
        Some((layer.parent()?.to_owned(), layer.file_name()?.to_str()?.to_owned()))
    };
    match (split(lower), split(upper)) {
        (Some((there, init)), Some((here, id))) => there == here && init == id + "-init",
        _ => false,
    }
}

/// The overlay that is mounted right at `path`.
fn mounted_overlay(mountinfo: &str, path: &Path) -> Option<Mounted> {
    let mount = mount_table::parse(mountinfo).rfind(|mount| mount.point == path)?;
    if mount.kind != "overlay" {
        return None;
    }
    let options: Vec<_> = mount.options.split(',').filter_map(|option| option.split_once('=')).collect();
    let lowers = options.iter().filter(|(key, _)| key.starts_with("lowerdir"));
    // Newer kernels list each lower for itself, older ones all of them with colons between.
    let lowers: Vec<_> = lowers.flat_map(|(_, value)| value.split(':')).map(PathBuf::from).collect();
    let upper = options.iter().find(|(key, _)| *key == "upperdir").map(|(_, value)| PathBuf::from(value));
    (!lowers.is_empty()).then_some(Mounted { lowers, upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_overlay_is_known_by_its_layers() {
        let table = "36 28 0:31 / /c/merged rw,relatime - overlay overlay \
                     rw,lowerdir=/l/A:/l/B,upperdir=/c/diff,workdir=/c/work,index=off\n\
                     37 28 8:1 / /plain rw - ext4 /dev/sda rw";
        let mounted = mounted_overlay(table, Path::new("/c/merged")).unwrap();
        assert_eq!(mounted.lowers, [Path::new("/l/A"), Path::new("/l/B")]);
        assert_eq!(mounted.upper.as_deref(), Some(Path::new("/c/diff")));
        assert_eq!(mounted_overlay(table, Path::new("/plain")), None);
        assert_eq!(mounted_overlay(table, Path::new("/c")), None);
    }

    #[test]
    fn the_layer_that_docker_makes_for_each_container_is_not_the_images() {
        let upper = Path::new("/d/overlay2/c1/diff");
        assert!(is_initial_layer(Path::new("/d/overlay2/c1-init/diff"), upper));
        for other in ["/d/overlay2/c2-init/diff", "/e/overlay2/c1-init/diff", "/d/overlay2/c1/diff", "/", "/d"] {
            assert!(!is_initial_layer(Path::new(other), upper), "{other}");
        }
        assert!(!is_initial_layer(Path::new("/"), Path::new("/")));
    }

    #[test]
    fn layers_that_podman_maps_for_each_container_are_those_of_the_image() {
        let of = |id: &str, lowers: &[&str]| {
            let lowers: Vec<_> = lowers.iter().map(|lower| PathBuf::from(lower.replace("ID", id))).collect();
            lasting_names(&lowers, &Path::new("/p/overlay").join(id).join("merged"))
        };
        let mapped = of("c1", &["/p/overlay/ID/mapped/0/l/A", "/p/overlay/ID/mapped/1/l/B"]);
        assert_eq!(mapped, ["/p/overlay/l/A", "/p/overlay/l/B", "mapped"].map(PathBuf::from));
        assert_eq!(of("c2", &["/p/overlay/ID/mapped/0/l/A", "/p/overlay/ID/mapped/1/l/B"]), mapped);
        for plain in ["/p/overlay/l/A", "l/A", "/p/overlay/other/mapped/0/l/A", "/p/overlay/c1/mapped"] {
            assert_eq!(of("c1", &[plain]), [PathBuf::from(plain)]);
        }
    }

    #[test]
    fn layers_that_were_made_anew_are_another_base() {
        let parent = tempfile::tempdir().unwrap();
        let lowers = [parent.path().join("1"), parent.path().join("2")];
        let make = || lowers.iter().for_each(|lower| fs::create_dir(lower).unwrap());
        make();
        let before = of_lowers(&lowers);
        assert_eq!(of_lowers(&lowers), before);
        assert_ne!(of_lowers(&lowers[..1]), before);
        lowers.iter().for_each(|lower| fs::remove_dir(lower).unwrap());
        make();
        assert_ne!(of_lowers(&lowers), before);
        let relative = [PathBuf::from("1/fs"), PathBuf::from("2/fs")];
        assert_eq!(of_lowers(&relative), of_lowers(&relative));
    }

    #[test]
    fn a_directory_that_was_made_anew_is_another_base() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("rootfs");
        fs::create_dir(&path).unwrap();
        let before = of_directory(&path).unwrap();
        assert_eq!(of_directory(&path).unwrap(), before);
        fs::rename(&path, parent.path().join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        assert_ne!(of_directory(&path).unwrap().fingerprint, before.fingerprint);
    }
}
