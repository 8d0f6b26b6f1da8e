//! Create: from a specification to a process that waits for `start`.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use chrono::Utc;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{ContainerStatus, State};
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::SigSet;
use oci_spec::runtime::Spec;

use crate::bundle::derive::{Derived, Surroundings, derive};
use crate::cgroup::{self, Cgroup, Manager};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::runtime::executor::Program;
use crate::runtime::record::{self, Phase, Record};
use crate::runtime::{Pty, StateRoot, delete, engine, pty, rootfs};
use crate::sys::process::{Identity, Process, join_session_keyring, kill_children};
use crate::sys::{exe, signal};

/// Where the standard streams of the container's program go.
#[derive(Debug, Default)]
pub enum Stdio {
    /// Where ours go.
    #[default]
    Inherit,
    /// To these.
    Files {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// To a terminal of the container's, whose other end comes back in [`Created::pty`].
    Pty,
}

/// What a container is made from.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its id.
    pub id: ContainerId,
    /// The user's bundle, absolute: shown in the state and to hooks.
    pub bundle: PathBuf,
    /// The user's specification; what the engine needs to have changed in it is changed here.
    pub spec: Spec,
    /// A socket that gets the terminal's other end; exactly if the process wants a terminal and nobody here keeps it.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the pid.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on stay open in the container.
    pub preserve_fds: u32,
    /// chroot instead of pivot_root, for a root file system on the initial ramdisk.
    pub no_pivot: bool,
    /// Leaves the caller's session keyring to the container.
    pub no_new_keyring: bool,
    /// Lets systemd make the cgroup.
    pub systemd_cgroup: bool,
    /// The program's standard streams.
    pub stdio: Stdio,
    /// The signal mask that the program starts with; the caller's own if none. For callers that block signals before.
    pub mask: Option<SigSet>,
    /// Whatever the caller wants to find again in [`super::ContainerState::attachment`].
    pub attachment: Option<serde_json::Value>,
}

impl CreateRequest {
    /// A request with everything else at its default.
    #[must_use]
    pub fn new(id: ContainerId, bundle: PathBuf, spec: Spec) -> Self {
        Self {
            id,
            bundle,
            spec,
            console_socket: None,
            pid_file: None,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            systemd_cgroup: false,
            stdio: Stdio::Inherit,
            mask: None,
            attachment: None,
        }
    }
}

/// A container whose program waits.
#[derive(Debug)]
pub struct Created {
    /// Its first process.
    pub init: Identity,
    /// Where its processes are counted.
    pub cgroup: Cgroup,
    /// The near end of its terminal, for [`Stdio::Pty`].
    pub pty: Option<Pty>,
}

/// Makes a container. On failure nothing of it is left.
///
/// The root file system is taken as the calling process sees it: a mount that only its mount namespace has is fine.
///
/// # Errors
/// [`Kind::Exists`] if the id is taken, [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for the program,
/// else what the image, the specification or the kernel have against it.
pub fn create(root: &StateRoot, mut request: CreateRequest) -> Result<Created> {
    let id = request.id.clone();
    let operation = || format!("create container '{id}'");
    check_terminal(&request).context(operation)?;
    let around = Surroundings {
        id: &id,
        bundle: &request.bundle,
        relay: Path::new(exe::SELF),
        systemd_cgroup: request.systemd_cgroup,
    };
    let derived = derive(request.spec.clone(), around);
    let record = plan_record(&request, &derived).context(operation)?;
    rootfs::check(&record.rootfs, &derived.spec).context(operation)?;
    rootfs::make_working_directory(&record.rootfs, &derived.spec).context(operation)?;
    record.cgroup.check_free().context(operation)?;

    let lock = record::claim(root, &id)?;
    let made = build(root, record, derived, &mut request);
    match made {
        Ok(created) => Ok(created),
        Err(error) => {
            // What went wrong is what is reported; what clean-up leaves behind is logged.
            undo(root, &id);
            drop(lock);
            Err(error.during(operation()))
        }
    }
}

/// A terminal needs somebody who holds its other end.
fn check_terminal(request: &CreateRequest) -> Result<()> {
    let wanted = request.spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal).unwrap_or(false);
    let refuse = |cause: &str, next: &str| Err(Error::new(Kind::Invalid, "check process.terminal", cause).next(next));
    match (wanted, &request.stdio, &request.console_socket) {
        (true, Stdio::Inherit | Stdio::Files { .. }, None) => {
            refuse("cannot allocate tty if regen will detach without setting console socket", "give --console-socket")
        }
        (false, _, Some(_)) => {
            refuse("cannot use console socket if regen will not detach or allocate tty", "leave --console-socket out")
        }
        (true, Stdio::Pty, Some(_)) => {
            refuse("cannot use console socket if regen will not detach or allocate tty", "add --detach")
        }
        (false, Stdio::Pty, None) => refuse("it is false, but a terminal is to be shown", "set it to true"),
        (true, Stdio::Inherit | Stdio::Files { .. }, Some(_)) | (true, Stdio::Pty, None) => Ok(()),
        (false, Stdio::Inherit | Stdio::Files { .. }, None) => Ok(()),
    }
}

