//! One error type, formatted in one place.
//!
//! Operators read these lines in a journal, without a debugger: each says the *operation* with its *object*,
//! the *cause*, and where one exists the *next step*:
//!
//! ```text
//! mount overlay for container 'web1': invalid argument; 501 layers, the kernel takes 500: run 'regen ring pack web1'
//! └──────── operation + object ────┘  └──────────────────── cause ─────────────────────┘  └────── next step ───────┘
//! ```

use std::fmt;
use std::io;
use std::num::{IntErrorKind, ParseIntError};
use std::path::Path;

/// The result of anything in regen that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure this is, for the few callers that decide by it and for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// The command line itself is wrong (exit status 2).
    Usage,
    /// Data that came from outside (configuration, annotation, image) does not say anything valid.
    Invalid,
    /// The named container, ring, entry, image or file does not exist.
    NotFound,
    /// The name is taken.
    Exists,
    /// Somebody else holds the object now; the same call may work later.
    Busy,
    /// The object is there, but not in a state in which this can be done.
    State,
    /// Something on disk is not what it was when it was written: a digest, a format, a missing piece.
    Damaged,
    /// The file system is full, or would be below the configured floor.
    NoSpace,
    /// This kernel, file system or build cannot do it.
    Unsupported,
    /// The program to run does not exist in the container (exit status 127).
    CommandNotFound,
    /// The program to run exists but cannot be executed (exit status 126).
    CommandNotExecutable,
    /// The operating system refused a call.
    System,
}

/// A failure: operation with object, cause, and what to do next. A process that is to become a container's sends its
/// own to the one that made it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Error {
    kind: Kind,
    operation: String,
    cause: String,
    next: Option<String>,
    errno: Option<i32>,
}

impl Error {
    /// An error that regen itself found. `operation` names the object too, quoted: `open ring 'root/alice'`.
    pub fn new(kind: Kind, operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { kind, operation: operation.into(), cause: cause.into(), next: None, errno: None }
    }

    /// Adds what the operator can do about it, in the imperative.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }

    /// Puts the operation that failed because of this one in front; the old operation becomes part of the cause.
    #[must_use]
    pub fn during(mut self, operation: impl Into<String>) -> Self {
        let inner = std::mem::replace(&mut self.operation, operation.into());
        self.cause = format!("{inner}: {}", self.cause);
        self
    }

    /// What sort of failure this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The system's error number, where the failure was a system call's.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }

    /// What the operator can do about it, where that is known.
    #[must_use]
    pub fn next_step(&self) -> Option<&str> {
        self.next.as_deref()
    }

    /// The line without the next step, for whoever shows that in a place of its own.
    #[must_use]
    pub fn without_next_step(&self) -> String {
        Self { next: None, operation: self.operation.clone(), cause: self.cause.clone(), ..*self }.to_string()
    }

    /// The exit status that `regen` ends with because of this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => 2,
            Kind::CommandNotFound => 127,
            Kind::CommandNotExecutable => 126,
            Kind::Invalid
            | Kind::NotFound
            | Kind::Exists
            | Kind::Busy
            | Kind::State
            | Kind::Damaged
            | Kind::NoSpace
            | Kind::Unsupported
            | Kind::System => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever a file name or a library's text contains.
        let mut line = format!("{}: {}", self.operation, self.cause);
        if let Some(next) = &self.next {
            line.push_str(": ");
            line.push_str(next);
        }
        for part in line.split(['\n', '\r']).filter(|part| !part.is_empty()).enumerate() {
            let (index, text) = part;
            if index > 0 {
                f.write_str("; ")?;
            }
            f.write_str(text.trim())?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns the error of a lower layer into ours by saying what was being done.
pub trait Context<T> {
    /// `operation` is only computed on failure and names its object: `|| format!("open {}", quote(path))`.
    ///
    /// # Errors
    /// The same failure, with the operation in front.
    fn context<O: Into<String>>(self, operation: impl FnOnce() -> O) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<O: Into<String>>(self, operation: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|error| from_io(&error, operation().into()))
    }
}

impl<T> Context<T> for std::result::Result<T, nix::errno::Errno> {
    fn context<O: Into<String>>(self, operation: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|errno| from_io(&io::Error::from(errno), operation().into()))
    }
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn context<O: Into<String>>(self, operation: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|errno| from_io(&io::Error::from(errno), operation().into()))
    }
}

impl<T> Context<T> for std::result::Result<T, serde_json::Error> {
    fn context<O: Into<String>>(self, operation: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|error| Error::new(Kind::Invalid, operation(), error.to_string()))
    }
}

impl<T> Context<T> for Result<T> {
    fn context<O: Into<String>>(self, operation: impl FnOnce() -> O) -> Result<T> {
        self.map_err(|error| error.during(operation()))
    }
}

fn from_io(error: &io::Error, operation: String) -> Error {
    let errno = error.raw_os_error();
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::AlreadyExists => Kind::Exists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Kind::Damaged,
        _ => Kind::System,
    };
    // "No such file or directory (os error 2)": the number helps nobody, engines match the words.
    let cause = match errno {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    };
    Error { kind, operation, cause, next: None, errno }
}

/// Whether what could not be read is a number, but one that its place cannot hold.
#[must_use]
pub fn is_too_large(error: &ParseIntError) -> bool {
    *error.kind() == IntErrorKind::PosOverflow
}

/// A path in single quotes, with bytes that would break the line escaped.
#[must_use]
pub fn quote(path: impl AsRef<Path>) -> String {
    let text = path.as_ref().to_string_lossy();
    format!("'{}'", text.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_operation_cause_and_next_step() {
        let error = Error::new(Kind::Unsupported, "mount overlay for container 'web1'", "501 layers")
            .next("run 'regen ring pack web1'");
        assert_eq!(error.to_string(), "mount overlay for container 'web1': 501 layers: run 'regen ring pack web1'");
        assert_eq!(error.without_next_step(), "mount overlay for container 'web1': 501 layers");
        assert_eq!(error.next_step(), Some("run 'regen ring pack web1'"));
    }

    #[test]
    fn system_errors_keep_the_words_that_engines_match() {
        let result: Result<()> = Err(io::Error::from_raw_os_error(libc_enoent())).context(|| "open '/x'");
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "open '/x': no such file or directory");
        assert_eq!(error.kind(), Kind::NotFound);
    }

    fn libc_enoent() -> i32 {
        nix::errno::Errno::ENOENT as i32
    }

    #[test]
    fn a_message_is_one_line_whatever_it_quotes() {
        let error = Error::new(Kind::Invalid, format!("read {}", quote("a\nb")), "first\nsecond");
        assert_eq!(error.to_string(), "read 'a\\nb': first; second");
    }

    #[test]
    fn an_outer_operation_goes_in_front() {
        let error = Error::new(Kind::Busy, "lock ring 'root/a'", "held").during("delete container 'c'");
        assert_eq!(error.to_string(), "delete container 'c': lock ring 'root/a': held");
    }
}
