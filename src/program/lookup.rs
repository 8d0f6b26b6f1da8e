//! The program: found as execvp(3) does in the container's own PATH, with the environment it gets.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::Process;

use super::activation::Activation;
use crate::error::{Error, Kind, Result};

/// Where a process without PATH is looked for. Kubernetes' pause image has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to execute.
#[derive(Debug)]
pub(super) struct Command {
    arguments: Vec<String>,
    variables: Vec<String>,
    directory: PathBuf,
    /// Sockets that it finds open.
    activation: Option<Activation>,
}

/// What execve(2) takes.
#[derive(Debug)]
pub(super) struct Image {
    file: CString,
    arguments: Vec<CString>,
    variables: Vec<CString>,
}

/// Decides what to execute.
pub(super) fn plan(process: &Process, activation: Option<Activation>) -> Result<Command> {
    let arguments = process.args().clone().unwrap_or_default();
    if arguments.first().is_none_or(String::is_empty) {
        return Err(Error::new(Kind::Invalid, "read process.args", "there is nothing to run"));
    }
    let variables = process.env().clone().unwrap_or_default();
    if arguments.iter().chain(&variables).any(|text| text.contains('\0')) {
        return Err(Error::new(Kind::Invalid, "read process", "a NUL in an argument or variable"));
    }
    Ok(Command { arguments, variables, directory: process.cwd().clone(), activation })
}

impl Command {
    /// Where the process begins.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Finds the program, in the container and with the rights of the user, and completes the environment.
    pub(super) fn resolve(&self, home: Option<&str>) -> Result<Image> {
        let file = self.find()?;
        let cstring = |text: &[u8]| {
            CString::new(text)
                .map_err(|_| Error::new(Kind::Invalid, "read process", "a NUL in an argument or variable"))
        };
        Ok(Image {
            file: cstring(file.as_os_str().as_bytes())?,
            arguments: self.arguments.iter().map(|text| cstring(text.as_bytes())).collect::<Result<_>>()?,
            variables: self.environment(home).iter().map(|text| cstring(text.as_bytes())).collect::<Result<_>>()?,
        })
    }

    /// The variables of the specification, in its order, with a HOME where it gives none.
    fn environment(&self, home: Option<&str>) -> Vec<String> {
        let mut variables = self.variables.clone();
        if !variables.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
            variables.retain(|entry| entry != "HOME=");
            variables.push(format!("HOME={}", home.unwrap_or("/")));
        }
        if let Some(activation) = &self.activation {
            // The number that the process itself sees.
            activation.announce(&mut variables, std::process::id());
        }
        variables
    }

    fn find(&self) -> Result<PathBuf> {
        let name = &self.arguments[0];
        let path = self.variables.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let mut refused = None;
        for candidate in candidates(name, path, &self.directory) {
            match inspect(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => refused = refused.or(Some(errno)),
            }
        }
        Err(match refused {
            Some(errno) => describe(name, errno),
            None if name.contains('/') => describe(name, Errno::ENOENT),
            None => Error::new(Kind::CommandNotFound, exec(name), "executable file not found in $PATH"),
        })
    }
}

impl Image {
    /// Becomes the program; returns only if that fails.
    pub(super) fn execute(&self) -> Error {
        match nix::unistd::execve(&self.file, &self.arguments, &self.variables) {
            Ok(never) => match never {},
            Err(errno) => describe(&self.file.to_string_lossy(), errno),
        }
    }
}

fn candidates(name: &str, path: &str, cwd: &Path) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![cwd.join(name)];
    }
    path.split(':').map(|part| cwd.join(part).join(name)).collect()
}

fn inspect(path: &Path) -> std::result::Result<(), Errno> {
    let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let metadata = fs::metadata(path).map_err(errno)?;
    // For a directory execve(2) says the same, and engines look for the words.
    if metadata.is_dir() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// The operation, in the words that engines look for.
fn exec(name: &str) -> String {
    format!("exec: \"{}\"", name.escape_debug())
}

fn describe(name: &str, errno: Errno) -> Error {
    let kind = match errno {
        Errno::ENOENT | Errno::ENOTDIR => Kind::CommandNotFound,
        _ => Kind::CommandNotExecutable,
    };
    Error::new(kind, exec(name), errno.desc().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(value: &serde_json::Value, activation: Option<Activation>) -> Result<Command> {
        let mut process = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"});
        process.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        plan(&serde_json::from_value(process).unwrap(), activation)
    }

    #[test]
    fn a_name_with_a_slash_is_not_looked_for_in_the_path() {
        assert_eq!(candidates("./a", "/bin", Path::new("/w")), [Path::new("/w/./a")]);
        assert_eq!(candidates("a", "/bin:/usr/bin", Path::new("/")), [Path::new("/bin/a"), Path::new("/usr/bin/a")]);
        assert_eq!(candidates("a", "", Path::new("/w")), [Path::new("/w/a")]);
    }

    #[test]
    fn a_program_that_is_missing_and_one_that_cannot_run_differ_in_kind() {
        for (name, kind, cause) in [
            ("nobody-has-this", Kind::CommandNotFound, "executable file not found in $PATH"),
            ("/nobody/has/this", Kind::CommandNotFound, "no such file or directory"),
            ("/etc/passwd", Kind::CommandNotExecutable, "permission denied"),
            ("/etc", Kind::CommandNotExecutable, "permission denied"),
        ] {
            let error = command(&serde_json::json!({"args": [name]}), None).unwrap().resolve(None).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.to_string(), format!("exec: \"{name}\": {cause}"));
        }
    }

    #[test]
    fn a_home_is_given_where_there_is_none_and_sockets_are_announced() {
        let value = serde_json::json!({"args": ["a"], "env": ["A=1", "HOME=", "LISTEN_FDS=9", "LISTEN_FDS_NOT=1"]});
        let variables = command(&value, Activation::of_names(["web"]).unwrap()).unwrap().environment(Some("/root"));
        let pid = format!("LISTEN_PID={}", std::process::id());
        assert_eq!(variables, ["A=1", "LISTEN_FDS_NOT=1", "HOME=/root", "LISTEN_FDS=1", &pid, "LISTEN_FDNAMES=web"]);
        let value = serde_json::json!({"args": ["a"], "env": ["HOME=/x"]});
        assert_eq!(command(&value, None).unwrap().environment(None), ["HOME=/x"]);
    }

    #[test]
    fn nothing_to_run_is_refused() {
        for args in [serde_json::json!([]), serde_json::json!([""]), serde_json::json!(["a\0b"])] {
            assert!(command(&serde_json::json!({"args": args}), None).is_err());
        }
    }
}
