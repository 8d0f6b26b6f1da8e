//! The file of a unix socket: made beside its path, put there in one step, removed only if it is still there.
//!
//! Its directory may be a container's too, which then can put anything at any name in it, at any time. So the directory is
//! opened once, and what is done to the file is done to the one that was made: never to what has its name.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::{Company, holder, is};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::{TEMPORARY_PREFIX, by_descriptor, open_path};
use crate::sys::socket::{Address, Family, PATH_LIMIT, Socket, Transport};

/// Everybody may connect, unless the file that was there before says otherwise. The directory is the better guard.
const MODE: u32 = 0o666;

#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    company: Company,
    directory: File,
    /// What it is called there before it is published.
    temporary: Option<OsString>,
    /// Device and inode.
    identity: (u64, u64),
}

/// What is at a path.
#[derive(Debug)]
enum Occupant {
    Nobody,
    /// The file of a socket that is no more.
    Stale(Metadata),
    /// The file of a socket that somebody has.
    Live(Metadata),
    /// A file that is no socket, or a link.
    Other,
}

impl SocketFile {
    /// Binds a socket beside a path that it can take.
    pub(super) fn bind(socket: &Socket, path: &Path, company: Company) -> Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        check(path, company)?;
        let handle = open_path(directory).map_err(|error| match error.kind() {
            Kind::NotFound => error.next(format!("make directory {}", quote(directory))),
            _ => error,
        })?;
        let prefix = temporary_prefix(path);
        remove_leftovers(directory, &prefix)?;
        let name = OsString::from(format!("{prefix}{}", socket.inode()?));
        // A path of any length fits if its directory is named by a descriptor; the socket then bears an odd name.
        let long = directory.join(&name);
        let bound = match long.as_os_str().len() {
            ..=PATH_LIMIT => long,
            _ => by_descriptor(&handle).join(&name),
        };
        socket.bind(&Address::Path(bound))?;
        let identity = identity_at(&handle, &name).context(|| format!("look at the new socket for {}", quote(path)))?;
        Ok(Self { path: path.to_owned(), company, directory: handle, temporary: Some(name), identity })
    }

    /// The file that is at a path; `None` if that is no socket.
    pub(super) fn present(path: &Path) -> Result<Option<Self>> {
        Ok(match occupant(path)? {
            Occupant::Live(status) | Occupant::Stale(status) => Some(Self {
                path: path.to_owned(),
                company: Company::Beside,
                directory: open_path(path.parent().unwrap_or(Path::new("/")))?,
                temporary: None,
                identity: (status.dev(), status.ino()),
            }),
            Occupant::Nobody | Occupant::Other => None,
        })
    }

    pub(super) fn publish(&mut self) -> Result<()> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let operation = || format!("put the socket to {}", quote(&self.path));
        let (mode, owner) = match check(&self.path, self.company)? {
            Some(before) => (before.mode() & 0o777, Some((before.uid(), before.gid()))),
            None => (MODE, None),
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.directory, temporary, flags, Mode::empty()).context(operation)?);
        let status = file.metadata().context(operation)?;
        if (status.dev(), status.ino()) != self.identity || !status.file_type().is_socket() {
            return Err(Error::new(Kind::State, operation(), "somebody has put another file in its place")
                .next("choose a directory that nobody else may write to"));
        }
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            match chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH) {
                // Who is not root made the old one too, or has no say in it.
                Err(Errno::PERM) => {}
                other => other.context(operation)?,
            }
        }
        fs::set_permissions(by_descriptor(&file), Permissions::from_mode(mode)).context(operation)?;
        renameat(&self.directory, temporary, &self.directory, self.name()).context(operation)?;
        self.temporary = None;
        Ok(())
    }

    pub(super) fn remove(self) -> Result<()> {
        // One that was not published is removed when this is dropped.
        if self.temporary.is_some() {
            return Ok(());
        }
        let operation = || format!("remove socket {}", quote(&self.path));
        match identity_at(&self.directory, self.name()) {
            Ok(identity) if identity == self.identity => {
                unlinkat(&self.directory, self.name(), AtFlags::empty()).context(operation)
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTSOCK) => Ok(()),
            Err(errno) => Err(errno).context(operation),
        }
    }

    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Whoever binds the path next removes what is left.
            let _ = unlinkat(&self.directory, temporary, AtFlags::empty());
        }
    }
}

/// What the names of sockets begin with that are to be put to this path. They are short enough to be bound, whatever the
/// path is.
pub(super) fn temporary_prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let end = (0..=name.len().min(60)).rev().find(|end| name.is_char_boundary(*end)).unwrap_or_default();
    format!("{TEMPORARY_PREFIX}{}-", &name[..end])
}

/// Whether a path can be taken, and the file that is there.
fn check(path: &Path, company: Company) -> Result<Option<Metadata>> {
    let operation = || format!("take path {}", quote(path));
    match (occupant(path)?, company) {
        (Occupant::Nobody, _) => Ok(None),
        (Occupant::Stale(status), _) | (Occupant::Live(status), Company::Beside) => Ok(Some(status)),
        (Occupant::Live(_), Company::Alone) => {
            Err(holder::in_use(operation(), "the socket".to_owned(), holder::of_path(path)))
        }
        (Occupant::Other, _) => Err(Error::new(Kind::Exists, operation(), "a file is there that is no socket")
            .next("remove it, or choose another path")),
    }
}

fn occupant(path: &Path) -> Result<Occupant> {
    let status = match fs::symlink_metadata(path) {
        Ok(status) => status,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(error).context(|| format!("look at {}", quote(path))),
    };
    if !status.file_type().is_socket() {
        return Ok(Occupant::Other);
    }
    Ok(if is_live(path)? { Occupant::Live(status) } else { Occupant::Stale(status) })
}

/// Whether somebody has the socket whose file this is. A datagram socket is refused by one that takes connections too, with
/// another error than by nobody, and so leaves no trace there.
fn is_live(path: &Path) -> Result<bool> {
    let asking = Socket::new(Family::Unix, Transport::Datagram)?;
    match asking.connect(&Address::Path(path.to_owned())) {
        Err(error) if is(&error, Errno::CONNREFUSED) || is(&error, Errno::NOENT) => Ok(false),
        Ok(()) | Err(_) => Ok(true),
    }
}

/// Removes what keepers left that were killed before they published.
fn remove_leftovers(directory: &Path, prefix: &str) -> Result<()> {
    let operation = || format!("read directory {}", quote(directory));
    for entry in fs::read_dir(directory).context(operation)? {
        let entry = entry.context(operation)?;
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        if let Occupant::Stale(_) = occupant(&path)? {
            // Somebody else may have removed it.
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Which file has this name; ENOTSOCK for one that is no socket's.
fn identity_at(directory: &File, name: &OsStr) -> rustix::io::Result<(u64, u64)> {
    let status = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Socket {
        return Err(Errno::NOTSOCK);
    }
    Ok((status.st_dev, status.st_ino))
}
