//! Create: from a specification to a process that waits for `start`.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use chrono::Utc;
use nix::sys::signal::SigSet;
use oci_spec::runtime::Spec;
use serde_json::value::RawValue;

use crate::cgroup::{self, Cgroup, Creation, Entrance, Manager};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::ContainerId;
use crate::program::{Activation, FIRST_SOCKET, Given, Intercept};
use crate::rootfs::{Around, Hierarchy, Pivot};
use crate::runtime::record::{self, Phase, Record};
use crate::runtime::spawn::{self, Born, Order, Plan, Privilege};
use crate::runtime::{Pty, RestoreRequest, StateRoot, checkpoint, delete, start};
use crate::sys::channel::{Channel, Listener};
use crate::sys::clone::lift;
use crate::sys::fs::open_path;
use crate::sys::process::{Identity, Process, kill_children};
use crate::sys::user_namespace::outside;
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

/// Who will start a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Starter {
    /// Whoever calls [`super::start()`], in whatever process.
    #[default]
    Anybody,
    /// The process that creates it, by [`Created::start`]. If that dies before, the container's process ends.
    Creator,
}

/// A socket that a container's program finds open, from descriptor 3 on, in the order in which they are given.
#[derive(Debug)]
pub struct Listen {
    /// The socket.
    pub socket: OwnedFd,
    /// What `LISTEN_FDNAMES` calls it: printable ASCII without blanks and colons. Several may have one name.
    pub name: String,
}

/// What a container is made from.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its id.
    pub id: ContainerId,
    /// The user's bundle, absolute: shown in the state and to hooks.
    pub bundle: PathBuf,
    /// The specification. Relative paths in it start at the bundle.
    pub spec: Spec,
    /// A socket that gets the terminal's other end; exactly if the process wants a terminal and nobody here keeps it.
    pub console_socket: Option<PathBuf>,
    /// A file that gets the pid.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on stay open in the container.
    pub preserve_fds: u32,
    /// The sockets that its program gets by socket activation, instead of any that our own environment speaks of. None
    /// of ours can be preserved beside them.
    pub listen: Vec<Listen>,
    /// Which calls of its processes the creator answers, by [`Created::listener`].
    pub intercept: Intercept,
    /// chroot instead of pivot_root, for a root file system on the initial ramdisk.
    pub no_pivot: bool,
    /// Leaves the caller's session keyring to the container.
    pub no_new_keyring: bool,
    /// Who makes the cgroup.
    pub cgroups: Manager,
    /// The program's standard streams.
    pub stdio: Stdio,
    /// Who will start it.
    pub starter: Starter,
    /// What it is restored from, instead of beginning with its program.
    pub restore: Option<RestoreRequest>,
    /// The signal mask that the program starts with; the caller's own if none. For callers that block signals before.
    pub mask: Option<SigSet>,
    /// Mounts that are attached nowhere yet, for destinations at which the specification has bind mounts: in place of their
    /// sources.
    pub mounted: Vec<(PathBuf, OwnedFd)>,
    /// Whatever the caller wants to find again in [`super::ContainerState::attachment`].
    pub attachment: Option<serde_json::Value>,
    /// A few words that whoever starts it finds by [`super::memo`].
    pub memo: Option<String>,
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
            listen: Vec::new(),
            intercept: Intercept::No,
            no_pivot: false,
            no_new_keyring: false,
            cgroups: Manager::Cgroupfs,
            stdio: Stdio::Inherit,
            starter: Starter::Anybody,
            restore: None,
            mask: None,
            mounted: Vec::new(),
            attachment: None,
            memo: None,
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
    /// Where calls are answered, for [`Intercept::Binds`]. Once nobody has it any more, they fail with ENOSYS.
    pub listener: Option<OwnedFd>,
    /// The way to its process.
    pub(super) way: Way,
    /// That of the request.
    pub(super) mask: Option<SigSet>,
}

