//! From an image's config, and what the caller wants otherwise, to the process that is run.

use super::config::ImageConfig;
use crate::error::{Error, Kind, Result};

/// The search path of a container whose image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the caller of `run --image` says; empty or absent parts are the image's to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Takes the place of the image's `Cmd`; its entry point stays in front.
    pub command: Vec<String>,
    /// `NAME=VALUE`, each added to the image's or in place of the one of that name.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
}

/// The process that a container of an image starts with; its user is still as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// `NAME=VALUE`, with a `PATH`.
    pub env: Vec<String>,
    /// Absolute path in the container.
    pub cwd: String,
    /// `user[:group]` for [`resolve_user`](super::user::resolve_user); empty means root.
    pub user: String,
}

/// Merges the image's config with what the caller says.
///
/// # Errors
/// [`Kind::Usage`] if the caller's words are wrong, [`Kind::Invalid`] if nobody says what to run or a string of the
/// image cannot be handed to a program.
pub fn process_config(config: &ImageConfig, overrides: &Overrides) -> Result<Process> {
    let image = &config.config;
    let cmd = if overrides.command.is_empty() { &image.cmd } else { &overrides.command };
    let args: Vec<String> = image.entrypoint.iter().chain(cmd).cloned().collect();
    if args.is_empty() {
        let cause = "the image has neither entry point nor command";
        return Err(Error::new(Kind::Invalid, "decide what to run", cause).next("give a command after '--'"));
    }
    let process = Process {
        args,
        env: merge_env(&image.env, &overrides.env)?,
        cwd: working_directory(&image.working_dir, overrides.workdir.as_deref())?,
        user: overrides.user.clone().unwrap_or_else(|| image.user.clone()),
    };
    for text in process.args.iter().chain(&process.env).chain([&process.cwd]) {
        if text.contains('\0') {
            let operation = format!("read '{}'", text.escape_debug());
            return Err(Error::new(Kind::Invalid, operation, "a NUL byte cannot be handed to a program"));
        }
    }
    Ok(process)
}

/// The image's environment with the caller's in place of or after it; the last of a name counts.
fn merge_env(image: &[String], caller: &[String]) -> Result<Vec<String>> {
    let name = |variable: &str| variable.split_once('=').map(|(name, _)| name.to_owned()).filter(|n| !n.is_empty());
    let mut env: Vec<String> = Vec::new();
    let mut put = |name: &str, variable: &str| {
        let same = |old: &&mut String| old.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        match env.iter_mut().find(same) {
            Some(old) => variable.clone_into(old),
            None => env.push(variable.to_owned()),
        }
    };
    put("PATH", &format!("PATH={DEFAULT_PATH}"));
    for variable in image {
        // Docker passes over what is no assignment, and so do images that lean on it.
        if let Some(name) = name(variable) {
            put(&name, variable);
        }
    }
    for variable in caller {
        let Some(name) = name(variable) else {
            let operation = format!("read environment variable '{}'", variable.escape_debug());
            return Err(Error::new(Kind::Usage, operation, "it is not of the form NAME=VALUE"));
        };
        put(&name, variable);
    }
    Ok(env)
}

fn working_directory(image: &str, caller: Option<&str>) -> Result<String> {
    match caller {
        Some(path) if !path.starts_with('/') => {
            let operation = format!("read working directory '{}'", path.escape_debug());
            Err(Error::new(Kind::Usage, operation, "it is not an absolute path in the container"))
        }
        Some(path) => Ok(path.to_owned()),
        None if image.starts_with('/') => Ok(image.to_owned()),
        None => Ok(format!("/{image}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image(entrypoint: &str, cmd: &str) -> ImageConfig {
        let mut config = ImageConfig::empty();
        config.config.entrypoint = words(entrypoint);
        config.config.cmd = words(cmd);
        config
    }

    #[test]
    fn a_command_replaces_cmd_and_keeps_the_entry_point() {
        let args = |entrypoint, cmd, command| {
            let overrides = Overrides { command: words(command), ..Overrides::default() };
            process_config(&image(entrypoint, cmd), &overrides).map(|process| process.args)
        };
        assert_eq!(args("/entry -x", "serve", "").unwrap(), words("/entry -x serve"));
        assert_eq!(args("/entry -x", "serve", "check it").unwrap(), words("/entry -x check it"));
        assert_eq!(args("", "/bin/sh", "").unwrap(), words("/bin/sh"));
        assert_eq!(args("", "/bin/sh", "/bin/true").unwrap(), words("/bin/true"));
        let error = args("", "", "").unwrap_err().to_string();
        assert!(error.contains("give a command after '--'"), "{error}");
    }

    #[test]
    fn the_callers_environment_wins_and_there_is_always_a_path() {
        let mut config = image("", "x");
        config.config.env =
            vec!["AB=4".into(), "A=1".into(), "B=2".into(), "A=3".into(), "no assignment".into(), "=C:".into()];
        let overrides = Overrides { env: vec!["B=".into(), "C=5".into()], ..Overrides::default() };
        let env = process_config(&config, &overrides).unwrap().env;
        assert_eq!(env, [&format!("PATH={DEFAULT_PATH}"), "AB=4", "A=3", "B=", "C=5"]);

        config.config.env = vec!["PATH=/only".into()];
        assert_eq!(process_config(&config, &Overrides::default()).unwrap().env, ["PATH=/only"]);
        let bad = Overrides { env: vec!["HOME".into()], ..Overrides::default() };
        assert_eq!(process_config(&config, &bad).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn the_working_directory_is_absolute() {
        let cwd = |image_dir: &str, caller: Option<&str>| {
            let mut config = image("", "x");
            config.config.working_dir = image_dir.into();
            let overrides = Overrides { workdir: caller.map(str::to_owned), ..Overrides::default() };
            process_config(&config, &overrides).map(|process| process.cwd)
        };
        assert_eq!(cwd("", None).unwrap(), "/");
        assert_eq!(cwd("srv", None).unwrap(), "/srv");
        assert_eq!(cwd("/srv", Some("/tmp")).unwrap(), "/tmp");
        assert_eq!(cwd("/srv", Some("tmp")).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn a_string_that_a_program_cannot_get_is_refused() {
        let mut config = image("", "x");
        config.config.env = vec!["A=\0".into()];
        assert_eq!(process_config(&config, &Overrides::default()).unwrap_err().kind(), Kind::Invalid);
    }
}
