//! Volumes that belong to a ring: bind mounts whose changes go into the run's upper, at the place where the container sees
//! them, so that one rename seals root and volumes.
//!
//! ```text
//! container   /                     /data
//! upper       runs/ID/upper         runs/ID/upper/data
//! lowers      layers/…/diff, base   layers/…/diff/data, the mount's source
//! ```

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::base;
use super::load::Plan;
use super::request::RingRequest;
use crate::bundle::volume::{check_places, source_at};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::overlay::{Detached, Stack, Upper};
use crate::ring::Rebase;
use crate::ring::entry::Entry;
use crate::store::{Run, Store, Volume, copy_root_attributes, make_directory};

/// The volumes of a container: those that it asks for, and those of the entry that it starts from.
///
/// # Errors
/// [`Kind::Invalid`] for a place without a mount of a directory, [`Kind::State`] for another source than the entry's; where it
/// may be put on another base, it may have another source, or none.
pub(super) fn plan(plan: &Plan, request: &RingRequest, entry: Option<&Entry>) -> Result<Vec<Volume>> {
    find((plan.spec.as_ref(), &plan.bundle), &request.volumes, entry, request.rebase)
}

fn find(
    (spec, bundle): (Option<&Spec>, &Path),
    wanted: &[PathBuf],
    entry: Option<&Entry>,
    rebase: Rebase,
) -> Result<Vec<Volume>> {
    let before = entry.map(|entry| entry.volumes.clone()).unwrap_or_default();
    let mut places: Vec<PathBuf> = wanted.to_vec();
    for place in before.keys().filter(|place| !wanted.contains(place)) {
        match (source_at(spec, place), rebase) {
            (Ok(_), _) => places.push(place.clone()),
            (Err(_), Rebase::Allowed) => {}
            (Err(error), Rebase::Refused) => {
                let operation = "start from an entry with a volume that this container has not";
                return Err(error.during(operation).next("mount it, or '--rebase' to go on without"));
            }
        }
    }
    places.sort();
    check_places(&places)?;
    let mut volumes = Vec::new();
    for place in places {
        let operation = || format!("use volume '{}'", place.display());
        let found = base::of_directory(&bundle.join(source_at(spec, &place)?)).context(operation)?;
        if let Some(old) = before.get(&place).filter(|old| **old != found.fingerprint)
            && rebase == Rebase::Refused
        {
            let cause = format!("it was made over {old}, not over {}", found.fingerprint);
            return Err(Error::new(Kind::State, operation(), cause)
                .next("mount what it was made over, or '--rebase' to put it on this one"));
        }
        let source = found.directories.into_iter().next().unwrap_or_default();
        volumes.push(Volume { place, source, fingerprint: found.fingerprint });
    }
    Ok(volumes)
}

/// The overlays of a run's volumes, each with the place at which the container sees it.
///
/// What they need in the upper is made first: this comes before the root is mounted.
#[derive(Debug, Default)]
pub(super) struct Prepared(Vec<(PathBuf, Stack)>);

impl Prepared {
    /// Makes in the upper the directories in which volumes take their changes. They, and those on the way to them, look
    /// like what they cover.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the way to a volume leads over something that is no directory, else those of making files.
    pub(super) fn make(store: &Store, run: &Run, fate: crate::overlay::Fate) -> Result<Self> {
        let mut prepared = Self::default();
        for (index, volume) in run.record.volumes.iter().enumerate() {
            let operation = || format!("use volume '{}'", volume.place.display());
            let mut own: Vec<PathBuf> = run.record.layers.iter().rev().map(|id| store.layers().content(id)).collect();
            let mut below = run.record.lowers(store);
            let mut upper = run.upper();
            let mut parts = volume.inside().components().peekable();
            while let Some(part) = parts.next() {
                own = run_down(run, &own, part.as_ref()).context(operation)?;
                below = run_down(run, &below, part.as_ref()).context(operation)?;
                upper.push(part);
                // Two volumes may share a part of their ways.
                if !upper.is_dir() {
                    make_directory(&upper)?;
                    let like = if parts.peek().is_some() { &below } else { &own };
                    let default = if parts.peek().is_some() { Path::new("/") } else { volume.source.as_path() };
                    copy_root_attributes(like.first().map_or(default, PathBuf::as_path), &upper).context(operation)?;
                }
            }
            own.push(volume.source.clone());
            let work = run.volume_work(index);
            make_directory(&work)?;
            let upper = Some(Upper { directory: upper, work, fate });
            prepared.0.push((volume.place.clone(), Stack { lowers: own, upper, class: run.record.class }));
        }
        Ok(prepared)
    }

    /// Mounts them, attached nowhere yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn mount(&self) -> Result<Vec<(PathBuf, OwnedFd)>> {
        let mount = |(place, stack): &(PathBuf, Stack)| {
            let subject = format!("volume '{}'", place.display());
            Ok((place.clone(), Detached::overlay(stack, &subject)?.into_descriptor()))
        };
        self.0.iter().map(mount).collect()
    }
}

/// What of `directories`, uppermost first, shows in their child of that name.
fn run_down(run: &Run, directories: &[PathBuf], name: &Path) -> Result<Vec<PathBuf>> {
    let mut shown = Vec::new();
    for directory in directories {
        let path = directory.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.context(|| format!("look at {}", quote(&path)))?,
        };
        if metadata.is_dir() {
            let covers = run.record.class.is_opaque(&path)?;
            shown.push(path);
            if covers {
                break;
            }
        } else if metadata.is_symlink() && shown.is_empty() {
            let cause = format!("{} is a symbolic link", quote(name));
            return Err(Error::new(Kind::Invalid, "follow its path", cause).next("name the volume by where it leads"));
        } else {
            // A whiteout, or a file that the mount will not find either.
            break;
        }
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_is_refused_with_both_named() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir(&source).unwrap();
        let spec = serde_json::json!({"ociVersion": "1.0.2", "mounts": [
            {"destination": "/data", "type": "bind", "source": "source"}]});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let plan = |entry: Option<&Entry>, wanted: &[PathBuf], rebase| {
            find((Some(&spec), directory.path()), wanted, entry, rebase)
        };
        let data = PathBuf::from("/data");
        let first = plan(None, std::slice::from_ref(&data), Rebase::Refused).unwrap();
        assert_eq!((first.len(), &first[0].source), (1, &fs::canonicalize(&source).unwrap()));
        assert_eq!(plan(None, &[], Rebase::Refused).unwrap(), []);
    }
}
