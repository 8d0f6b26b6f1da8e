//! Extended attributes: read from a layer, sorted into what a pack keeps and what overlayfs noted for itself.

use std::os::fd::BorrowedFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};
use crate::sys::xattr::{OverlayClass, path_at};

/// XATTR_LIST_MAX and XATTR_SIZE_MAX of the kernel: no list and no value is longer.
const KERNEL_MAX: usize = 65536;

/// Attributes that a pack neither carries nor sets: labels and keyed hashes belong to the machine.
const LOCAL: [&[u8]; 2] = [b"security.selinux", b"security.evm"];

/// The attribute that new children inherit their access list from.
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// A name and a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attribute {
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// What overlayfs noted about a file of a layer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notes {
    /// `opaque=y`: the directory hides the one below.
    pub(super) opaque: bool,
    /// `opaque=x`: whiteouts in the directory may be files with a `whiteout` attribute.
    pub(super) marked_whiteouts: bool,
    /// The file is such a whiteout.
    pub(super) whiteout: bool,
    /// The file was copied up from a layer below.
    pub(super) origin: bool,
    /// The name of a note that makes the file mean something which its layer alone does not hold.
    pub(super) elsewhere: Option<&'static str>,
}

/// The two ways to a file's attributes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Handle<'a> {
    /// Of a file that is open for reading or writing.
    Open(BorrowedFd<'a>),
    /// Of a name in a directory, for what cannot or must not be opened (links, devices).
    Named(BorrowedFd<'a>, &'a [u8]),
}

/// Room to read attributes into, kept from file to file.
#[derive(Debug)]
pub(super) struct Reader {
    class: OverlayClass,
    list: Vec<u8>,
    value: Vec<u8>,
}

/// Whether a pack may carry this attribute; overlay's own, escaped or not, are made from the pack's names instead.
pub(super) fn is_portable(name: &[u8]) -> bool {
    let overlay = [OverlayClass::Trusted, OverlayClass::User];
    !LOCAL.contains(&name) && !overlay.iter().any(|class| name.starts_with(class.prefix().as_bytes()))
}

impl Reader {
    pub(super) fn new(class: OverlayClass) -> Self {
        Self { class, list: vec![0; 4096], value: vec![0; KERNEL_MAX] }
    }

    /// The attributes of a file that a pack carries, sorted by name, and overlay's notes of the layer's class.
    pub(super) fn read(&mut self, file: Handle<'_>) -> Result<(Vec<Attribute>, Notes)> {
        let (mut attributes, mut notes) = (Vec::new(), Notes::default());
        let length = self.list(file)?;
        let list = std::mem::take(&mut self.list);
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let note = name.strip_prefix(self.class.prefix().as_bytes());
            if note.is_none() && !is_portable(name) {
                continue;
            }
            let Some(value) = file.get(name, &mut self.value)? else { continue };
            match note {
                Some(note) => notes.add(note, value),
                None => attributes.push(Attribute { name: name.to_vec(), value: value.to_vec() }),
            }
        }
        self.list = list;
        attributes.sort_unstable();
        Ok((attributes, notes))
    }

    fn list(&mut self, file: Handle<'_>) -> Result<usize> {
        loop {
            match file.list(&mut self.list) {
                // A file system without attributes has no attributes.
                Err(Errno::OPNOTSUPP) => return Ok(0),
                Err(Errno::RANGE) if self.list.len() < KERNEL_MAX => self.list.resize(KERNEL_MAX, 0),
                result => return result.context(|| "list its attributes"),
            }
        }
    }
}

impl Notes {
    fn add(&mut self, note: &[u8], value: &[u8]) {
        match note {
            b"opaque" => {
                self.opaque = value == b"y";
                self.marked_whiteouts = value == b"x";
            }
            b"whiteout" => self.whiteout = true,
            b"origin" => self.origin = true,
            b"redirect" => self.elsewhere = Some("redirect"),
            b"metacopy" => self.elsewhere = Some("metacopy"),
            // impure, uuid, nlink, upper, protattr and whatever comes: hints to the kernel that it can do without.
            _ => {}
        }
    }

    /// Refuses a file whose content or name is in another layer.
    pub(super) fn check(self) -> Result<()> {
        let Some(note) = self.elsewhere else { return Ok(()) };
        let cause = format!("overlay left a '{note}' attribute, so the layer alone does not hold it");
        Err(Error::new(Kind::Unsupported, "read its overlay attributes", cause)
            .next("mount with redirect_dir=nofollow,metacopy=off"))
    }
}

impl Handle<'_> {
    fn list(self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Open(file) => flistxattr(file, buffer),
            Self::Named(directory, file) => llistxattr(path_at(directory, file), buffer),
        }
    }

    fn get<'b>(self, name: &[u8], buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>> {
        let result = match self {
            Self::Open(file) => fgetxattr(file, name, &mut *buffer),
            Self::Named(directory, file) => lgetxattr(path_at(directory, file), name, &mut *buffer),
        };
        match result {
            Ok(length) => Ok(Some(&buffer[..length])),
            // Listed, but not for us to read, as `trusted.*` is outside of the initial user namespace.
            Err(Errno::NODATA) => Ok(None),
            Err(errno) => Err(errno).context(|| format!("read its attribute '{}'", name.escape_ascii())),
        }
    }

    /// The value of an attribute, if the file has it.
    pub(super) fn find(self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 4096];
        let found = match self.get(name, &mut buffer) {
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP.raw_os_error()) => None,
            Err(error) if error.errno() == Some(Errno::RANGE.raw_os_error()) => {
                return Ok(self.get(name, &mut vec![0; KERNEL_MAX])?.map(<[u8]>::to_vec));
            }
            result => result?,
        };
        Ok(found.map(<[u8]>::to_vec))
    }

    /// Sets an attribute.
    pub(super) fn set(self, name: &[u8], value: &[u8]) -> Result<()> {
        match self {
            Self::Open(file) => fsetxattr(file, name, value, XattrFlags::empty()),
            Self::Named(directory, file) => lsetxattr(path_at(directory, file), name, value, XattrFlags::empty()),
        }
        .context(|| format!("set its attribute '{}'", name.escape_ascii()))
    }
}
