//! The last steps inside the container, just before its program.
//!
//! The engine calls these in the process that becomes the program: after namespaces, root and capabilities, with
//! the environment's last word not yet spoken. What it leaves to do: finding the program as a shell would (a process
//! without PATH must run too), loading the container's seccomp filter into execs, signal mask and SIGPIPE as a fresh
//! program expects them, and hooks inside the container that see the user's bundle.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::capabilities::CapabilityExt;
use libcontainer::container::State;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use oci_spec::runtime::{Capabilities, Capability, Hook, LinuxCapabilities, LinuxSeccomp, Spec};

use crate::bundle::template::DEFAULT_PATH;
use crate::sys::signal;

/// Marks the engine's text of an error as one about the program itself, with the exit status it means.
pub(super) const MARK_NOT_FOUND: &str = "[127]";
/// The same, for a program that is there but cannot be executed.
pub(super) const MARK_NOT_EXECUTABLE: &str = "[126]";

/// What to do before the program.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The mask that the program starts with.
    pub mask: SigSet,
    /// Hooks to run inside, and the state that they read.
    pub start_container: Option<(Vec<Hook>, State)>,
    /// The filter that an exec still has to load.
    pub seccomp: Option<Filter>,
    /// Whether a failing execve(2) is reported back (exec) or ends the process with the shell's statuses (init,
    /// whose creator is long gone).
    pub report: bool,
}

/// A seccomp filter, and what to do about capabilities once it is loaded.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub seccomp: LinuxSeccomp,
    /// The sets that the process is meant to have, if it got [`FOR_LOADING`] beside them.
    pub keep: Option<LinuxCapabilities>,
}

/// What a process must have to load a filter without no_new_privs, and to lose that right again.
pub(super) const FOR_LOADING: [Capability; 2] = [Capability::SysAdmin, Capability::Setpcap];

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find_program(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The program gets its environment with execve; ours is never touched.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let result: Result<(), String> = self.run_hooks(spec).and_then(|()| self.confine()).and_then(|()| {
            let path = find_program(spec)?;
            let (arguments, variables) = (arguments(spec)?, environment(spec)?);
            signal::restore_for_exec(&self.mask).map_err(|error| error.to_string())?;
            Err(execute(&path, &arguments, &variables))
        });
        let text = result.err().unwrap_or_default();
        if self.report {
            return Err(ExecutorError::Other(text));
        }
        let status = status_of(&text).unwrap_or(1);
        // Standard error is the container's now; nobody else can be told.
        let _ = writeln!(io::stderr(), "regen: {}", strip_marks(&text));
        std::process::exit(status);
    }
}

impl Program {
    fn run_hooks(&self, spec: &Spec) -> Result<(), String> {
        let Some((hooks, state)) = &self.start_container else { return Ok(()) };
        let env = spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
        let env =
            env.iter().filter_map(|entry| entry.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        libcontainer::hooks::run_hooks(Some(hooks), Some(state), None, None, Some(&env))
            .map_err(|error| format!("run startContainer hooks: {error}"))
    }

    /// Loads the filter, then gives up the capabilities that only loading it needed.
    fn confine(&self) -> Result<(), String> {
        let Some(filter) = &self.seccomp else { return Ok(()) };
        libcontainer::seccomp::initialize_seccomp(&filter.seccomp)
            .map_err(|error| format!("load the container's seccomp filter: {error}"))?;
        filter.keep.as_ref().map_or(Ok(()), give_up)
    }
}

/// Takes [`FOR_LOADING`] out of every set that is not meant to have it.
fn give_up(keep: &LinuxCapabilities) -> Result<(), String> {
    use caps::CapSet;
    let failed = |error: caps::errors::CapsError| format!("drop capabilities: {error}");
    let surplus = |set: &Option<Capabilities>| -> Vec<caps::Capability> {
        let meant = |capability: &&Capability| set.as_ref().is_some_and(|set| set.contains(*capability));
        let surplus = FOR_LOADING.iter().filter(|capability| !meant(capability));
        surplus.map(|capability| capability.to_cap()).collect()
    };
    // Bounding first: it takes CAP_SETPCAP, which may be one of those that go.
    for capability in surplus(keep.bounding()) {
        caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
    }
    for (set, surplus) in
        [(CapSet::Effective, surplus(keep.effective())), (CapSet::Permitted, surplus(keep.permitted()))]
    {
        let mut kept = caps::read(None, set).map_err(failed)?;
        kept.retain(|capability| !surplus.contains(capability));
        caps::set(None, set, &kept).map_err(failed)?;
    }
    Ok(())
}

/// The exit status that a marked text means.
pub(super) fn status_of(text: &str) -> Option<i32> {
    if text.contains(MARK_NOT_FOUND) {
        Some(127)
    } else if text.contains(MARK_NOT_EXECUTABLE) {
        Some(126)
    } else {
        None
    }
}

/// The text without our marks.
pub(super) fn strip_marks(text: &str) -> String {
    text.replace(&format!("{MARK_NOT_FOUND} "), "").replace(&format!("{MARK_NOT_EXECUTABLE} "), "")
}

fn arguments(spec: &Spec) -> Result<Vec<CString>, String> {
    let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
    args.into_iter().map(|text| CString::new(text).map_err(|_| "a NUL in an argument".to_owned())).collect()
}

/// The variables of the specification, in its order, and a HOME where it gives none.
fn environment(spec: &Spec) -> Result<Vec<CString>, String> {
    let process = spec.process().as_ref();
    let mut variables = process.and_then(|process| process.env().clone()).unwrap_or_default();
    if !variables.iter().any(|entry| entry.starts_with("HOME=")) {
        let uid = process.map_or(0, |process| process.user().uid());
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        variables.push(format!("HOME={}", home_of(&passwd, uid).unwrap_or("/")));
    }
    // Socket activation: the descriptors that the engine preserved, for the program that is process 1 here.
    if let Some(count) = std::env::var("LISTEN_FDS").ok().filter(|count| count.parse::<u32>().is_ok_and(|n| n > 0)) {
        variables.retain(|entry| !entry.starts_with("LISTEN_FDS=") && !entry.starts_with("LISTEN_PID="));
        variables.push(format!("LISTEN_FDS={count}"));
        variables.push(format!("LISTEN_PID={}", std::process::id()));
        if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
            variables.retain(|entry| !entry.starts_with("LISTEN_FDNAMES="));
            variables.push(format!("LISTEN_FDNAMES={names}"));
        }
    }
    variables.into_iter().map(|text| CString::new(text).map_err(|_| "a NUL in a variable".to_owned())).collect()
}

