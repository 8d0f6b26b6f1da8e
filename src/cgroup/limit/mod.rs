//! Limits: what `linux.resources` asks for, as files to write.
//!
//! What to write is decided by [`v1`] and [`v2`] without a look at the system; [`write()`] then writes. Files depend on
//! each other (a quota may not exceed a period, memory not memory and swap), and which order is right depends on what
//! is there already, so a value that the kernel calls invalid is tried again once the others are written.

mod v1;
mod v2;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;

use crate::cgroup::{Cgroup, Manager, device};
use crate::error::{Context, Error, Kind, Result, quote};

pub(super) use v2::{swap_alone, wanted_controllers, weight_of_block_io, weight_of_shares};

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// The controller that has it.
    controller: &'static str,
    /// File and value; where a kernel has one of several files, in the order in which they are tried.
    choices: Vec<(String, String)>,
    /// What to do if no such file is there.
    missing: Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Without it the limit does not hold.
    Fails,
    /// It only adds to another.
    Passes,
}

impl Setting {
    fn new(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Self {
        Self { controller, choices: vec![(file.into(), value.to_string())], missing: Missing::Fails }
    }

    fn or(mut self, file: impl Into<String>, value: impl ToString) -> Self {
        self.choices.push((file.into(), value.to_string()));
        self
    }

    fn optional(mut self) -> Self {
        self.missing = Missing::Passes;
        self
    }
}

/// Which limits to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of them, of a container that has no process yet.
    All,
    /// All but the device rules: rewriting those would deny everything for a moment.
    AllButDevices,
}

impl Cgroup {
    /// Sets what the resources ask for and leaves the rest as it is; the device rules are only set when the container
    /// is made.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for values that mean nothing, [`Kind::Unsupported`] for a limit that cannot be had here, and
    /// what the kernel has against one.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        if self.manager == Manager::Systemd {
            self.update_scope(resources)?;
        }
        self.limit(resources, Scope::AllButDevices)
    }

    /// Sets limits.
    pub(super) fn limit(&self, resources: &LinuxResources, scope: Scope) -> Result<()> {
        let unified = self.unified().is_some();
        let settings = if unified { v2::plan(resources)? } else { v1::plan(resources)? };
        if self.directories.is_empty() {
            return match settings.first() {
                None => Ok(()),
                Some(setting) => Err(no_place(setting.controller)),
            };
        }
        check_usage(self, resources)?;
        if scope == Scope::All {
            device::restrict(self, resources.devices().as_deref().unwrap_or_default())?;
        }
        write(self, settings)
    }
}

/// runc's words, which engines show.
fn no_place(controller: &str) -> Error {
    let cause = "container could not join or create cgroup";
    Error::new(Kind::Unsupported, format!("cannot set {controller} limit"), cause)
        .next("leave the limit out, or have the controller delegated to you")
}

/// Refuses a limit below what is in use, if that is asked for: the kernel would kill.
fn check_usage(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    let (Some(true), Some(limit)) = (memory.check_before_update(), memory.limit().filter(|limit| *limit > 0)) else {
        return Ok(());
    };
    let Some(directory) = cgroup.directory("memory") else { return Err(no_place("memory")) };
    let file = if cgroup.unified().is_some() { "memory.current" } else { "memory.usage_in_bytes" };
    let path = directory.join(file);
    let operation = || format!("check the memory limit against {}", quote(&path));
    let text = fs::read_to_string(&path).context(operation)?;
    let usage: i64 = text.trim().parse().map_err(|_| Error::new(Kind::Damaged, operation(), "not a number"))?;
    if usage > limit {
        return Err(Error::new(Kind::Invalid, operation(), format!("rejecting memory limit {limit} < usage {usage}")));
    }
    Ok(())
}

