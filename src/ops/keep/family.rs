//! A process and all that come from it.

use std::fs;

/// Its number and those of its descendants, parents first; of one that has ended only its own.
pub(super) fn of(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        // Threads have children of their own.
        for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
                if !found.contains(&child) {
                    found.push(child);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_over_generations() {
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 1000 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        use std::io::Read;
        use std::os::unix::process::CommandExt;
        shell.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let family = of(pid);
        assert_eq!((family.len(), family[0]), (2, pid));
        assert!(of(i32::try_from(std::process::id()).unwrap()).contains(&family[1]));
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        assert_eq!(of(pid), [pid]);
    }
}
