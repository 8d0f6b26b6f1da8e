//! systemd makes a container's cgroup: a transient scope around its first process, delegated to us.
//!
//! The limits are set twice: as properties of the unit, because systemd writes its own idea of them again whenever it is
//! reloaded, and as files, because not every limit has a property.

mod bus;
mod property;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use crate::cgroup::hierarchy::{Layout, parse_membership};
use crate::cgroup::limit::Scope;
use crate::cgroup::{Cgroup, Directory, Manager, make};
use crate::error::{Context, Error, Kind, Result, quote};
use bus::{Connection, Whose, explain};
use property::Version;
use wire::Writer;

/// The words of `linux.cgroupsPath`: `SLICE:PREFIX:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    slice: String,
    /// `PREFIX-NAME.scope`
    name: String,
}

impl Unit {
    fn parse(path: &Path, whose: Whose) -> Result<Self> {
        let refuse = |cause: &str| {
            let operation = format!("read linux.cgroupsPath {}", quote(path));
            Err(Error::new(Kind::Invalid, operation, cause))
        };
        let text = path.to_str().unwrap_or_default();
        let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
            return refuse("expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups");
        };
        let slice = match (slice, whose) {
            ("", Whose::System) => "system.slice",
            ("", Whose::User) => "user.slice",
            (given, _) => given,
        };
        let plain = |text: &str| !text.contains('/');
        if name.is_empty() || !plain(name) || !plain(prefix) {
            return refuse("the name of a scope is not empty and has no slash");
        }
        if name.ends_with(".slice") {
            return refuse("a container lives in a scope, not in a slice");
        }
        let stem = slice.strip_suffix(".slice").filter(|stem| !stem.is_empty() && plain(stem));
        if !stem.is_some_and(|stem| stem == "-" || !stem.split('-').any(str::is_empty)) {
            return refuse(&format!("invalid slice name {}", quote(slice)));
        }
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        Ok(Self { slice: slice.to_owned(), name })
    }
}

fn whose() -> Whose {
    let system = nix::unistd::geteuid().is_root() && !super::in_user_namespace();
    if system { Whose::System } else { Whose::User }
}

fn connect() -> Result<Connection> {
    // sd_booted(3)
    if !Path::new("/run/systemd/system").is_dir() {
        let cause = "systemd cgroup flag passed, but systemd support for managing cgroups is not available";
        return Err(
            Error::new(Kind::Unsupported, "use systemd for cgroups", cause).next("use --cgroup-manager cgroupfs")
        );
    }
    Connection::open(whose())
}

impl Cgroup {
    /// Has systemd make the scope around a process, goes into the hierarchies that systemd leaves out, and sets limits.
    pub(super) fn start_scope(&mut self, pid: i32, resources: Option<&LinuxResources>) -> Result<()> {
        let whose = whose();
        let unit = Unit::parse(&self.path, whose)?;
        let operation = || format!("start systemd scope {}", quote(&unit.name));
        let version = match Layout::find()? {
            Layout::Unified(_) => Version::Two,
            Layout::Legacy(_) if whose == Whose::User => {
                let cause = "a user's systemd manages no cgroups of version 1";
                return Err(Error::new(Kind::Unsupported, operation(), cause).next("use --cgroup-manager cgroupfs"));
            }
            Layout::Legacy(_) => Version::One,
        };
        let default = LinuxResources::default();
        let resources = resources.unwrap_or(&default);
        let pid_number = u32::try_from(pid).map_err(|_| Error::new(Kind::Invalid, operation(), "not a process id"))?;
        let mut properties = property::identity(&unit.name, &unit.slice, pid_number, version);
        properties.extend(property::limits(resources, version)?);
        properties.extend(property::devices(resources)?);
        let mut body = Writer::default();
        body.text(&unit.name);
        body.text("replace");
        body.properties(&properties);
        body.no_auxiliary_units();
        let mut connection = connect()?;
        connection.watch_jobs()?;
        run_job(&mut connection, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body, &unit.name).context(operation)?;
        self.locate(pid).context(operation)?;
        self.join_the_rest(pid).context(operation)?;
        self.limit(resources, Scope::All)
    }

