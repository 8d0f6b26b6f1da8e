//! Collection that somebody asks for: what a worker collects, and layers of images on which nothing stands.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::warm::FUNCTION_INSIDE;
use super::{Place, function};
use crate::error::Result;
use crate::ids::LayerId;
use crate::ring::prune::{Garbage, Sort, find};
use crate::ring::{Disuse, Ring, gc};
use crate::store::{Layers, Run, Store};
use crate::sys::lock::{Lock, Sharing};
use crate::sys::mount_table;

/// Whether anything is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It is only looked for.
    Look,
    /// It goes.
    Remove,
}

/// What nothing needed.
#[derive(Debug, Default)]
pub struct Pruned {
    /// All of it.
    pub garbage: Vec<Garbage>,
    /// Why layers of images that may be unused were left alone, if they were.
    pub kept: Option<&'static str>,
}

/// What is known of the use of images.
enum Images {
    /// These are unused, and nobody comes to use them while the lock is held.
    Unused(Vec<LayerId>, Lock),
    /// It cannot be told now.
    Kept(&'static str),
}

/// Collects what nothing needs: layers, blobs, layers of images, what is left of dead runs and of what was cut short; and
/// those `forks` of containers that are out of use, if any are meant.
///
/// # Errors
/// Those of reading the store and of removing. If a ring cannot be read, nothing goes.
pub fn prune(place: &Place, store: &Store, forks: Option<Disuse>, doing: Doing) -> Result<Pruned> {
    let _lock = Lock::wait(&store.worker_lock(), Sharing::Exclusive)?;
    let (images, kept) = match unused_images(place, store)? {
        Images::Unused(unused, lock) => (Some((unused, lock)), None),
        Images::Kept(why) => (None, Some(why)),
    };
    let unused = images.as_ref().map_or(&[][..], |(unused, _)| unused);
    let disused = forks.map(|forks| forks.find(store)).transpose()?.unwrap_or_default();
    let mut garbage = find(store, unused, &disused)?;
    match doing {
        Doing::Look => {}
        Doing::Remove => {
            if let Some(forks) = forks {
                remove_forks(forks, &disused, &mut garbage)?;
            }
            Ring::each(store, Ring::collect_blobs)?.try_for_each(|(_, collected)| collected)?;
            gc::collect(store)?;
            function::collect(store)?;
            store.transfers().sweep(Duration::ZERO)?;
            unused.iter().try_for_each(|id| store.layers().remove(id))?;
        }
    }
    Ok(Pruned { garbage, kept })
}

/// What somebody has come to use since it was found stays, and is not told of.
fn remove_forks(forks: Disuse, disused: &[Ring], garbage: &mut Vec<Garbage>) -> Result<()> {
    for ring in disused {
        if !forks.remove(ring)? {
            let name = ring.name().to_string();
            garbage.retain(|garbage| garbage.kind != Sort::Fork || garbage.name != name);
        }
    }
    Ok(())
}

/// The layers of images on which nothing stands. Templates name theirs in files of their own, and stand on them also while no
/// container of theirs runs.
fn unused_images(place: &Place, store: &Store) -> Result<Images> {
    let Some(lock) = store.lock_out_images()? else { return Ok(Images::Kept("an image is being unpacked")) };
    if has_templates(&place.store.join("templates")) {
        return Ok(Images::Kept("there are templates, which may stand on them"));
    }
    let layers = store.layers();
    let Some(mut needed) = mounted(&layers)? else {
        return Ok(Images::Kept("a clone's function is mounted, which may be of them"));
    };
    for (_, state) in Ring::each(store, Ring::read)? {
        let bases = state?.bases;
        needed.extend(bases.values().flatten().filter_map(|directory| layers.shown_by(directory)));
    }
    for id in Run::list(store)? {
        let Some(run) = Run::load(store, &id)? else { continue };
        let directories = run.record.base_directories.iter().chain(&run.record.base_lasting);
        needed.extend(directories.filter_map(|directory| layers.shown_by(directory)));
        needed.extend(run.record.layers);
    }
    let unused = store.layers().list()?.into_iter().filter(|id| id.is_image() && !needed.contains(id)).collect();
    Ok(Images::Unused(unused, lock))
}

fn has_templates(directory: &Path) -> bool {
    let owners = fs::read_dir(directory).into_iter().flatten().flatten();
    owners.into_iter().any(|owner| fs::read_dir(owner.path()).into_iter().flatten().next().is_some())
}

/// The layers that are mounted as they are, in whatever mount namespace; `None` if several are stacked in a clone, where
/// nobody sees which.
fn mounted(layers: &Layers) -> Result<Option<HashSet<LayerId>>> {
    let mut used = HashSet::new();
    for table in mount_table::read_all()? {
        for mount in mount_table::parse(&table?) {
            if mount.kind == "overlay" && mount.point == Path::new(FUNCTION_INSIDE) {
                return Ok(None);
            }
            used.extend(layers.shown_by(&mount.root));
        }
    }
    Ok(Some(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_known_by_its_directory() {
        let layers = Layers::new("/var/lib/regen/layers".into());
        let id = "ab".repeat(32);
        for directory in [format!("/var/lib/regen/layers/{id}/diff"), format!("/layers/{id}/diff")] {
            assert_eq!(layers.shown_by(Path::new(&directory)).unwrap().as_str(), id);
        }
        for other in ["/", "/layers/x/diff", "/srv/root", &format!("/functions/{id}/diff"), &format!("/layers/{id}")] {
            assert_eq!(layers.shown_by(Path::new(other)), None, "{other}");
        }
    }
}
