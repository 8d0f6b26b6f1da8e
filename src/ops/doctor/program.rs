//! Programs of others: whether they are there, and what they say.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::memory_file;

/// Where an administrator's programs lie that an ordinary PATH leaves out.
const ALSO: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// Finds a program as a shell of the administrator would.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ALSO.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| is_executable(path))
}

/// Whether there is a file that somebody may execute.
pub(super) fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// What a program said, and whether it ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub success: bool,
    /// Both streams together.
    pub text: String,
}

/// Runs a program to its end, or to the end of our patience.
pub(super) fn ask(program: &Path, arguments: &[&str]) -> Result<Answer> {
    let operation = || format!("run {}", quote(program));
    // A file takes whatever is written while nobody reads, and keeps nobody waiting who inherits it.
    let output = memory_file("answer", b"")?;
    let stream = || output.try_clone().map(Stdio::from).context(operation);
    let mut command = Command::new(program);
    command.args(arguments.iter().map(OsStr::new)).stdin(Stdio::null()).stdout(stream()?).stderr(stream()?);
    let mut child = command.spawn().context(operation)?;
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().context(operation)? {
            break status;
        }
        if Instant::now() > deadline {
            // Whether it could be killed changes nothing about the answer.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::new(Kind::System, operation(), "it did not end within 20 s"));
        }
        std::thread::sleep(POLL);
    };
    let bytes = crate::sys::fs::read_capped(&crate::sys::fs::by_descriptor(&output), 1 << 20)?;
    Ok(Answer { success: status.success(), text: String::from_utf8_lossy(&bytes).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_asked_and_its_end_is_told() {
        let shell = find("sh").unwrap();
        let answer = ask(&shell, &["-c", "echo out; echo err >&2; exit 3"]).unwrap();
        assert_eq!(answer, Answer { success: false, text: "out\nerr\n".into() });
        assert!(find("no-such-program-anywhere").is_none());
        assert!(!is_executable(Path::new("/etc/passwd")));
    }
}
