//! What a template's program says on the zygote socket. Pure.

use crate::error::{Error, Kind, Result};

/// The version of the protocol between a keeper and a template's program.
const PROTOCOL: &str = "1";
/// The longest message in bytes.
const LIMIT: usize = 4096;

/// A message of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It is loaded.
    Ready {
        /// What it says it is: `python 3.11.2`.
        language: String,
    },
    /// It has forked, as it was told.
    Forked {
        /// Which time.
        number: u64,
    },
    /// It was told to fork, and could not.
    Failed {
        /// Which time.
        number: u64,
        /// Why: the name of an error number.
        errno: String,
    },
}

/// Reads a message.
///
/// # Errors
/// [`Kind::Unsupported`] for another version of the protocol, [`Kind::Invalid`] for what is none of it.
pub(super) fn parse(bytes: &[u8]) -> Result<Said> {
    let operation = || "hear a template's program";
    let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).escape_debug().to_string();
    let garbled = || Error::new(Kind::Invalid, operation(), format!("it says '{}'", shown()));
    let text = Some(bytes).filter(|bytes| bytes.len() <= LIMIT).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let mut words = text.ok_or_else(garbled)?.trim_end_matches('\n').splitn(3, ' ');
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).ok_or_else(garbled);
    match words.next() {
        Some("ready") => match words.next() {
            Some(PROTOCOL) => {
                let language = words.next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(80).collect();
                Ok(Said::Ready { language })
            }
            Some(version) if version.bytes().all(|byte| byte.is_ascii_digit()) && !version.is_empty() => {
                let cause = format!("it speaks version {version} of the zygote protocol, this is version {PROTOCOL}");
                Err(Error::new(Kind::Unsupported, operation(), cause))
            }
            Some(_) | None => Err(garbled()),
        },
        Some("forked") => Ok(Said::Forked { number: number(words.next())? }),
        Some("failed") => {
            let number = number(words.next())?;
            let errno = words.next().unwrap_or("for no reason").chars().filter(|c| !c.is_control()).take(40).collect();
            Ok(Said::Failed { number, errno })
        }
        Some(_) | None => Err(garbled()),
    }
}

/// What tells the program to fork.
pub(super) fn fork(number: u64) -> String {
    format!("fork {number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_messages_are_understood() {
        assert_eq!(parse(b"ready 1 python 3.11.2").unwrap(), Said::Ready { language: "python 3.11.2".into() });
        assert_eq!(parse(b"ready 1").unwrap(), Said::Ready { language: String::new() });
        assert_eq!(parse(b"forked 7 1234").unwrap(), Said::Forked { number: 7 });
        assert_eq!(parse(b"failed 8 EAGAIN").unwrap(), Said::Failed { number: 8, errno: "EAGAIN".into() });
        assert_eq!(fork(9), "fork 9");
    }

    #[test]
    fn another_version_is_refused_with_both_named() {
        let error = parse(b"ready 2 python 4").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("version 2 of the zygote protocol, this is version 1"), "{error}");
    }

    #[test]
    fn nonsense_is_refused_in_one_short_line() {
        let long = vec![b'x'; 5000];
        for nonsense in [&b""[..], b"ready", b"ready x", b"ready ", b"forked", b"forked x", b"dance\n1", b"\xff", &long]
        {
            let error = parse(nonsense).unwrap_err();
            assert!(error.kind() == Kind::Invalid && error.to_string().len() < 250, "{error}");
        }
    }
}
