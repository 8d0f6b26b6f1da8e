//! The daemon's side of it.

use std::os::fd::OwnedFd;
use std::path::Path;

use chrono::Utc;
use rustix::fs::inotify;
use semver::Version;

use super::{Addition, Adoption, Line, Lines, List, Question, Removal, Removed, Restart, Upgrade, Which, method};
use crate::control::operation::{Asked, run};
use crate::control::{Access, Answer, Call, Fault, Mode, Operations};
use crate::error::{Context, Error, Kind as Reason, Result, quote};
use crate::ids::Name;
use crate::operation::Kind;
use crate::ops::service::{self, Manager, Mandate};
use crate::service::log::{Reader, Source};

/// So many lines go into one answer.
const CHUNK: usize = 1000;

/// What a caller has to be allowed; `None` for what is no method of these.
pub(in crate::control) fn access(name: &str) -> Option<Access> {
    METHODS.iter().find(|(known, _)| last(known) == name).map(|(_, access)| *access)
}

/// Definitions have passwords in their environment, and logs may have anything.
const METHODS: [(&str, Access); 8] = [
    (method::LIST, Access::Read),
    (method::SHOW, Access::All),
    (method::ADD, Access::All),
    (method::ADOPT, Access::All),
    (method::RESTART, Access::All),
    (method::UPGRADE, Access::All),
    (method::REMOVE, Access::All),
    (method::LOGS, Access::All),
];

/// Answers a call.
///
/// # Errors
/// What the caller is told.
pub(in crate::control) fn call(manager: &Manager, operations: &Operations, call: &Call<'_>) -> Result<Answer, Fault> {
    let is = |method: &str| call.method() == last(method);
    if is(method::LIST) {
        Answer::new(&List { services: manager.list() })
    } else if is(method::SHOW) {
        let Which { name, version } = call.parameters()?;
        Answer::new(&manager.show(&name, version.as_ref())?)
    } else if is(method::ADD) {
        let Addition { name, version, .. } = call.parameters()?;
        change(operations, call, Kind::ServiceAdd, &subject(&name, Some(&version)))
    } else if is(method::ADOPT) {
        let Adoption { addition: Addition { name, version, .. }, .. } = call.parameters()?;
        change(operations, call, Kind::ServiceAdopt, &subject(&name, Some(&version)))
    } else if is(method::RESTART) {
        let Restart { which, .. } = call.parameters()?;
        change(operations, call, Kind::ServiceRestart, &one(manager, &which))
    } else if is(method::UPGRADE) {
        let Upgrade { which, .. } = call.parameters()?;
        change(operations, call, Kind::ServiceUpgrade, &one(manager, &which))
    } else if is(method::REMOVE) {
        remove(manager, operations, call)
    } else if is(method::LOGS) {
        logs(manager, call)
    } else {
        Err(Fault::MethodNotFound(call.method().to_owned()))
    }
}

fn last(method: &str) -> &str {
    method.rsplit('.').next().unwrap_or(method)
}

/// A version, or all of them.
fn subject(name: &Name, version: Option<&Version>) -> String {
    version.map_or_else(|| format!("service/{name}"), |version| format!("service/{name}@{version}"))
}

/// The version that is meant, also where it is not said because there is but one.
fn one(manager: &Manager, which: &Which) -> String {
    let found = manager.find(&which.name, which.version.as_ref());
    subject(&which.name, found.as_ref().map(|key| &key.version).or(which.version.as_ref()))
}

/// Has done what takes time.
fn change(operations: &Operations, call: &Call<'_>, kind: Kind, subject: &str) -> Result<Answer, Fault> {
    run(operations.engine()?, call, Asked { kind, subject: subject.to_owned() })
}

/// Who removes by force what is being removed makes that hurry: it is no contradiction, and not another operation.
fn remove(manager: &Manager, operations: &Operations, call: &Call<'_>) -> Result<Answer, Fault> {
    let Removal { which: Which { name, version }, force } = call.parameters()?;
    if !force || !manager.is_being_removed(&name, version.as_ref()) {
        return change(operations, call, Kind::ServiceRemove, &subject(&name, version.as_ref()));
    }
    let removed = manager.remove((&name, version.as_ref()), service::Removal::Kill, &Mandate::own())?;
    let removed = removed.into_iter().map(|key| Which { name: key.name, version: Some(key.version) }).collect();
    Answer::new(&Removed { removed })
}

/// What is there now, and with `follow` what comes. Who does not ask for more than one answer gets the end.
///
/// A program may print faster than can be read: what is there ends with the moment of the question.
fn logs(manager: &Manager, call: &Call<'_>) -> Result<Answer, Fault> {
    let Question { which: Which { name, version }, follow } = call.parameters()?;
    let (key, directory) = manager.log(&name, version.as_ref())?;
    if follow {
        call.expect_more()?;
    }
    let asked = Utc::now();
    // Before the first look: what comes after it is told.
    let watch = follow.then(|| watch(&directory)).transpose()?;
    let mut reader = Reader::new(&directory);
    let mut rest: Vec<Line> = Vec::new();
    loop {
        let lines = reader.read()?;
        let over = !follow && lines.last().is_some_and(|line| line.time > asked);
        if !lines.is_empty() {
            rest.extend(lines.into_iter().map(Line::from));
            match call.mode() {
                Mode::More => call.send(&Lines { lines: std::mem::take(&mut rest) })?,
                Mode::Once | Mode::Oneway => drop(rest.drain(..rest.len().saturating_sub(CHUNK))),
            }
            if !over {
                continue;
            }
        }
        let Some(watch) = &watch else { return Answer::new(&Lines { lines: rest }) };
        call.wait(watch, None)?;
        silence(watch);
        if manager.log(&name, Some(&key.version)).is_err() && !directory.exists() {
            return Answer::new(&Lines { lines: rest });
        }
    }
}

/// Something to read from whenever a log is written to.
fn watch(directory: &Path) -> Result<OwnedFd> {
    let operation = || format!("follow the log at {}", quote(directory));
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).context(operation)?;
    let events = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::DELETE_SELF;
    match inotify::add_watch(&watch, directory, events) {
        Ok(_) => Ok(watch),
        Err(rustix::io::Errno::NOENT) => {
            Err(Error::new(Reason::NotFound, operation(), "the service is just being removed"))
        }
        Err(errno) => Err(errno).context(operation),
    }
}

/// Takes what the watch has to say: that is only that there is something.
fn silence(watch: &OwnedFd) {
    let mut buffer = [0_u8; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|count| count > 0) {}
}

impl From<crate::service::log::Line> for Line {
    fn from(line: crate::service::log::Line) -> Self {
        let source = match line.source {
            Source::Line => "out",
            Source::Part => "part",
            Source::Keeper => "keeper",
        };
        Self { time: line.time, instance: line.instance, source: source.to_owned(), text: line.text }
    }
}