fn plan_record(request: &CreateRequest, derived: &Derived) -> Result<Record> {
    let spec = &derived.spec;
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let manager = if request.systemd_cgroup { Manager::Systemd } else { Manager::Cgroupfs };
    let cgroup = cgroup::plan(cgroup::Request { id: &request.id, path, manager })?;
    Ok(Record {
        format: Record::format(),
        id: request.id.clone(),
        phase: Phase::default(),
        oci_version: spec.version().clone(),
        bundle: request.bundle.clone(),
        rootfs: spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default(),
        init: None,
        created: Utc::now(),
        owner: nix::unistd::geteuid().as_raw(),
        cgroup,
        annotations: spec.annotations().clone(),
        hooks: derived.hooks.clone(),
        keyring: !request.no_new_keyring,
        attachment: request.attachment.clone(),
    })
}

/// Everything between the claim of the id and a container that is `created`.
fn build(root: &StateRoot, mut record: Record, derived: Derived, request: &mut CreateRequest) -> Result<Created> {
    // First on disk, so that a creator that is killed leaves a container that `delete --force` can take apart.
    record.begin(root)?;
    let id = request.id.clone();
    let bundle = record::engine(root, &id);
    record::write_config(&bundle, &derived.spec)?;
    if record.keyring {
        join_session_keyring(&keyring_name(&id))?;
    }
    let console = match request.stdio {
        Stdio::Pty => Some(pty::Console::listen(&root.container(&id))?),
        Stdio::Inherit | Stdio::Files { .. } => None,
    };
    let socket = match &console {
        Some(console) => Some(console.path().to_owned()),
        None => request.console_socket.clone(),
    };
    let program = Program {
        mask: match request.mask {
            Some(mask) => mask,
            None => signal::current_mask()?,
        },
        start_container: start_container_hooks(&record, &derived),
        seccomp: None,
        report: false,
    };
    let mut builder = ContainerBuilder::new(id.to_string(), SyscallType::Linux)
        .with_root_path(&bundle)
        .map_err(|error| engine::explain(&error, "prepare the engine".to_owned()))?
        .with_console_socket(socket)
        .with_preserved_fds(i32::try_from(request.preserve_fds).unwrap_or(i32::MAX))
        .with_executor(program);
    if let Stdio::Files { stdin, stdout, stderr } = std::mem::take(&mut request.stdio) {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let container = builder
        .as_init(bundle)
        .with_systemd(request.systemd_cgroup)
        .with_detach(true)
        .with_no_pivot(request.no_pivot)
        .build()
        .map_err(|error| engine::explain(&error, "start its first process".to_owned()))?;
    let pty = console.map(|console| console.receive()).transpose()?;
    let pid = container.pid().map(nix::unistd::Pid::as_raw).unwrap_or_default();
    let init = Identity::of(pid).context(|| "look at its first process")?;
    if record.cgroup.manager == Manager::Systemd {
        record.cgroup.locate(pid)?;
    }
    if let Some(path) = &request.pid_file {
        write_pid_file(path, pid)?;
    }
    record.complete(root, init.clone())?;
    Ok(Created { init, cgroup: record.cgroup, pty })
}

/// Hooks inside the container cannot go through our program, which is not there; they are run by the executor.
fn start_container_hooks(record: &Record, derived: &Derived) -> Option<(Vec<oci_spec::runtime::Hook>, State)> {
    let hooks = derived.hooks.start_container.clone();
    if hooks.is_empty() {
        return None;
    }
    let mut state = State::new(record.id.as_str(), ContainerStatus::Created, Some(1), record.bundle.clone());
    state.annotations.clone_from(&record.annotations);
    Some((hooks, state))
}

/// Takes apart what a failed creation left: processes, cgroup, directory.
fn undo(root: &StateRoot, id: &ContainerId) {
    let report = |result: Result<()>| {
        if let Err(error) = result {
            tracing::warn!("clean up after the failed creation of '{id}': {error}");
        }
    };
    report(kill_children());
    let cgroup = Record::load(root, id).map(|record| record.cgroup);
    report(cgroup.and_then(|cgroup| delete::clear_cgroup(&cgroup)));
    report(record::discard(root, id));
}

/// As runc calls it, so that tools that look for it find it.
pub(super) fn keyring_name(id: &ContainerId) -> String {
    format!("_ses.{id}")
}

/// Whoever waits for the file sees it whole.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let operation = || format!("write pid file {}", quote(path));
    let name = path.file_name().ok_or_else(|| Error::new(Kind::Invalid, operation(), "it has no file name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let temporary = path.with_file_name(temporary);
    fs::write(&temporary, pid.to_string()).and_then(|()| fs::rename(&temporary, path)).context(operation)
}

/// A handle to the first process of a container that was just made.
pub(super) fn open_init(created: &Created) -> Result<Process> {
    Process::open(created.init.pid)?
        .ok_or_else(|| Error::new(Kind::State, format!("open process {}", created.init.pid), "no such process"))
}
