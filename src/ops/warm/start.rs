//! The start of a container, as a clone if its creator was told so.
//!
//! ```text
//! memo ── none ─────────────────────────────────────────────────────────────────> it starts as ever
//!   └─> the template's keeper: Fit ── not there, does not fit ──> required? ── no ──> as ever, with one line in the log
//!          │                                                          └── yes ─> refused; the container still waits
//!          └─> shelter ─> Enter ── Entered ──> adopt
//!                           └── not done ──> required? ── no ──> as ever, with one line in the log
//!                                                └── yes ─> refused; the container has ended
//! ```

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use oci_spec::runtime::{Process, Spec};

use super::base;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::image::user::resolve_user;
use crate::ops::Place;
use crate::ops::request::{Need, TemplateRequest};
use crate::runtime::{self, Created, Sheltered};
use crate::template::client::Requester;
use crate::template::definition::directory;
use crate::template::job::Job;
use crate::template::message::{Answer, Enter, Fits, Request, Stage, Terminal};

/// How long a keeper may be busy with others. A container that starts later than it would without its template has gained
/// nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a keeper may take over a clone; it gives up before.
const ENTRY: Duration = Duration::from_secs(30);
/// How long what a dead keeper left in a container may take to die.
const DYING: Duration = Duration::from_secs(2);

/// Starts a created container.
///
/// # Errors
/// As [`runtime::start()`]; [`Kind::State`] if it may not start without its template and has to.
pub fn start(place: &Place, id: &ContainerId) -> Result<()> {
    begin(place, id, None)
}

/// Starts the container that the calling process has just created for itself.
///
/// # Errors
/// As [`start`].
pub fn start_created(place: &Place, id: &ContainerId, created: &Created) -> Result<()> {
    begin(place, id, Some(created))
}

fn begin(place: &Place, id: &ContainerId, created: Option<&Created>) -> Result<()> {
    let cold = || match created {
        Some(created) => created.start(&place.root, id),
        None => runtime::start(&place.root, id),
    };
    let Some(memo) = runtime::memo(&place.root, id)? else { return cold() };
    let request: TemplateRequest = memo.parse()?;
    let (requester, spec) = match meet(place, id, &request) {
        Ok(met) => met,
        Err(error) => return go_without(id, &request, error, cold),
    };
    let sheltered = match created {
        Some(created) => created.shelter(&place.root, id)?,
        None => runtime::shelter(&place.root, id)?,
    };
    match enter(&sheltered, &requester, spec) {
        Ok(Entry::Done(pid)) => sheltered.adopt(pid, None),
        Ok(Entry::Undone(error)) => go_without(id, &request, error, || sheltered.start()),
        Err(error) => Err(error.during(operation(id, &request))),
    }
}

fn operation(id: &ContainerId, request: &TemplateRequest) -> String {
    format!("start container '{id}' from template '{}'", request.name)
}

/// The template is not to be had: what else is done is the container's choice.
fn go_without(
    id: &ContainerId,
    request: &TemplateRequest,
    error: Error,
    cold: impl FnOnce() -> Result<()>,
) -> Result<()> {
    match request.need {
        Need::Required => Err(error.during(operation(id, request))),
        Need::Preferred => {
            tracing::warn!("container '{id}' starts without template '{}': {error}", request.name);
            cold()
        }
    }
}

/// Finds the template, and makes sure that a clone of it can be this container's program. Nothing is done to that.
fn meet(place: &Place, id: &ContainerId, request: &TemplateRequest) -> Result<(Requester, Spec)> {
    let spec = runtime::spec(&place.root, id)?;
    base::check_spec(&spec)?;
    let requester = Requester::connect(&find(place, request), request.name.as_str(), PATIENCE)?;
    requester.ask(&Request::Fit, &[])?;
    let fits: Box<Fits> = match requester.answer(Some(PATIENCE))? {
        Answer::Fits(fits) => fits,
        other => return Err(refusal(other)),
    };
    let init = runtime::state(&place.root, id)?.pid;
    base::check_files(init, &fits)?;
    Ok((requester, spec))
}

