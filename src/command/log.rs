//! The log: one line on standard error for who typed, one entry in a file for who called.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use chrono::{SecondsFormat, Utc};
use serde_json::json;
use tracing::Level;

use crate::cli::{Global, LogFormat};
use crate::error::{Context, Error, Result, quote};

/// Where the log goes, and how much.
#[derive(Debug)]
pub(super) struct Log {
    file: Option<PathBuf>,
    format: LogFormat,
    debug: bool,
}

/// What is logged without `--debug`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loudness {
    /// What somebody should know.
    Warnings,
    /// What happens.
    Events,
}

impl Log {
    pub(super) fn new(global: &Global) -> Self {
        Self { file: global.log.clone(), format: global.log_format, debug: global.debug }
    }

    /// For a command line that was not understood: where it seems to want its log. Engines look there for what went
    /// wrong, also when it was a flag of theirs that we do not know. Only flags before the verb count: what comes later
    /// may be the arguments of a program.
    pub(super) fn guess(mut arguments: impl Iterator<Item = OsString>) -> Self {
        let mut log = Self { file: None, format: LogFormat::Text, debug: false };
        while let Some(argument) = arguments.next() {
            let text = argument.to_string_lossy();
            let Some(flag) = text.strip_prefix("--") else { break };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None if matches!(flag, "" | "debug" | "systemd-cgroup") => (flag, None),
                None => (flag, arguments.next()),
            };
            match (name, value) {
                ("log", Some(path)) => log.file = Some(PathBuf::from(path)),
                ("log-format", Some(word)) if word == "json" => log.format = LogFormat::Json,
                _ => {}
            }
        }
        log
    }

    /// Begins to log what is done, if that was asked for. Otherwise only warnings are told, and only to who typed: in
    /// the file of an engine there is one entry or none. A daemon's log has events, wherever it goes.
    pub(super) fn start(&self, loudness: Loudness) -> Result<()> {
        let level = match (self.debug, loudness) {
            (true, _) => Level::DEBUG,
            (false, Loudness::Events) => Level::INFO,
            (false, Loudness::Warnings) if self.file.is_some() => return Ok(()),
            (false, Loudness::Warnings) => {
                let builder = tracing_subscriber::fmt().with_max_level(Level::WARN).with_ansi(false);
                builder.without_time().with_target(false).with_writer(std::io::stderr).init();
                return Ok(());
            }
        };
        let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false);
        match (&self.file, self.format) {
            // Whoever collects a daemon's standard error may want to read it by program; who types does not.
            (None, LogFormat::Json) if loudness == Loudness::Events => {
                builder.json().flatten_event(true).with_target(self.debug).with_writer(std::io::stderr).init();
            }
            (None, _) => builder.with_target(self.debug).with_writer(std::io::stderr).init(),
            (Some(path), format) => {
                let operation = || format!("open log {}", quote(path));
                let file = OpenOptions::new().create(true).append(true).open(path).context(operation)?;
                let writer = std::sync::Mutex::new(file);
                match format {
                    LogFormat::Text => builder.with_writer(writer).init(),
                    LogFormat::Json => builder.json().flatten_event(true).with_writer(writer).init(),
                }
            }
        }
        Ok(())
    }

    /// Says an error. In the file it is exactly one entry: engines parse the whole file, or its last line.
    pub(super) fn report(&self, error: &Error) {
        let message = error.to_string();
        // If even standard error is closed there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "regen: {message}");
        if let Some(path) = &self.file
            && let Err(error) = self.append(path, &message)
        {
            let _ = writeln!(std::io::stderr(), "regen: {error}");
        }
    }

    fn append(&self, path: &PathBuf, message: &str) -> Result<()> {
        let time = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let line = match self.format {
            LogFormat::Json => json!({"level": "error", "msg": message, "time": time}).to_string(),
            LogFormat::Text => format!("time={} level=error msg={}", json!(time), json!(message)),
        };
        let operation = || format!("write log {}", quote(path));
        let mut file = OpenOptions::new().create(true).append(true).open(path).context(operation)?;
        file.write_all(format!("{line}\n").as_bytes()).context(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(line: &str) -> (Option<PathBuf>, LogFormat) {
        let log = Log::guess(line.split(' ').map(OsString::from));
        (log.file, log.format)
    }

    #[test]
    fn the_log_of_a_wrong_command_line_is_found_before_its_verb_only() {
        let found = (Some(PathBuf::from("/l")), LogFormat::Json);
        for line in [
            "--root /r --log /l --log-format json create --nope a",
            "--debug --log=/l --log-format=json --nope=1 state",
            "--systemd-cgroup --log /l --log-format json",
        ] {
            assert_eq!(guess(line), found, "{line}");
        }
        assert_eq!(guess("exec --log /l a"), (None, LogFormat::Text));
        assert_eq!(guess("--debug exec a sh --log /l"), (None, LogFormat::Text));
    }
}
