//! What a signal does to a process that knows nothing of it.

use std::fs;

use crate::sys::signal::Signal;

/// Whether a process, as `/proc/PID/status` describes it, never notices a signal though it does not ignore it: the first
/// process of a pid namespace only gets those for which it has a handler (pid_namespaces(7)). Anywhere else the signal
/// would end it.
fn is_deaf(status: &str, signal: Signal) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let has = |set: &str| {
        let bits = field(set).and_then(|bits| u64::from_str_radix(bits, 16).ok()).unwrap_or(u64::MAX);
        bits & 1 << (signal.number().clamp(1, 64) - 1) != 0
    };
    let pids: Vec<&str> = field("NSpid").unwrap_or_default().split_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1") && !has("SigCgt") && !has("SigIgn") && !has("SigBlk")
}

/// The signal by which a process is told to end: SIGKILL where the one that is meant would not reach it, and its default is
/// the end.
pub(super) fn effective(pid: i32, meant: Signal) -> Signal {
    /// Of those that end nothing by default: SIGCHLD, SIGCONT, SIGURG, SIGWINCH, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
    const HARMLESS: [i32; 8] = [17, 18, 23, 28, 19, 20, 21, 22];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    if !HARMLESS.contains(&meant.number()) && is_deaf(&status, meant) { Signal::KILL } else { meant }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pids: &str, caught: u64, ignored: u64) -> String {
        format!(
            "Name:\tx\nNSpid:\t{pids}\nSigBlk:\t0000000000000000\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn only_a_first_process_without_a_handler_is_deaf() {
        let term = 1 << (Signal::TERM.number() - 1);
        assert!(is_deaf(&status("4711\t1", 0, 0), Signal::TERM));
        assert!(!is_deaf(&status("4711\t1", term, 0), Signal::TERM), "it has a handler");
        assert!(!is_deaf(&status("4711\t1", 0, term), Signal::TERM), "it ignores it on purpose");
        assert!(!is_deaf(&status("4711\t7", 0, 0), Signal::TERM));
        assert!(!is_deaf(&status("4711", 0, 0), Signal::TERM), "it is in our own namespace");
        assert!(is_deaf(&status("4711\t1", term, 0), "RTMIN+3".parse().unwrap()));
        assert!(!is_deaf("", Signal::TERM));
    }
}