/// How a container's first process hears that it is to start.
#[derive(Debug)]
pub(super) enum Way {
    /// On the socket in the container's directory.
    Socket,
    /// By its creator's own word, for [`Starter::Creator`].
    Channel(Channel),
    /// It was restored and stands still.
    Restored,
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
    record::check_free(root, &id)?;
    check_terminal(&request).context(operation)?;
    check_given(&request).context(operation)?;
    let mut record = plan_record(&request).context(operation)?;
    let mut plan = plan(&request, &record).context(operation)?;
    plan.give(std::mem::take(&mut request.mounted));
    record.cgroup.check_free().context(operation)?;

    let lock = record::claim(root, &id)?;
    let privilege = Privilege::of_caller();
    let made = match enclose(root, &mut record, &request, privilege) {
        Ok(entrance) => build(root, &mut record, (plan, entrance, privilege), &mut request).inspect_err(|_| {
            report(&id, kill_children());
            report(&id, delete::clear_cgroup(&record.cgroup));
        }),
        // A cgroup that could not be made is gone, or another's.
        Err(error) => Err(error),
    };
    made.map_err(|error| {
        report(&id, record::discard(root, &id));
        drop(lock);
        error.during(operation())
    })
}

/// What went wrong is what the caller is told; what clean-up leaves behind is logged.
fn report(id: &ContainerId, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!("clean up after the failed creation of '{id}': {error}");
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

/// What cannot be had together.
fn check_given(request: &CreateRequest) -> Result<()> {
    let intercepts = request.intercept == Intercept::Binds;
    let refuse = |what: &str, cause: &str| Err(Error::new(Kind::Unsupported, what, cause));
    if !request.listen.is_empty() && request.preserve_fds > 0 {
        return refuse("pass sockets", "descriptors are preserved from 3 on, where the sockets would be");
    }
    if request.restore.is_some() && (intercepts || !request.listen.is_empty()) {
        return refuse("pass sockets", "processes that are restored have theirs already");
    }
    let hooks = request.spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    if intercepts && hooks.is_some_and(|hooks| !hooks.is_empty()) {
        return refuse("intercept binds", "a startContainer hook that binds would wait before anybody answers");
    }
    Ok(())
}

fn plan_record(request: &CreateRequest) -> Result<Record> {
    let spec = &request.spec;
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let manager = request.cgroups;
    let cgroup = cgroup::plan(cgroup::Request { id: &request.id, path, manager })?;
    let hooks = spec.hooks().clone().unwrap_or_default();
    let text = serde_json::to_string(spec).and_then(RawValue::from_string).context(|| "write the specification")?;
    let root = spec.root().as_ref().map(|root| root.path().as_path()).unwrap_or(Path::new("rootfs"));
    Ok(Record {
        format: Record::format(),
        id: request.id.clone(),
        former: None,
        phase: Phase::default(),
        oci_version: spec.version().clone(),
        bundle: request.bundle.clone(),
        rootfs: request.bundle.join(root),
        init: None,
        restored: false,
        program: None,
        created: Utc::now(),
        owner: calling_user(),
        cgroup,
        annotations: spec.annotations().clone(),
        poststart: hooks.poststart().clone().unwrap_or_default(),
        poststop: hooks.poststop().clone().unwrap_or_default(),
        keyring: !request.no_new_keyring,
        chroot: request.no_pivot,
        attachment: request.attachment.clone(),
        spec: text,
    })
}

fn plan(request: &CreateRequest, record: &Record) -> Result<Plan> {
    let directories = record.cgroup.directories.iter();
    let cgroups: Vec<Hierarchy> = directories
        .map(|directory| Hierarchy { controllers: directory.controllers.clone(), directory: directory.path.clone() })
        .collect();
    let pivot = if request.no_pivot { Pivot::Move } else { Pivot::Pivot };
    let given = match Activation::of_names(request.listen.iter().map(|listen| listen.name.as_str()))? {
        None => Given { intercept: request.intercept, ..Given::of_environment() },
        activation => Given { intercept: request.intercept, activation, ..Given::default() },
    };
    let around = Around { bundle: &request.bundle, rootfs: &record.rootfs, cgroups: &cgroups, pivot };
    spawn::plan(&request.spec, &around, given)
}

/// Puts the container on record, and makes its cgroups.
fn enclose(root: &StateRoot, record: &mut Record, request: &CreateRequest, privilege: Privilege) -> Result<Entrance> {
    // First on disk, so that a creator that is killed leaves a container that `delete --force` can take apart.
    record.begin(root)?;
    let resources = request.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let planned = record.cgroup.directories.clone();
    if let Some(memo) = &request.memo {
        record.note(root, memo)?;
    }
    let entrance = match record.cgroup.create(resources, privilege.refusal())? {
        Creation::Made(entrance) => entrance,
        Creation::Refused(reason) => {
            tracing::debug!("container '{}' has no cgroup: {reason}", record.id);
            Entrance::default()
        }
    };
    if record.cgroup.directories != planned {
        record.moved(root)?;
    }
    Ok(entrance)
}

/// Everything from there to a container that is `created`.
fn build(
    root: &StateRoot,
    record: &mut Record,
    (plan, entrance, privilege): (Plan, Entrance, Privilege),
    request: &mut CreateRequest,
) -> Result<Created> {
    let id = request.id.clone();
    if let Some(restore) = request.restore.take() {
        let from = (restore, &request.stdio);
        let process = checkpoint::revive(record, &request.spec, &root.container(&id), from)?;
        record.came_back(root)?;
        return complete(root, record, request, (process, None, None), Way::Restored);
    }
    let starter = match request.starter {
        Starter::Anybody => Some(Listener::bind(open_path(&root.container(&id))?, start::SOCKET)?),
        Starter::Creator => None,
    };
    let order = Order {
        stdio: std::mem::take(&mut request.stdio),
        console_socket: request.console_socket.clone(),
        closed_from: if request.listen.is_empty() { first_closed(request.preserve_fds) } else { FIRST_SOCKET },
        sockets: lift_sockets(std::mem::take(&mut request.listen))?,
        intercept: request.intercept,
        keyring: record.keyring.then(|| keyring_name(&id)),
        mask: request.mask.map_or_else(signal::current_mask, Ok)?,
        starter,
        privilege,
        resources: request.spec.linux().as_ref().and_then(|linux| linux.resources().clone()),
    };
    exe::forget_code();
    let Born { process, channel, pty, listener } = spawn::bear(record, plan, entrance, order)?;
    let born = (process, pty, listener);
    match request.starter {
        Starter::Anybody => {
            let created = complete(root, record, request, born, Way::Socket)?;
            spawn::release(&channel)?;
            Ok(created)
        }
        Starter::Creator => complete(root, record, request, born, Way::Channel(channel)),
    }
}

/// Puts a first process on record.
fn complete(
    root: &StateRoot,
    record: &mut Record,
    request: &CreateRequest,
    (process, pty, listener): (Process, Option<Pty>, Option<OwnedFd>),
    way: Way,
) -> Result<Created> {
    // systemd's are known only now.
    if record.cgroup.manager == Manager::Systemd {
        record.moved(root)?;
    }
    let init = Identity::of(process.pid()).context(|| "look at its first process")?;
    if let Some(path) = &request.pid_file {
        write_pid_file(path, process.pid())?;
    }
    record.complete(root, init.clone())?;
    Ok(Created { init, cgroup: record.cgroup.clone(), pty, listener, way, mask: request.mask })
}

/// The first descriptor that a program does not get: after the standard streams come those of socket activation, and
/// those that the caller asks for.
#[must_use]
pub fn first_closed(preserve_fds: u32) -> u32 {
    let listening = Activation::of_environment().map_or(0, |activation| activation.count());
    FIRST_SOCKET.saturating_add(listening).saturating_add(preserve_fds)
}

/// Above the numbers that the program finds them under, so that putting one in its place closes none of the others.
fn lift_sockets(sockets: Vec<Listen>) -> Result<Vec<OwnedFd>> {
    let above = spawn::above(sockets.len());
    sockets.into_iter().map(|listen| lift(&listen.socket, above)).collect()
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

/// The user whose container it is: in a user namespace that a user of this machine has made, that user.
fn calling_user() -> u32 {
    let uid = nix::unistd::geteuid().as_raw();
    outside(uid).unwrap_or(uid)
}
