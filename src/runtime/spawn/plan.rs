//! Everything about a container's first process that is decided before it exists.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use oci_spec::runtime::{Hooks, Linux, Process, Spec};

use super::idmap::{self, IdMaps};
use super::namespace::{self, Namespaces};
use crate::error::{Error, Kind, Result};
use crate::program::{self, Given, Kernel, Role, UserNamespace};
use crate::rootfs::{self, Around};

/// What becomes of a specification.
#[derive(Debug)]
pub(in crate::runtime) struct Plan {
    pub(super) namespaces: Namespaces,
    /// Of a new user namespace.
    pub(super) ids: Option<IdMaps>,
    /// Until they are used up, which only the child does.
    pub(super) rootfs: Option<rootfs::Plan>,
    pub(super) program: Option<program::Plan>,
    pub(super) terminal: Option<Terminal>,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    pub(super) hooks: Hooks,
    /// The program's environment: that of hooks inside, too.
    pub(super) environment: Vec<String>,
    /// Where a seccomp listener goes, and what goes with it.
    pub(super) seccomp: Seccomp,
}

/// A terminal that the process gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terminal {
    /// Rows and columns, where the specification says.
    pub size: Option<(u16, u16)>,
}

/// What the specification says about a filter that asks a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seccomp {
    pub path: Option<PathBuf>,
    pub metadata: Option<String>,
}

impl Seccomp {
    pub(super) fn of(linux: Option<&Linux>) -> Self {
        let seccomp = linux.and_then(|linux| linux.seccomp().as_ref());
        seccomp.map_or_else(Self::default, |seccomp| Self {
            path: seccomp.listener_path().clone(),
            metadata: seccomp.listener_metadata().clone(),
        })
    }
}

/// Decides, but for the kernel that it looks at.
///
/// # Errors
/// [`Kind::Invalid`] naming what makes no sense, [`Kind::Unsupported`] for what this kernel lacks.
pub(in crate::runtime) fn plan(spec: &Spec, around: &Around<'_>, given: Given) -> Result<Plan> {
    let linux = spec.linux().as_ref();
    let namespaces = namespace::plan(linux)?;
    let ids = match linux {
        Some(linux) if namespaces.new.contains(CloneFlags::CLONE_NEWUSER) => Some(idmap::plan(linux)?),
        _ => None,
    };
    let process = spec.process().as_ref().ok_or_else(|| Error::new(Kind::Invalid, "check process", "it is missing"))?;
    let user = user_namespace(namespaces.has(CloneFlags::CLONE_NEWUSER));
    let kernel = Kernel::observe(process, user)?;
    let named = |name: &Option<String>, what: &str| match name.as_deref().filter(|name| !name.is_empty()) {
        Some(_) if !namespaces.has(CloneFlags::CLONE_NEWUTS) => {
            let cause = "there is no uts namespace, so it would be the host's";
            Err(Error::new(Kind::Invalid, format!("check {what}"), cause)
                .next("add {\"type\": \"uts\"} to linux.namespaces"))
        }
        name => Ok(name.map(str::to_owned)),
    };
    Ok(Plan {
        ids,
        rootfs: Some(rootfs::plan(spec, around)?),
        program: Some(program::plan(process, linux, Role::Init, &kernel, given)?),
        terminal: terminal(process),
        hostname: named(spec.hostname(), "hostname")?,
        domainname: named(spec.domainname(), "domainname")?,
        hooks: spec.hooks().clone().unwrap_or_default(),
        environment: process.env().clone().unwrap_or_default(),
        seccomp: Seccomp::of(linux),
        namespaces,
    })
}

impl Plan {
    /// Has these mounts attached in place of bind mounts at the same destinations.
    pub(in crate::runtime) fn give(&mut self, mounted: Vec<(PathBuf, OwnedFd)>) {
        if let Some(rootfs) = &mut self.rootfs {
            mounted.into_iter().for_each(|(destination, tree)| rootfs.give(&destination, tree));
        }
    }
}

/// What the plan had a part of, and has no more.
pub(super) fn used_up() -> Error {
    Error::new(Kind::System, "make a process", "its plan was used twice")
}

/// In which user namespace the process will be.
pub(super) fn user_namespace(other: bool) -> UserNamespace {
    if other { UserNamespace::Other } else { UserNamespace::Own }
}

/// The terminal that a process asks for.
pub(super) fn terminal(process: &Process) -> Option<Terminal> {
    let size = process.console_size().map(|size| {
        let clamp = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        (clamp(size.height()), clamp(size.width()))
    });
    process.terminal().unwrap_or(false).then_some(Terminal { size })
}
