//! Namespaces by descriptor: which kind one is, and how it is joined; and what a new network namespace lacks.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::clone::{Birth, Parent, spawn};
use crate::sys::process::{ExitStatus, Process};

/// clone(2)'s flag for time namespaces, which nix does not name.
pub const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

/// `_IO(0xb7, 0x3)`, from linux/nsfs.h.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Opens a namespace by the path of its file, and makes sure that it is of this kind.
///
/// # Errors
/// Those of open(2); [`Kind::Invalid`] for a file that is no namespace, or one of another kind.
pub fn open(path: &Path, kind: CloneFlags) -> Result<File> {
    let operation = || format!("open namespace {}", quote(path));
    let file = File::open(path).context(operation)?;
    match kind_of(file.as_fd()) {
        Some(found) if found == kind.bits() => Ok(file),
        Some(_) => Err(Error::new(Kind::Invalid, operation(), "it is a namespace of another type")),
        None => Err(Error::new(Kind::Invalid, operation(), "it is no namespace")),
    }
}

fn kind_of(file: BorrowedFd<'_>) -> Option<c_int> {
    // SAFETY: the request takes no argument and only reads; on a file that is no namespace it fails with ENOTTY.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    (kind != -1).then_some(kind)
}

/// Does something in namespaces of another process. A child does it and ends, so the caller stays where it is; it has to be
/// the only thread of its process.
///
/// # Errors
/// Those of setns(2), and what `work` fails with.
pub fn visit(process: &Process, kinds: CloneFlags, work: impl FnOnce() -> nix::Result<()>) -> Result<()> {
    let operation = || format!("enter namespaces of process {}", process.pid());
    let birth = Birth { namespaces: CloneFlags::empty(), cgroup: None, parent: Parent::Caller };
    let child = spawn(birth, || match nix::sched::setns(process, kinds).and_then(|()| work()) {
        Ok(()) => 0,
        Err(errno) => errno as i32,
    })?;
    match child.reap()? {
        Some(ExitStatus::Code(0)) => Ok(()),
        Some(ExitStatus::Code(errno)) => Err(nix::Error::from_raw(errno.into())).context(operation),
        Some(ended @ ExitStatus::Signal(_)) => {
            Err(Error::new(Kind::System, operation(), format!("who went there was ended {ended}")))
        }
        None => Err(Error::new(Kind::System, operation(), "another process has taken the answer")),
    }
}

/// Sets the loopback device of the caller's network namespace up, which a new one leaves down.
///
/// # Errors
/// Those of ioctl(SIOCGIFFLAGS) and ioctl(SIOCSIFFLAGS).
pub fn loopback_up() -> Result<()> {
    let operation = || "set the loopback device up";
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).context(operation)?;
    // SAFETY: all-zero bytes are a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, source) in request.ifr_name.iter_mut().zip(b"lo") {
        *target = source.cast_signed();
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: the request reads one `ifreq`, which lives across the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == -1 { Err(std::io::Error::last_os_error()).context(operation) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_of_another_type_is_refused_and_so_is_what_is_none() {
        let net = Path::new("/proc/self/ns/net");
        open(net, CloneFlags::CLONE_NEWNET).unwrap();
        let error = open(net, CloneFlags::CLONE_NEWIPC).unwrap_err();
        assert!(error.to_string().contains("another type"), "{error}");
        let error = open(Path::new("/proc/self/status"), CloneFlags::CLONE_NEWNET).unwrap_err();
        assert!(error.to_string().contains("no namespace"), "{error}");
    }
}