/// Writes every setting; those that the kernel calls invalid once more after the others.
fn write(cgroup: &Cgroup, settings: Vec<Setting>) -> Result<()> {
    let mut pending = settings;
    loop {
        let before = pending.len();
        let mut again = Vec::new();
        let mut failure = None;
        for setting in pending {
            match write_one(cgroup, &setting) {
                Ok(()) => {}
                Err(error) if is_order(&error) => {
                    failure.get_or_insert(error);
                    again.push(setting);
                }
                Err(error) => return Err(error),
            }
        }
        match failure {
            None => return Ok(()),
            Some(error) if again.len() == before => return Err(error),
            Some(_) => pending = again,
        }
    }
}

/// Whether another value may have to be written first.
fn is_order(error: &Error) -> bool {
    [Errno::EINVAL, Errno::EBUSY].iter().any(|errno| error.errno() == Some(*errno as i32))
}

fn write_one(cgroup: &Cgroup, setting: &Setting) -> Result<()> {
    let Some(directory) = cgroup.directory(setting.controller) else {
        return match setting.missing {
            Missing::Fails => Err(no_place(setting.controller)),
            Missing::Passes => Ok(()),
        };
    };
    for (file, value) in &setting.choices {
        let path = directory.join(file);
        match write_file(&path, value) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let operation = format!("write {} to {}", quote(value), quote(&path));
                return Err(explain(error, operation, directory, file));
            }
        }
    }
    match setting.missing {
        Missing::Passes => Ok(()),
        Missing::Fails => {
            let (file, value) = &setting.choices[0];
            let operation = format!("write {} to {}", quote(value), quote(directory.join(file)));
            let cause = format!("no such file or directory; no {} here", setting.controller);
            Err(Error::new(Kind::Unsupported, operation, cause).next("leave the limit out or enable the controller"))
        }
    }
}

/// Never creates a file: in a cgroup that is gone, or on another file system, it would look like a limit.
fn write_file(path: &Path, value: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    // Files with a line per device take one line per write.
    value.lines().try_for_each(|line| file.write_all(line.as_bytes()))
}

/// Adds to the kernel's word what it was about.
fn explain(error: io::Error, operation: String, directory: &Path, file: &str) -> Error {
    let busy = error.kind() == io::ErrorKind::ResourceBusy;
    let error = Err::<(), _>(error).context(|| operation);
    let Err(error) = error else { unreachable!("made from an error") };
    if busy && file == "memory.limit_in_bytes" {
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default().trim().to_owned();
        let (usage, peak) = (read("memory.usage_in_bytes"), read("memory.max_usage_in_bytes"));
        return error
            .next(format!("the memory in use cannot be taken back (current usage: {usage}, peak usage: {peak})"));
    }
    error
}

/// The first choices as `FILE=VALUE`.
#[cfg(test)]
fn flat(settings: &[Setting]) -> Vec<String> {
    settings.iter().map(|setting| format!("{}={}", setting.choices[0].0, setting.choices[0].1)).collect()
}

/// A page size as it stands in file names: `2MB`, `1GB`, `64KB`.
fn page_size(text: &str) -> Result<&str> {
    let digits = text.trim_end_matches("KB").trim_end_matches("MB").trim_end_matches("GB");
    let known = digits.len() + 2 == text.len() && !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
    if known {
        return Ok(text);
    }
    let cause = format!("{} is no page size", quote(text));
    Err(Error::new(Kind::Invalid, "set linux.resources.hugepageLimits", cause).next("sizes look like 2MB"))
}

/// The same on both versions.
fn rdma(resources: &LinuxResources, settings: &mut Vec<Setting>) {
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_by_key(|(name, _)| name.as_str());
    for (name, limits) in devices {
        let word = |key: &str, value: Option<u32>| value.map(|value| format!(" {key}={value}")).unwrap_or_default();
        let (handles, objects) = (word("hca_handle", limits.hca_handles()), word("hca_object", limits.hca_objects()));
        if !handles.is_empty() || !objects.is_empty() {
            settings.push(Setting::new("rdma", "rdma.max", format!("{name}{handles}{objects}")));
        }
    }
}
