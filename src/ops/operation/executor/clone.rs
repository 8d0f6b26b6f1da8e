//! Tasks that make a container from a template: it runs when they are done, and stays as any other.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Executor, Settled, Task};
use crate::cgroup;
use crate::error::{Context, Error, Kind as Fault, Result};
use crate::ids::{ContainerId, Name};
use crate::operation::Kind;
use crate::ops::Place;
use crate::ops::clone::{Wish, take};
use crate::ops::warm::snapshot::Snapshot;
use crate::sys::exe;
use crate::sys::fs::{TEMPORARY_PREFIX, read_capped};
use crate::template::definition::directory;
use crate::template::message::Cleanup;

/// How long others may be served before.
const PATIENCE: Duration = Duration::from_secs(60);
/// So much of what a process logs is read.
const LOG_CAP: u64 = 1 << 20;

/// Who makes clones. The answer is the `container`'s id, and its `pid` where that is known.
#[derive(Debug)]
pub struct Clone {
    place: Place,
    cgroups: cgroup::Manager,
}

/// What is asked, beside the id, which is the task's target.
#[derive(Debug, Deserialize)]
struct Asked {
    template: Name,
    function: Option<PathBuf>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    workdir: Option<String>,
    /// The most memory, in bytes.
    memory: Option<u64>,
}

impl Clone {
    /// The kinds that it is for.
    pub const KINDS: [Kind; 1] = [Kind::Clone];

    /// One for containers of a state root.
    #[must_use]
    pub fn new(place: Place, cgroups: cgroup::Manager) -> Self {
        Self { place, cgroups }
    }

    /// Asks the template's keeper, which forks one.
    fn fork(&self, id: ContainerId, asked: Asked) -> Result<Value> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").context(|| "open '/dev/null'")?;
        let wish = Wish {
            template: asked.template,
            id: Some(id),
            function: asked.function,
            command: asked.command,
            call: None,
            env: asked.env,
            workdir: asked.workdir,
            memory: asked.memory,
            cleanup: Cleanup::Keep,
        };
        let taken = take(&self.place, &wish, [null.as_fd(); 3], PATIENCE)?;
        Ok(json!({"container": taken.container, "pid": taken.pid}))
    }

    /// Restoring a snapshot takes a process with a single thread, which this one is not.
    fn restore(&self, id: &ContainerId, asked: Asked) -> Result<Value> {
        let mut command = Command::new(exe::SELF);
        command.arg("--root").arg(self.place.root.path()).arg("--store").arg(&self.place.store);
        if let Some(file) = &self.place.config_file {
            command.arg("--config").arg(file);
        }
        let manager = match self.cgroups {
            cgroup::Manager::Cgroupfs => "cgroupfs",
            cgroup::Manager::Systemd => "systemd",
            cgroup::Manager::Disabled => "disabled",
        };
        let log = self.place.store.join(format!("{TEMPORARY_PREFIX}clone-{id}"));
        command.arg("--log").arg(&log).args(["--log-format", "json", "--cgroup-manager", manager]);
        command.args(["clone", "--detach"]);
        if let Some(function) = &asked.function {
            command.arg("--function").arg(function);
        }
        if let Some(workdir) = &asked.workdir {
            command.arg("--workdir").arg(workdir);
        }
        if let Some(memory) = asked.memory {
            command.arg("--memory").arg(memory.to_string());
        }
        asked.env.iter().for_each(|variable| {
            command.arg("--env").arg(variable);
        });
        command.arg(asked.template.as_str()).arg(id.as_str());
        if !asked.command.is_empty() {
            command.arg("--").args(&asked.command);
        }
        let operation = || format!("clone container '{id}'");
        // What the process has as its output the container has, too: so it says in a log why it fails.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().context(operation);
        let said = read_capped(&log, LOG_CAP).unwrap_or_default();
        // It may have logged nothing.
        let _ = std::fs::remove_file(&log);
        let status = status?;
        if status.success() {
            return Ok(json!({"container": id}));
        }
        Err(failure(&said)
            .unwrap_or_else(|| Error::new(Fault::State, operation(), format!("its maker ended with {status}"))))
    }
}

/// The last error in a log of JSON lines.
fn failure(log: &[u8]) -> Option<Error> {
    let lines = log.split(|byte| *byte == b'\n').rev();
    let mut entries = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let entry = entries.find(|entry| entry["level"] == "error")?;
    let (operation, cause) = entry["msg"].as_str()?.split_once(": ")?;
    Some(Error::new(Fault::State, operation, cause))
}

impl Executor for Clone {
    fn execute(&self, task: &Task, _tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let operation = || format!("{} of '{}'", task.kind, task.target);
        let id: ContainerId = container(task)?;
        let asked: Asked = serde_json::from_value(Value::clone(&task.parameters)).context(operation)?;
        if self.place.root.container(&id).exists() {
            return Err(Error::new(Fault::Exists, format!("clone container '{id}'"), "there is one already")
                .next("choose another id"));
        }
        // Of two who want one id the later finds the container: that is its lock.
        task.pass()?;
        match Snapshot::of_template(&directory(&self.place.store, &self.place.owner, &asked.template))? {
            Some(_) => self.restore(&id, asked),
            None => self.fork(id, asked),
        }
    }

    fn settle(&self, task: &Task) -> Settled {
        match container(task) {
            Ok(id) if self.place.root.container(&id).exists() => Settled::Succeeded(json!({"container": id})),
            Ok(_) => {
                let cause = "the daemon ended while it was being made";
                Settled::Failed(Error::new(Fault::State, format!("{} of '{}'", task.kind, task.target), cause))
            }
            Err(error) => Settled::Failed(error),
        }
    }
}

/// The container that a task is about.
fn container(task: &Task) -> Result<ContainerId> {
    task.target.subject.strip_prefix("container/").unwrap_or_default().parse()
}
