//! Keyrings: a container sees none of its maker's keys.

use std::io;

use crate::error::{Context, Error, Kind, Result};

/// Gives the process a session keyring of its own called `name`, so that a container never sees the caller's keys.
/// A kernel without keyrings has nothing to hide.
///
/// # Errors
/// Those of keyctl(2), such as a full quota.
pub fn join_session_keyring(name: &str) -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let operation = || format!("join session keyring '{name}'");
    let text = std::ffi::CString::new(name).map_err(|_| Error::new(Kind::Invalid, operation(), "a NUL in the name"))?;
    // SAFETY: keyctl(JOIN_SESSION_KEYRING, name) reads a NUL-terminated string, which `text` keeps alive.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, text.as_ptr()) };
    match (result, io::Error::last_os_error()) {
        (-1, error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        (-1, error) => Err(error).context(operation),
        (serial, _) => let_possessors_search(serial).context(operation),
    }
}

/// Whoever is in the session may find it, also as another user, as every runtime has it.
fn let_possessors_search(serial: libc::c_long) -> io::Result<()> {
    const KEYCTL_DESCRIBE: libc::c_long = 6;
    const KEYCTL_SETPERM: libc::c_long = 5;
    const USER_SEARCH: libc::c_ulong = 0x0008_0000;
    let mut text = [0_u8; 256];
    // SAFETY: keyctl(DESCRIBE, serial, buffer, size) writes at most `size` bytes into the buffer, which outlives it.
    let length = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, serial, text.as_mut_ptr(), text.len()) };
    if length == -1 {
        return Err(io::Error::last_os_error());
    }
    // "type;uid;gid;permissions;description", the permissions in hexadecimal.
    let text = String::from_utf8_lossy(&text);
    let Some(permissions) = text.split(';').nth(3).and_then(|field| libc::c_ulong::from_str_radix(field, 16).ok())
    else {
        return Ok(());
    };
    // SAFETY: keyctl(SETPERM, serial, permissions) takes two numbers.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, permissions | USER_SEARCH) };
    // One that somebody else owns stays as they want it.
    match (result, io::Error::last_os_error()) {
        (-1, error) if error.raw_os_error() != Some(libc::EACCES) => Err(error),
        _ => Ok(()),
    }
}
