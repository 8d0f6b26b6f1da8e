//! The running binary, out of the reach of containers.
//!
//! A process that enters a container is the runtime's own program until it executes the container's. Through
//! `/proc/PID/exe` of that moment a hostile container can open the runtime's file on the host and overwrite it
//! (the class of CVE-2019-5736). So the verbs that put a process into a container first re-execute themselves from
//! a *sealed* view of their file: a detached, read-only bind mount that is in no mount namespace, which nobody can
//! remount or unmount, and which costs no copy. Where the caller may not make one (without privileges), the file is
//! copied into a sealed memfd.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, openat};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::mount::{Depth, set_attributes};
use crate::error::{Context, Error, Kind, Result};

/// The running binary, also after its file was replaced or renamed; what `current_exe` gives may be a path that
/// exists nowhere.
pub const SELF: &str = "/proc/self/exe";

/// Set across the re-execution: a view that does not look sealed afterwards is an error, not a reason to try again.
const MARK: &str = "REGEN_OCI_SEALED";

/// Re-executes the program from a sealed view of its file, unless it already runs from one.
///
/// Must be called single-threaded, before anything is opened or started. Returns only if the program is sealed.
///
/// # Errors
/// If neither a read-only view nor a copy could be made.
pub fn seal() -> Result<()> {
    let operation = || "seal the runtime's binary against the container";
    let marked = std::env::var_os(MARK).is_some();
    if is_sealed().context(operation)? {
        if marked {
            // SAFETY: the program is still single-threaded, nobody else reads the environment.
            unsafe { std::env::remove_var(MARK) };
        }
        return Ok(());
    }
    if marked {
        let cause = "it still looks writable after the re-execution";
        return Err(Error::new(Kind::System, operation(), cause).next(format!("unset {MARK} if you set it")));
    }
    let file = match read_only_view() {
        Ok(file) => file,
        Err(_) => sealed_copy().context(operation)?,
    };
    Err(execute(&file)).context(operation)
}

/// Sets a variable of our own environment to `1`, for us after a re-execution and for our children.
///
/// Must be called single-threaded.
pub fn remember(variable: &'static str) {
    // SAFETY: the program is single-threaded, nobody else reads the environment.
    unsafe { std::env::set_var(variable, "1") };
}

/// A detached mount has no path: the kernel shows the file, which is its root, as `/`. A memfd shows its seals.
fn is_sealed() -> io::Result<bool> {
    let link = std::fs::read_link(SELF)?;
    if link == Path::new("/") {
        let flags = rustix::fs::statvfs(SELF)?.f_flag;
        return Ok(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    }
    if !link.as_os_str().as_bytes().starts_with(b"/memfd:") {
        return Ok(false);
    }
    Ok(fcntl_get_seals(File::open(SELF)?).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

fn read_only_view() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, SELF, flags)?;
    set_attributes(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty(), Depth::One)?;
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let mut source = File::options().read(true).custom_flags(libc::O_CLOEXEC).open(SELF)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("regen", flags)?);
    io::copy(&mut source, &mut copy)?;
    fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    // Executing needs a descriptor that is not open for writing.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Unmaps the pages of the program's own code and constants, which come back as they are needed: the kernel maps sixteen
/// around each that is used, and what reading the command line and a specification took is of no use to a process that
/// then waits for a container for as long as that lives.
pub fn forget_code() {
    unsafe extern "C" {
        // The linker's names for the beginning of the program and the end of its code.
        static __executable_start: u8;
        static etext: u8;
    }
    let page = rustix::param::page_size();
    let begin = (&raw const __executable_start).addr().next_multiple_of(page);
    let end = (&raw const etext).addr() / page * page;
    let Some(length) = end.checked_sub(begin) else { return };
    // SAFETY: the range is what the linker made of code and constants: a private mapping of the program's file that
    // nothing has written to, so that every page of it is read from the file again, with the same content.
    let result = unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(begin), length, libc::MADV_DONTNEED) };
    // A kernel that does not want to keeps the pages, which is no harm. The linker may leave a page unused between constants
    // and code: that is told as ENOMEM, once everything around it has been done.
    let error = io::Error::last_os_error();
    debug_assert!(result == 0 || error.raw_os_error() == Some(libc::ENOMEM), "madvise: {error}");
}

/// Only returns on failure.
fn execute(file: &OwnedFd) -> io::Error {
    let strings = |texts: Vec<Vec<u8>>| -> io::Result<Vec<CString>> {
        texts.into_iter().map(|text| CString::new(text).map_err(io::Error::from)).collect()
    };
    let arguments = std::env::args_os().map(|argument| argument.as_bytes().to_vec()).collect();
    let assignment = |name: &OsStr, value: &OsStr| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let mut variables: Vec<Vec<u8>> = std::env::vars_os().map(|(name, value)| assignment(&name, &value)).collect();
    variables.push(assignment(OsStr::new(MARK), OsStr::new("1")));
    let (arguments, variables) = match (strings(arguments), strings(variables)) {
        (Ok(arguments), Ok(variables)) => (arguments, variables),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    match nix::unistd::fexecve(file.as_fd().as_raw_fd(), &arguments, &variables) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_code_and_constants_come_back() {
        let before: Vec<String> = (0..100_u64).map(|number| format!("{number:>5}")).collect();
        forget_code();
        let after: Vec<String> = (0..100_u64).map(|number| format!("{number:>5}")).collect();
        assert_eq!(before, after);
    }
}
