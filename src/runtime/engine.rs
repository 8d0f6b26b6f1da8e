//! Speaking to libcontainer: its errors in our words.

use std::error::Error as StdError;

use libcontainer::error::LibcontainerError;

use crate::error::{Error, Kind};
use crate::runtime::executor::{status_of, strip_marks};

/// One error from the engine's chain of them: every level once, in one line.
pub(super) fn explain(error: &LibcontainerError, operation: String) -> Error {
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(level) = next {
        let text = level.to_string();
        // Levels repeat what their source says, in front or behind.
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = level.source();
    }
    let text = plain(&parts.join(": "));
    let kind = match status_of(&text) {
        Some(127) => Kind::CommandNotFound,
        Some(_) => Kind::CommandNotExecutable,
        None => Kind::System,
    };
    Error::new(kind, operation, strip_marks(&text))
}

/// Lower-case spellings of what engines look for, without the engine's own framing.
fn plain(text: &str) -> String {
    let mut text = text.to_owned();
    for noise in [
        "failed to create container: ",
        "exec process failed with error ",
        "error in executing process : ",
        "failed to execute payload: ",
    ] {
        text = text.replace(noise, "");
    }
    // nix spells its errors "ENOENT: No such file or directory".
    for words in ["No such file or directory", "Permission denied", "Operation not permitted", "Invalid argument"] {
        text = text.replace(words, &words.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_without_repetitions() {
        let error = LibcontainerError::OtherSyscall(nix::errno::Errno::EPERM);
        let text = explain(&error, "create container 'a'".to_owned()).to_string();
        assert_eq!(text, "create container 'a': syscall error: EPERM: operation not permitted");
    }

    #[test]
    fn a_missing_program_keeps_its_kind() {
        let error = LibcontainerError::Other("x: [127] exec: \"a\": executable file not found in $PATH".to_owned());
        let error = explain(&error, "create container 'a'".to_owned());
        assert_eq!(error.kind(), Kind::CommandNotFound);
        assert!(!error.to_string().contains('['), "{error}");
    }
}
