//! What the states of a ring hold, without running them: a file to read, a part to put back, the whole to look around in.
//!
//! ```text
//! cat      look ── private view ── open inside of it ── copy
//! restore  look ── private view ── plan ── stage ── swap    into a directory, or into the container that has the ring
//! mount    look ── mount ── stays                           until somebody unmounts it
//! ```
//!
//! Paths are those inside of the container: links are followed inside of its root, never out of it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use super::{Place, name};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::pack::{Change, Restoration, Restored};
use crate::ring::Ring;
use crate::ring::look::Look;
use crate::ring::selector::Selector;
use crate::runtime::{self, StateRoot, Status};
use crate::store::{Run, make_directory};
use crate::sys::fs::by_descriptor;
use crate::sys::lock::{Lock, Sharing};

/// The kernel gives up on a path with `..` in it if something was renamed meanwhile.
const RETRIES: usize = 32;
const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Where something is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To<'a> {
    /// The container that has the ring now, at the same path.
    Container,
    /// A directory of the host, under its own name; made if it is not there.
    Directory(&'a Path),
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It is.
    Done,
    /// It is only said what would be.
    Planned,
}

/// What was put back, or would be.
#[derive(Debug)]
pub struct PutBack {
    /// The number of the entry; `None` for the bare base.
    pub entry: Option<u64>,
    /// The container; `None` for a directory of the host.
    pub container: Option<ContainerId>,
    /// Each path, inside of the container or on the host, and what is done about it.
    pub changes: Vec<(Change, PathBuf)>,
    /// What was done.
    pub done: Restored,
}

/// Writes the content of a file.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such entry or file, [`Kind::Invalid`] if it is no regular file, [`Kind::Usage`] for a path
/// with `..` in it, else those of the view and of reading and writing. That nobody reads on is none.
pub fn cat(place: &Place, ring: &Ring, selector: &Selector, path: &Path, out: &mut dyn Write) -> Result<()> {
    let look = ring.look(selector, place.root.path())?;
    let operation = || format!("read {} of {}", quote(path), look.subject());
    names_of(path).context(operation)?;
    let view = look.view()?;
    let root = open_root(&view.root()).context(operation)?;
    let handle = open_inside(&root, path, HANDLE, ResolveFlags::empty()).context(operation)?;
    match FileType::from_raw_mode(fstat(&handle).context(operation)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => {
            return Err(Error::new(Kind::Invalid, operation(), "it is a directory")
                .next("'regen ring restore … --to DIR' gets all of it, 'regen ring mount' shows it"));
        }
        _ => return Err(Error::new(Kind::Invalid, operation(), "it is no regular file")),
    }
    let mut file = File::open(by_descriptor(&handle)).context(operation)?;
    match std::io::copy(&mut file, out).and_then(|_| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context(operation),
    }
}