fn home_of(passwd: &str, uid: u32) -> Option<&str> {
    let line = passwd.lines().find(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid))?;
    line.split(':').nth(5).filter(|home| !home.is_empty())
}

/// Finds the program as execvp(3) does, in the container's own PATH.
fn find_program(spec: &Spec) -> Result<PathBuf, String> {
    let process = spec.process().as_ref();
    let name = process.and_then(|process| process.args().as_ref()?.first().cloned()).unwrap_or_default();
    let env = process.and_then(|process| process.env().clone()).unwrap_or_default();
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(&DEFAULT_PATH[5..]);
    let cwd = process.map_or(Path::new("/"), |process| process.cwd().as_path());
    let mut refused = None;
    for candidate in candidates(&name, path, cwd) {
        match inspect(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => refused = refused.or(Some(errno)),
        }
    }
    Err(match refused {
        Some(errno) => describe(&name, errno),
        None if name.contains('/') => describe(&name, Errno::ENOENT),
        None => format!("{MARK_NOT_FOUND} exec: \"{name}\": executable file not found in $PATH"),
    })
}

fn candidates(name: &str, path: &str, cwd: &Path) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![cwd.join(name)];
    }
    path.split(':').map(|part| cwd.join(part).join(name)).collect()
}

fn inspect(path: &Path) -> Result<(), Errno> {
    let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let metadata = fs::metadata(path).map_err(errno)?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

fn describe(name: &str, errno: Errno) -> String {
    let mark = match errno {
        Errno::ENOENT | Errno::ENOTDIR => MARK_NOT_FOUND,
        _ => MARK_NOT_EXECUTABLE,
    };
    format!("{mark} exec: \"{name}\": {}", errno.desc().to_lowercase())
}

/// Only returns on failure.
fn execute(path: &Path, arguments: &[CString], variables: &[CString]) -> String {
    let text = path.display().to_string();
    let Ok(file) = CString::new(path.as_os_str().as_bytes()) else { return "a NUL in the program's name".to_owned() };
    match nix::unistd::execve(&file, arguments, variables) {
        Ok(never) => match never {},
        Err(errno) => describe(&text, errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_is_not_looked_for_in_the_path() {
        assert_eq!(candidates("./a", "/bin", Path::new("/w")), [Path::new("/w/./a")]);
        assert_eq!(candidates("a", "/bin:/usr/bin", Path::new("/")), [Path::new("/bin/a"), Path::new("/usr/bin/a")]);
        assert_eq!(candidates("a", "", Path::new("/w")), [Path::new("/w/a")]);
    }

    #[test]
    fn homes_come_from_the_containers_own_table() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad line\nu:x:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(home_of(passwd, 1000), Some("/home/u"));
        assert_eq!(home_of(passwd, 7), None);
    }

    #[test]
    fn marks_carry_the_exit_status_and_vanish_from_the_text() {
        let text = describe("/x", Errno::EACCES);
        assert_eq!(status_of(&text), Some(126));
        assert_eq!(strip_marks(&text), "exec: \"/x\": permission denied");
        assert_eq!(status_of(&describe("/x", Errno::ENOENT)), Some(127));
        assert_eq!(status_of("anything else"), None);
    }
}