/// The owner's own template of that name, or one of root's that the administrator lets everybody use.
fn find(place: &Place, request: &TemplateRequest) -> PathBuf {
    let own = directory(&place.store, &request.owner, &request.name);
    let shared = place.config.template.shared.iter().any(|name| name == request.name.as_str());
    match "root".parse() {
        Ok(root) if shared && !own.exists() => directory(&place.store, &root, &request.name),
        Ok(_) | Err(_) => own,
    }
}

/// What became of a clone.
enum Entry {
    /// It is there, with this pid in the container.
    Done(i32),
    /// It is not, and nothing of it is.
    Undone(Error),
}

/// Has the clone made. An error means that it is not known, or too late for anything else.
fn enter(sheltered: &Sheltered, requester: &Requester, spec: Spec) -> Result<Entry> {
    let (job, enter) = match order(sheltered, spec) {
        Ok(order) => order,
        Err(error) => return Ok(Entry::Undone(error)),
    };
    let job = job.seal()?;
    let [stdin, stdout, stderr] = sheltered.stdio();
    let descriptors = [job.as_fd(), stdin, stdout, stderr, sheltered.directory()];
    let answer =
        requester.ask(&Request::Enter(Box::new(enter)), &descriptors).and_then(|()| requester.answer(Some(ENTRY)));
    match answer {
        Ok(Answer::Entered { inner_pid, .. }) => Ok(Entry::Done(inner_pid)),
        Ok(Answer::Failed { error, stage: Stage::After }) => Err(error),
        Ok(other) => Ok(Entry::Undone(refusal(other))),
        // Its keeper has died, and what it held dies with it.
        Err(error) if error.kind() == Kind::State && becomes_empty(sheltered)? => Ok(Entry::Undone(error)),
        Err(error) => Err(error),
    }
}

fn becomes_empty(sheltered: &Sheltered) -> Result<bool> {
    let deadline = Instant::now() + DYING;
    loop {
        if sheltered.is_empty()? {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the clone is to do, and who it is.
fn order(sheltered: &Sheltered, mut spec: Spec) -> Result<(Job, Enter)> {
    let mut process = spec.process_mut().take().unwrap_or_default();
    let pid = sheltered.init().pid();
    let env = environment(&process, || {
        // The link itself would be no directory.
        let root = format!("/proc/{pid}/root/.");
        resolve_user(root.as_ref(), &process.user().uid().to_string()).ok().and_then(|user| user.home)
    });
    let job = Job { args: process.args().clone().unwrap_or_default(), env, call: None };
    process.set_args(None);
    process.set_env(None);
    let terminal = match process.terminal() {
        Some(true) => Terminal::Controlling,
        Some(false) | None => Terminal::None,
    };
    let enter = Enter {
        container: sheltered.id().clone(),
        init: sheltered.identity().context(|| "look at the container's first process")?.clone(),
        cgroup: sheltered.cgroup().clone(),
        process,
        seccomp: spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()),
        terminal,
    };
    Ok((job, enter))
}

/// The variables of the specification, with a HOME where it gives none, as for every program.
fn environment(process: &Process, home: impl FnOnce() -> Option<String>) -> Vec<String> {
    let mut variables = process.env().clone().unwrap_or_default();
    if !variables.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        variables.retain(|entry| entry != "HOME=");
        variables.push(format!("HOME={}", home().unwrap_or_else(|| "/".to_owned())));
    }
    variables.retain(|entry| entry.find('=').is_some_and(|index| index > 0));
    variables
}

fn refusal(answer: Answer) -> Error {
    let operation = "ask the keeper of a template";
    match answer {
        Answer::Failed { error, .. } => error,
        Answer::Unfit { reason } => Error::new(Kind::Unsupported, operation, reason),
        Answer::Fits(_) | Answer::Entered { .. } | Answer::Taken { .. } => {
            Error::new(Kind::Damaged, operation, "it answers something else")
        }
    }
}
