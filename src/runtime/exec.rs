//! Exec: one more process in a running container.
//!
//! The engine reads what it needs from files under a directory of this exec's own, which is gone as soon as the
//! process runs: the container's own files are never written by an exec. Two things the engine leaves out are done
//! here: the container's user namespace is joined, and its seccomp filter is loaded.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{ContainerStatus, State};
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{Capabilities, Linux, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Process, Spec};

use crate::cgroup::Manager;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::runtime::create::{keyring_name, write_pid_file};
use crate::runtime::executor::{FOR_LOADING, Filter, Program};
use crate::runtime::record::{self, Record};
use crate::runtime::{Pty, StateRoot, Status, engine, foreground, pty, state};
use crate::sys::fs::{by_descriptor, memory_file, random_id};
use crate::sys::process::{self, ExitStatus, join_session_keyring, kill_children};
use crate::sys::signal::{self, Blocked};

/// What to run in a container.
#[derive(Debug)]
pub struct ExecRequest {
    /// The process, complete (see [`crate::bundle::process`]).
    pub process: Process,
    /// Returns once it runs, instead of when it has ended.
    pub detach: bool,
    /// A socket that gets the terminal's other end, for a detached process that wants a terminal.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the pid.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on stay open.
    pub preserve_fds: u32,
    /// Whether it may wait in a paused container for its resumption.
    pub ignore_paused: bool,
    /// A cgroup below the container's, which exists.
    pub sub_cgroup: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecOutcome {
    /// It runs.
    Detached,
    /// It has ended.
    Exited(ExitStatus),
}

/// Runs a process in a container.
///
/// # Errors
/// [`Kind::State`] if the container does not run, [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for
/// the program.
pub fn exec(root: &StateRoot, id: &ContainerId, request: ExecRequest) -> Result<ExecOutcome> {
    let operation = || format!("exec in container '{id}'");
    let record = Record::load(root, id)?;
    check_state(&record, request.ignore_paused)?;
    check_terminal(&request).context(operation)?;
    let spec = state::spec(root, id)?;
    let plan = plan(&spec, &request.process).context(operation)?;
    let directory = Directory::make(root, id).context(operation)?;
    if request.detach {
        let mask = signal::current_mask()?;
        launch(&record, &request, plan, &directory, mask).context(operation)?;
        return Ok(ExecOutcome::Detached);
    }
    // Blocked before the process exists: a signal that comes meanwhile is kept for it.
    let signals = Blocked::all()?;
    let (pid, pty) = launch(&record, &request, plan, &directory, signals.before()).context(operation)?;
    drop(directory);
    let child = process::Process::open(pid)?
        .ok_or_else(|| Error::new(Kind::State, operation(), format!("process {pid} is gone")))?;
    foreground::attend(&child, signals, pty.as_ref(), |_| ()).map(ExecOutcome::Exited)
}

fn check_state(record: &Record, ignore_paused: bool) -> Result<()> {
    let refuse = |cause: &str| Err(Error::new(Kind::State, format!("exec in container '{}'", record.id), cause));
    match state::status(record)? {
        Status::Running => Ok(()),
        Status::Paused if ignore_paused => Ok(()),
        Status::Paused => refuse("cannot exec in a paused container (use --ignore-paused to override)"),
        Status::Stopped => refuse("cannot exec in a stopped container: container not running"),
        Status::Created | Status::Creating => refuse("container not running: it was not started yet"),
    }
}

fn check_terminal(request: &ExecRequest) -> Result<()> {
    let terminal = request.process.terminal().unwrap_or(false);
    let refuse = |cause: &str| Err(Error::new(Kind::Invalid, "check the terminal", cause));
    match (terminal && request.detach, request.console_socket.is_some()) {
        (true, false) => refuse("cannot allocate tty if regen will detach without setting console socket"),
        (false, true) => refuse("cannot use console socket if regen will not detach or allocate tty"),
        (true, true) | (false, false) => Ok(()),
    }
}

/// What the engine gets, and what it leaves to the executor.
#[derive(Debug)]
struct Plan {
    spec: Spec,
    process: Process,
    filter: Option<Filter>,
}

/// Decides what the engine joins, and which capabilities the process must have for a moment longer than it keeps
/// them: without no_new_privs only CAP_SYS_ADMIN may load a filter.
fn plan(container: &Spec, wanted: &Process) -> Result<Plan> {
    let linux = container.linux().clone().unwrap_or_default();
    // The user namespace is joined before the engine begins, which would make a new one.
    let joined = |namespace: &LinuxNamespace| namespace.typ() != LinuxNamespaceType::User;
    let namespaces = linux.namespaces().iter().flatten().filter(|namespace| joined(namespace)).cloned().collect();
    let mut lean = Linux::default();
    lean.set_resources(None)
        .set_devices(None)
        .set_masked_paths(None)
        .set_readonly_paths(None)
        .set_namespaces(Some(namespaces))
        .set_cgroups_path(linux.cgroups_path().clone())
        .set_personality(linux.personality().clone());
    let mut process = wanted.clone();
    let filter = linux.seccomp().clone().map(|seccomp| plan_filter(seccomp, &mut process)).transpose()?;
    let mut spec = Spec::default();
    // The engine insists on a root that exists on the host; the container's may be visible inside only.
    let mut root = oci_spec::runtime::Root::default();
    root.set_path(PathBuf::from("/"));
    spec.set_root(Some(root))
        .set_version(container.version().clone())
        .set_mounts(None)
        .set_hostname(None)
        .set_process(Some(process.clone()))
        .set_linux(Some(lean));
    Ok(Plan { spec, process, filter })
}

fn plan_filter(seccomp: LinuxSeccomp, process: &mut Process) -> Result<Filter> {
    if libcontainer::seccomp::is_notify(&seccomp) {
        let cause = "the container's filter reports to a listener, and that is only set up for its first process";
        return Err(Error::new(Kind::Unsupported, "load the container's seccomp filter", cause));
    }
    if process.no_new_privileges() == Some(true) {
        return Ok(Filter { seccomp, keep: None });
    }
    let keep = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<Capabilities>| Some(set.iter().flatten().copied().chain(FOR_LOADING).collect());
    let mut sets = keep.clone();
    sets.set_bounding(with(keep.bounding()))
        .set_effective(with(keep.effective()))
        .set_permitted(with(keep.permitted()));
    process.set_capabilities(Some(sets));
    Ok(Filter { seccomp, keep: Some(keep) })
}

/// Starts the process; returns its pid and, if it has a terminal that we show, that.
fn launch(
    record: &Record,
    request: &ExecRequest,
    plan: Plan,
    directory: &Directory,
    mask: nix::sys::signal::SigSet,
) -> Result<(i32, Option<Pty>)> {
    let init = record.init()?;
    directory.write(record, &plan.spec)?;
    let file = memory_file("process", &serde_json::to_vec(&plan.process).context(|| "write the process")?)?;
    let console = match (plan.process.terminal(), request.detach) {
        (Some(true), false) => Some(pty::Console::listen(&directory.path)?),
        _ => None,
    };
    let socket = console.as_ref().map(|console| console.path().to_owned()).or_else(|| request.console_socket.clone());
    if record.keyring {
        join_session_keyring(&keyring_name(&record.id))?;
    }
    join_user_namespace(init.pid)?;
    let program = Program { mask, start_container: None, seccomp: plan.filter, report: true };
    let built = ContainerBuilder::new(record.id.to_string(), SyscallType::Linux)
        .with_root_path(&directory.path)
        .map_err(|error| engine::explain(&error, "prepare the engine".to_owned()))?
        .with_console_socket(socket)
        .with_preserved_fds(i32::try_from(request.preserve_fds).unwrap_or(i32::MAX))
        .with_executor(program)
        .as_tenant()
        .with_process(Some(by_descriptor(&file)))
        .with_sub_cgroup(request.sub_cgroup.clone())
        .with_ignore_paused(request.ignore_paused)
        .with_detach(true)
        .build();
    let finish = || -> Result<(i32, Option<Pty>)> {
        let pid = built.map_err(|error| engine::explain(&error, "start the process".to_owned()))?.as_raw();
        let pty = console.map(pty::Console::receive).transpose()?;
        if let Some(path) = &request.pid_file {
            write_pid_file(path, pid)?;
        }
        Ok((pid, pty))
    };
    finish().inspect_err(|_| {
        if let Err(error) = kill_children() {
            tracing::warn!("clean up after a failed exec in '{}': {error}", record.id);
        }
    })
}

/// The engine joins every namespace of the container but its user namespace, and would run the process with the
/// host's root in it. Joined here, for good: this process has nothing else to do.
fn join_user_namespace(pid: i32) -> Result<()> {
    let operation = || "join the container's user namespace";
    let path = format!("/proc/{pid}/ns/user");
    let theirs = fs::metadata(&path).context(operation)?;
    let ours = fs::metadata("/proc/self/ns/user").context(operation)?;
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Ok(());
    }
    let namespace = File::open(&path).context(operation)?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWUSER).context(operation)
}