    /// systemd knows some hierarchies of version 1; the others get a directory of the same name.
    fn join_the_rest(&mut self, pid: i32) -> Result<()> {
        let Layout::Legacy(hierarchies) = Layout::find()? else { return Ok(()) };
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).context(|| "find the scope's cgroup")?;
        let members = parse_membership(&table);
        let named = members.iter().find(|(controllers, _)| *controllers == "name=systemd").map(|(_, name)| *name);
        let Some(name) = named.filter(|name| *name != Path::new("/")) else {
            return Err(Error::new(Kind::State, "find the scope's cgroup", "systemd moved the process nowhere"));
        };
        self.directories.clear();
        for one in hierarchies {
            let Some(path) = one.directory(name) else { continue };
            if !members.iter().any(|(controllers, at)| *controllers == one.controllers && *at == name) {
                make::join(&path, &one.controllers, pid)?;
            }
            self.directories.push(Directory { controllers: one.controllers, path });
        }
        Ok(())
    }

    /// Tells systemd of new limits, which would otherwise undo them at its next reload.
    pub(super) fn update_scope(&self, resources: &LinuxResources) -> Result<()> {
        let unit = Unit::parse(&self.path, whose())?;
        let version = if self.unified().is_some() { Version::Two } else { Version::One };
        let properties = property::limits(resources, version)?;
        if properties.is_empty() {
            return Ok(());
        }
        let mut body = Writer::default();
        body.text(&unit.name);
        // For the unit's life, not for those to come.
        body.boolean(true);
        body.properties(&properties);
        let operation = format!("set properties of systemd scope {}", quote(&unit.name));
        connect()?.manager("SetUnitProperties", "sba(sv)", &body)?.map(drop).map_err(|no| explain(&operation, &no))
    }

    /// Ends the scope. One that has ended, and been forgotten, is no error.
    pub(super) fn stop_scope(&self) -> Result<()> {
        let unit = Unit::parse(&self.path, whose())?;
        let mut connection = connect()?;
        connection.watch_jobs()?;
        let mut body = Writer::default();
        body.text(&unit.name);
        body.text("replace");
        let operation = || format!("stop systemd scope {}", quote(&unit.name));
        match connection.manager("StopUnit", "ss", &body)? {
            Ok(answer) => {
                if let Some(job) = answer.texts.first() {
                    connection.wait_job(job).context(operation)?;
                }
            }
            Err(refused) if refused.name == NO_SUCH_UNIT => return Ok(()),
            Err(refused) => return Err(explain(&operation(), &refused)),
        }
        forget(&mut connection, &unit.name)
    }
}

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// Calls a method that begins a job, and waits for its end. A unit of that name that has failed is forgotten first.
fn run_job(connection: &mut Connection, member: &str, signature: &str, body: &Writer, unit: &str) -> Result<()> {
    let mut answer = connection.manager(member, signature, body)?;
    if answer.as_ref().is_err_and(|refused| refused.name == UNIT_EXISTS) {
        forget(connection, unit)?;
        answer = connection.manager(member, signature, body)?;
    }
    let answer = answer.map_err(|refused| explain(&format!("call {member}"), &refused))?;
    let Some(job) = answer.texts.first() else {
        return Err(Error::new(Kind::Damaged, format!("call {member}"), "systemd named no job"));
    };
    match connection.wait_job(job)?.as_str() {
        "done" => Ok(()),
        other => Err(Error::new(Kind::System, format!("call {member}"), format!("systemd's job ended as '{other}'"))),
    }
}

fn forget(connection: &mut Connection, unit: &str) -> Result<()> {
    let mut body = Writer::default();
    body.text(unit);
    // Most are gone already, or have not failed.
    connection.manager("ResetFailedUnit", "s", &body).map(drop)
}

impl Manager {
    /// Whether a path has the form that this manager wants.
    pub(super) fn check(self, path: &Path) -> Result<PathBuf> {
        match self {
            Self::Systemd => Unit::parse(path, whose()).map(|_| path.to_owned()),
            Self::Cgroupfs | Self::Disabled => Ok(path.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_slice_and_scope() {
        let unit = |text: &str| Unit::parse(Path::new(text), Whose::System);
        let made = unit("machine.slice:libpod:abc").unwrap();
        assert_eq!((made.slice.as_str(), made.name.as_str()), ("machine.slice", "libpod-abc.scope"));
        assert_eq!(unit(":regen:a").unwrap().slice, "system.slice");
        assert_eq!(unit("-.slice::a").unwrap().name, "a.scope");
        assert_eq!(Unit::parse(Path::new(":regen:a"), Whose::User).unwrap().slice, "user.slice");
        for wrong in [
            "/a/b",
            "a:b",
            "x:y:z",
            "a/b.slice:x:y",
            ".slice:x:y",
            "a--b.slice:x:y",
            "a.slice:x:",
            "a.slice:x:y.slice",
            "a.slice:x:y/z",
        ] {
            assert_eq!(unit(wrong).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }
}