/// Puts a file, or a directory with all below it, back. What the saved state does not have stays.
///
/// Until all of it is there under other names, nothing is touched; then each file gets its name in one step.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such entry or path, [`Kind::State`] if no container has the ring or its users are others,
/// [`Kind::Exists`] if a file is where a directory is to be, or the other way round, else those of reading and writing.
pub fn restore(
    place: &Place,
    ring: &Ring,
    selector: &Selector,
    what: (&Path, To<'_>),
    doing: Doing,
) -> Result<PutBack> {
    let (path, to) = what;
    let look = ring.look(selector, place.root.path())?;
    let operation = || format!("restore {} of {}", quote(path), look.subject());
    let names = names_of(path).context(operation)?;
    let view = look.view()?;
    let root = open_root(&view.root()).context(operation)?;
    let flags = HANDLE | OFlags::NOFOLLOW;
    open_inside(&root, path, flags, ResolveFlags::empty()).context(operation)?;
    let target = match to {
        To::Directory(directory) => Target::of_directory(&look, directory, &names, doing),
        To::Container => Target::of_container(ring, &look, &names),
    }
    .context(operation)?;
    let (before, way) = names.split_at(target.there);
    let above = joined(before);
    let source = open_inside(&root, &above, DIRECTORY, ResolveFlags::empty()).context(operation)?;
    let class = ring.store().class();
    let restoration = Restoration::plan((source, above), target.directory, way, class).context(operation)?;
    let changes = restoration.changes().map(|(change, path)| (change, target.shown.join(path))).collect();
    let done = match doing {
        Doing::Done => restoration.carry_out().context(operation)?,
        Doing::Planned => Restored::default(),
    };
    Ok(PutBack { entry: look.entry(), container: target.container, changes, done })
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What is restored into.
struct Target {
    directory: OwnedFd,
    container: Option<ContainerId>,
    /// How many of the names that lead to what is wanted lead to this directory.
    there: usize,
    /// The directory, for people.
    shown: PathBuf,
    /// Nobody else puts anything back there, which has the same names at first, and nobody makes a snapshot of it.
    _lock: Option<Lock>,
}

impl Target {
    fn of_directory(look: &Look, directory: &Path, names: &[OsString], doing: Doing) -> Result<Self> {
        let operation = || format!("open {}", quote(directory));
        let opened = match (fs::metadata(directory), doing) {
            // What is in an empty directory says what would be done in one that is not there.
            (Err(error), Doing::Planned) if error.kind() == ErrorKind::NotFound => look.nothing()?,
            (Err(error), Doing::Done) if error.kind() == ErrorKind::NotFound => {
                make_directory(directory)?;
                directory.to_owned()
            }
            (_, Doing::Planned | Doing::Done) => directory.to_owned(),
        };
        let lock = (doing == Doing::Done).then(|| Lock::wait_at(&opened, Sharing::Exclusive)).transpose()?;
        Ok(Self {
            directory: openat(CWD, &opened, DIRECTORY, Mode::empty()).context(operation)?,
            container: None,
            there: names.len().saturating_sub(1),
            shown: directory.to_owned(),
            _lock: lock,
        })
    }

    /// The deepest directory on the way that the container has.
    fn of_container(ring: &Ring, look: &Look, names: &[OsString]) -> Result<Self> {
        let (root, container, upper) = container_root(ring, look)?;
        // Its directories are its own to lock, this one is not.
        let lock = Lock::wait_at(&upper, Sharing::Exclusive)?;
        for there in (0..names.len().max(1)).rev() {
            let shown = joined(&names[..there]);
            match open_inside(&root, &shown, DIRECTORY, ResolveFlags::NO_XDEV) {
                Err(Errno::NOENT) if there > 0 => {}
                Err(Errno::XDEV) => {
                    let cause = "something else is mounted there in the container, which is not in the ring";
                    return Err(Error::new(Kind::State, format!("open {}", quote(&shown)), cause)
                        .next("restore it with '--to DIR'"));
                }
                other => {
                    let directory = other.context(|| format!("open {} in container '{container}'", quote(&shown)))?;
                    return Ok(Self { directory, container: Some(container), there, shown, _lock: Some(lock) });
                }
            }
        }
        Err(Error::new(Kind::System, "open the container's root", "it has none"))
    }
}

/// The root of the container that has the ring, as its first process sees it, and the upper that this writes to.
fn container_root(ring: &Ring, look: &Look) -> Result<(OwnedFd, ContainerId, PathBuf)> {
    let operation = || format!("look for the container that has ring '{}'", ring.name());
    let nobody =
        || Error::new(Kind::State, operation(), "no container runs on it").next("say where to put it with '--to DIR'");
    let id = ring.read()?.run.ok_or_else(nobody)?;
    let run = Run::load(ring.store(), &id)?.ok_or_else(nobody)?;
    let container = name::container_of(&run)?;
    let state_root = StateRoot::new(&run.record.state_root);
    let process = || {
        let state = runtime::state(&state_root, &container)?;
        match state.status {
            Status::Created | Status::Running | Status::Paused => state.init.ok_or_else(nobody),
            Status::Creating | Status::Stopped => Err(nobody()),
        }
    };
    let init = process()?;
    if look.entry().is_some() && run.record.id_map.as_deref() != look.id_map() {
        let cause = format!("the users of container '{container}' are others than those of the saved state");
        return Err(Error::new(Kind::State, operation(), cause).next("restore it with '--to DIR'"));
    }
    let root = open_root(Path::new(&format!("/proc/{}/root", init.pid))).context(operation)?;
    // A pid is given anew, so the same process has to be there still; and it may have gone to another root.
    if process()? != init {
        return Err(nobody());
    }
    if run.record.device != Some(fstat(&root).context(operation)?.st_dev) {
        let cause = format!("the root of container '{container}' is not what the ring gave it");
        return Err(Error::new(Kind::State, operation(), cause).next("restore it with '--to DIR'"));
    }
    Ok((root, container, run.upper()))
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, HANDLE | OFlags::DIRECTORY, Mode::empty()).context(|| format!("open {}", quote(path)))
}

/// Opens a path inside of a root, whatever links it has on its way.
fn open_inside(root: &OwnedFd, path: &Path, flags: OFlags, more: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    for _ in 0..RETRIES {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// The names of a path inside of a container; none for its root.
fn names_of(path: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::new(Kind::Usage, "read the path", "it has '..' in it").next("write it without"));
            }
        }
    }
    Ok(names)
}

fn joined(names: &[OsString]) -> PathBuf {
    Path::new("/").join(names.iter().collect::<PathBuf>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_from_the_containers_root() {
        let names = |path: &str| names_of(Path::new(path)).map(|names| joined(&names));
        assert_eq!(names("/srv//a/./b/").unwrap(), Path::new("/srv/a/b"));
        assert_eq!(names("srv").unwrap(), Path::new("/srv"));
        assert_eq!(names("/").unwrap(), Path::new("/"));
        assert_eq!(names("/srv/../etc").unwrap_err().kind(), Kind::Usage);
    }
}