/// A directory for the engine's files of one exec, removed on drop.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn make(root: &StateRoot, id: &ContainerId) -> Result<Self> {
        let name: String = random_id()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = root.container(id).join("exec").join(name);
        let engine = path.join(id.as_str());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&engine).context(|| "make a directory for it")?;
        Ok(Self { path })
    }

    /// What the engine wants to read: a state that says "running", and a specification.
    fn write(&self, record: &Record, spec: &Spec) -> Result<()> {
        record::write_config(&self.path, spec)?;
        let pid = record.init()?.pid;
        let mut state = State::new(record.id.as_str(), ContainerStatus::Running, Some(pid), self.path.clone());
        state.use_systemd = record.cgroup.manager == Manager::Systemd;
        state
            .save(&self.path.join(record.id.as_str()))
            .map_err(|error| Error::new(Kind::System, "write the engine's state", error.to_string()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What stays goes with the container's own directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Capability;

    use super::*;
    use crate::bundle::process::{Wishes, plan as plan_process};
    use crate::bundle::template::{Privilege, starter};

    fn container(no_new_privileges: bool) -> Spec {
        let mut value = serde_json::to_value(starter(Privilege::Root)).unwrap();
        value["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"});
        value["process"]["noNewPrivileges"] = no_new_privileges.into();
        serde_json::from_value(value).unwrap()
    }

    fn plan_ls(spec: &Spec) -> Plan {
        let wishes = Wishes { args: vec!["ls".to_owned()], ..Wishes::default() };
        plan(spec, &plan_process(spec, &wishes).unwrap()).unwrap()
    }

    #[test]
    fn loading_a_filter_without_no_new_privs_needs_capabilities_that_are_given_up_again() {
        let planned = plan_ls(&container(false));
        let bounding = planned.process.capabilities().clone().unwrap().bounding().clone().unwrap();
        assert!(bounding.contains(&Capability::SysAdmin));
        let keep = planned.filter.unwrap().keep.unwrap();
        assert!(!keep.bounding().clone().unwrap().contains(&Capability::SysAdmin));
    }

    #[test]
    fn with_no_new_privs_nothing_is_added() {
        let planned = plan_ls(&container(true));
        let bounding = planned.process.capabilities().clone().unwrap().bounding().clone().unwrap();
        assert!(!bounding.contains(&Capability::SysAdmin));
        assert!(planned.filter.unwrap().keep.is_none());
    }

    #[test]
    fn the_engine_gets_no_mounts_hooks_or_filter_of_the_container() {
        let planned = plan_ls(&container(true));
        assert!(planned.spec.mounts().is_none() && planned.spec.hooks().is_none());
        assert!(planned.spec.linux().as_ref().unwrap().seccomp().is_none());
    }
}
