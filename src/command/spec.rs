//! `spec`: a config.json to begin with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::bundle::CONFIG;
use crate::bundle::template::{Privilege, starter};
use crate::cli;
use crate::error::{Context, Error, Kind, Result, quote};

pub(super) fn run(arguments: &cli::Spec) -> Result<()> {
    let path = arguments.bundle.as_deref().unwrap_or(Path::new(".")).join(CONFIG);
    let operation = || format!("write {}", quote(&path));
    let privilege = if arguments.rootless {
        Privilege::Rootless { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    } else {
        Privilege::Root
    };
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    starter(privilege).serialize(&mut serializer).context(operation)?;
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::new(Kind::Exists, operation(), "file config.json exists").next("remove it first"));
        }
        Err(error) => return Err(error).context(operation),
    };
    file.write_all(&text).context(operation)
}
