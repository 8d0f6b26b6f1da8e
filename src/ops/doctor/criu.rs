//! criu: there, fit for this kernel, and with the programs that it calls.

use super::program::{self, Answer};
use super::{Finding, Status};
use crate::error::Result;

const SUBJECT: &str = "criu";
/// What it calls for containers as they are here: for a network of their own, and for what is in a tmpfs. And the packages.
const CALLED: [(&str, &str); 2] = [("ip", "iproute2"), ("tar", "tar")];

/// Whether checkpoint, restore and templates of the mode 'snapshot' can be had.
pub(in crate::ops) fn examine() -> Finding {
    let Some(criu) = program::find("criu") else { return judge(None, None) };
    let version = program::ask(&criu, &["--version"]);
    // Asking for what the kernel grants takes privileges.
    let check = nix::unistd::geteuid().is_root().then(|| program::ask(&criu, &["check"]));
    let finding = judge(Some(version), check);
    match CALLED.into_iter().find(|(name, _)| program::find(name).is_none()) {
        Some(missing) if finding.status == Status::Ok => lacks(missing),
        Some(_) | None => finding,
    }
}

fn lacks((name, package): (&str, &str)) -> Finding {
    let text = format!("it calls '{name}', which is not installed: no checkpoint and restore, no snapshots");
    Finding::warn(SUBJECT, text, format!("apt-get install {package}"))
}

/// `version` is the answer to `--version` if criu is there, `check` the one to `check` if it could be asked.
fn judge(version: Option<Result<Answer>>, check: Option<Result<Answer>>) -> Finding {
    let version = match version {
        None => {
            return Finding::warn(
                SUBJECT,
                "not installed: no checkpoint and restore, no snapshots",
                "apt-get install criu",
            );
        }
        Some(Err(error)) => {
            return Finding::warn(SUBJECT, error.without_next_step(), "apt-get install --reinstall criu");
        }
        Some(Ok(answer)) => parse_version(&answer.text),
    };
    let another = "install the criu that fits this kernel, or boot the kernel that came with it";
    match check {
        None => {
            Finding::ok(SUBJECT, format!("{version} is installed; whether it fits this kernel is told to root only"))
        }
        Some(Ok(answer)) if answer.success => Finding::ok(SUBJECT, format!("{version} fits this kernel")),
        Some(Ok(answer)) => {
            let why = complaint(&answer.text);
            let text = format!("{version} does not fit this kernel, so there are no snapshots: {why}");
            Finding::warn(SUBJECT, text, another)
        }
        Some(Err(error)) => Finding::warn(SUBJECT, format!("{version}: {error}"), another),
    }
}

/// `Version: 3.17.1` in its first lines.
fn parse_version(text: &str) -> String {
    let number = text.lines().find_map(|line| line.strip_prefix("Version:"));
    number.map_or_else(|| "a criu of unknown version".to_owned(), |number| format!("criu {}", number.trim()))
}

/// The first line that complains.
fn complaint(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.clone().next();
    let line = lines.find(|line| line.contains("Error")).or(first);
    line.map_or_else(|| "it does not say why".to_owned(), |line| line.chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(success: bool, text: &str) -> Result<Answer> {
        Ok(Answer { success, text: text.into() })
    }

    #[test]
    fn a_criu_that_does_not_fit_says_why() {
        let version = || Some(answer(true, "Version: 3.17.1\n"));
        assert_eq!(judge(None, None).status, Status::Warn);
        assert_eq!(judge(version(), None).status, Status::Ok);
        assert_eq!(judge(version(), Some(answer(true, "Looks good.\n"))).text, "criu 3.17.1 fits this kernel");
        let finding = judge(version(), Some(answer(false, "Warn  x\nError (criu/vdso.c:1): no vdso\n")));
        assert!(
            finding.status == Status::Warn && finding.text.ends_with("Error (criu/vdso.c:1): no vdso"),
            "{finding:?}"
        );
        assert!(judge(version(), Some(answer(false, ""))).text.ends_with("it does not say why"));
        assert!(lacks(("ip", "iproute2")).text.contains("'ip'"));
    }
}
