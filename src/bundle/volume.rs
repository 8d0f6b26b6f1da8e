//! Directories of the host's that a container sees as its own: bind mounts, of which some are volumes of its ring. Pure.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use crate::error::{Error, Kind, Result};

/// Reads the places of volumes: absolute, plain paths, none in another one.
///
/// # Errors
/// [`Kind::Invalid`], naming the path.
pub fn parse_places<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<PathBuf>> {
    let mut places = texts.map(parse_place).collect::<Result<Vec<_>>>()?;
    places.sort();
    places.dedup();
    check_places(&places)?;
    Ok(places)
}

fn parse_place(text: &str) -> Result<PathBuf> {
    let refuse = |cause: &str| {
        Err(Error::new(Kind::Invalid, format!("read volume '{}'", text.escape_debug()), cause)
            .next("name it as the mount does: /data"))
    };
    let path = Path::new(text);
    if !path.is_absolute() || text.chars().any(char::is_control) {
        return refuse("it is no absolute path");
    }
    let plain = |part: &Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.components().all(|part| plain(&part)) {
        return refuse("it has '..' in it");
    }
    if path.components().count() < 2 {
        return refuse("the root is the ring's own");
    }
    Ok(path.components().collect())
}

/// Refuses volumes that lie in one another. They are sorted.
///
/// # Errors
/// [`Kind::Invalid`], naming both.
pub fn check_places(places: &[PathBuf]) -> Result<()> {
    for (index, place) in places.iter().enumerate() {
        if let Some(inner) = places[index + 1..].iter().find(|other| other.starts_with(place)) {
            let cause = format!("it lies in the volume '{}'", place.display());
            return Err(Error::new(Kind::Invalid, format!("read volume '{}'", inner.display()), cause)
                .next("name the outer one only"));
        }
    }
    Ok(())
}

/// The directory of the host's that a specification mounts at `place`. Relative ones start at the bundle. Whether it is a
/// directory is not looked at.
///
/// # Errors
/// [`Kind::Invalid`] if there is no bind mount at that place.
pub fn source_at(spec: Option<&Spec>, place: &Path) -> Result<PathBuf> {
    let refuse = |cause: &str| {
        Err(Error::new(Kind::Invalid, format!("use volume '{}'", place.display()), cause)
            .next("mount a directory of the host's there, as with 'podman run -v'"))
    };
    let mounts = spec.and_then(|spec| spec.mounts().as_deref()).unwrap_or_default();
    let at_place = |mount: &&Mount| mount.destination().components().eq(place.components());
    // The last one is the one that is seen.
    let Some(mount) = mounts.iter().rev().find(at_place) else { return refuse("the container has no mount there") };
    let options = mount.options().as_deref().unwrap_or_default();
    let binds = |word: &str| word == "bind" || word == "rbind";
    match mount.source() {
        Some(source) if mount.typ().as_deref().is_some_and(binds) || options.iter().any(|option| binds(option)) => {
            Ok(source.clone())
        }
        Some(_) | None => refuse("what is mounted there is no directory of the host's"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_plain_absolute_and_apart() {
        let read = |texts: &[&str]| parse_places(texts.iter().copied());
        assert_eq!(read(&["/home/", "/data", "/data"]).unwrap(), [Path::new("/data"), Path::new("/home")]);
        assert!(read(&["/data", "/data2", "/data-a"]).is_ok());
        for bad in [&["data"][..], &["/"], &[""], &["/a/../b"], &["/a", "/a/b"], &["/a/b/c", "/b", "/a/b"], &["/a\n"]] {
            let line = read(bad).unwrap_err().to_string();
            assert!(line.contains("read volume") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_volume_is_the_last_bind_mount_at_its_place() {
        let spec: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "mounts": [
            {"destination": "/data", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/data/", "type": "bind", "source": "/srv/a"},
            {"destination": "/home", "type": "none", "source": "/srv/h", "options": ["rbind", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        ]}))
        .unwrap();
        let at = |place: &str| source_at(Some(&spec), Path::new(place));
        assert_eq!((at("/data").unwrap(), at("/home").unwrap()), ("/srv/a".into(), "/srv/h".into()));
        assert!(at("/tmp").unwrap_err().to_string().contains("no directory of the host's"));
        assert!(at("/other").unwrap_err().to_string().contains("no mount there"));
        assert!(source_at(None, Path::new("/data")).is_err());
    }
}
