//! The workers of a keeper, as it sees them: tasks go out, outcomes come in, nobody is waited for.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::SigSet;

use super::WORKER;
use super::task::{Outcome, Task};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::channel::Channel;
use crate::sys::signal::with_mask;

/// The most workers, on however many processors.
const MOST: usize = 8;
/// How often workers may die without having done anything before no more are started.
const DEATHS: u32 = 10;

/// Who does what takes time.
#[derive(Debug)]
pub(super) struct Crew {
    /// What every worker is told first.
    order: Vec<u8>,
    name: String,
    workers: Vec<Worker>,
    /// Those that have ended and were not reaped yet.
    ended: Vec<Child>,
    urgent: VecDeque<Task>,
    later: VecDeque<Task>,
    wanted: usize,
    number: u64,
    deaths: u32,
}

#[derive(Debug)]
struct Worker {
    number: u64,
    child: Child,
    channel: Channel,
    task: Option<Task>,
}

/// Whether somebody waits for what comes of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody does.
    Now,
    /// Nobody does.
    Later,
}

/// What a worker said.
#[derive(Debug)]
pub(super) struct Word {
    /// What it was to do.
    pub task: Task,
    /// What came of it.
    pub outcome: Outcome,
    /// What came with that.
    pub descriptors: Vec<OwnedFd>,
}

/// What came from a worker.
#[derive(Debug)]
pub(super) enum Heard {
    /// An outcome.
    Word(Box<Word>),
    /// It is dead, and was in the middle of this.
    Death(Option<Task>),
}

impl Crew {
    /// A crew without anybody yet. `order` is what workers are told first, `name` is for those who look at processes.
    pub(super) fn new(order: Vec<u8>, name: String) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            order,
            name,
            workers: Vec::new(),
            ended: Vec::new(),
            urgent: VecDeque::new(),
            later: VecDeque::new(),
            // The most of what they do is to wait for the kernel: for grace periods, for locks of cgroups and mounts.
            wanted: (4 * processors).clamp(4, MOST),
            number: 0,
            deaths: 0,
        }
    }

    /// Puts a task in line.
    pub(super) fn push(&mut self, task: Task, urgency: Urgency) {
        match urgency {
            Urgency::Now => self.urgent.push_back(task),
            Urgency::Later => self.later.push_back(task),
        }
    }

    /// Takes tasks out of the line for which nobody has begun.
    pub(super) fn forget(&mut self, unwanted: impl Fn(&Task) -> bool) {
        self.urgent.retain(|task| !unwanted(task));
        self.later.retain(|task| !unwanted(task));
    }

    /// Whether nothing is in line and nobody is at work.
    pub(super) fn is_idle(&self) -> bool {
        self.urgent.is_empty() && self.later.is_empty() && self.workers.iter().all(|worker| worker.task.is_none())
    }

    /// How many tasks of a kind are in line or being done.
    pub(super) fn count(&self, wanted: impl Fn(&Task) -> bool) -> usize {
        let doing = self.workers.iter().filter_map(|worker| worker.task.as_ref());
        self.urgent.iter().chain(&self.later).chain(doing).filter(|task| wanted(task)).count()
    }

    /// Gives tasks to workers that have none; starts workers where there are fewer than there should be. Returns those
    /// that were started: number and what to wait for.
    ///
    /// # Errors
    /// [`Kind::System`] if workers can't be started, or die again and again.
    pub(super) fn dispatch(&mut self, mut watch: impl FnMut(u64, BorrowedFd<'_>) -> Result<()>) -> Result<()> {
        while self.workers.len() < self.wanted
            && (self.workers.len() < 2 || !self.later.is_empty() || !self.urgent.is_empty())
        {
            if self.deaths >= DEATHS {
                let cause = format!("its workers have died {DEATHS} times without having done anything");
                return Err(Error::new(Kind::System, format!("keep template '{}'", self.name), cause));
            }
            let worker = self.start()?;
            watch(worker.number, worker.channel.as_fd())?;
            self.workers.push(worker);
        }
        for worker in self.workers.iter_mut().filter(|worker| worker.task.is_none()) {
            let Some(task) = self.urgent.pop_front().or_else(|| self.later.pop_front()) else { break };
            let text = serde_json::to_vec(&task).context(|| "give a worker a task")?;
            // One that has died is heard of soon, and the task with it.
            worker.channel.send(&text, &[])?;
            worker.task = Some(task);
        }
        Ok(())
    }

    fn start(&mut self) -> Result<Worker> {
        let operation = || format!("start a worker for template '{}'", self.name);
        let (ours, theirs) = Channel::pair()?;
        ours.send(&self.order, &[]).context(operation)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("regen").args([WORKER, &self.name]).env_clear().current_dir("/");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        command.process_group(0);
        with_mask(&mut command, SigSet::empty());
        let child = command.spawn().context(operation)?;
        self.number += 1;
        Ok(Worker { number: self.number, child, channel: ours, task: None })
    }

    /// Takes what a worker says, once there is something; `None` if there is no worker of that number.
    pub(super) fn hear(&mut self, number: u64) -> Option<Heard> {
        let index = self.workers.iter().position(|worker| worker.number == number)?;
        let worker = &mut self.workers[index];
        let received = worker.channel.receive().unwrap_or_else(|error| {
            tracing::warn!("hear a worker of template '{}': {error}", self.name);
            None
        });
        let outcome = received.and_then(|received| {
            let outcome = serde_json::from_slice(&received.bytes).ok()?;
            Some((outcome, received.descriptors))
        });
        match (outcome, worker.task.take()) {
            (Some((outcome, descriptors)), Some(task)) => {
                self.deaths = 0;
                Some(Heard::Word(Box::new(Word { task, outcome, descriptors })))
            }
            (Some(_) | None, task) => {
                let worker = self.workers.swap_remove(index);
                self.deaths += 1;
                self.ended.push(worker.child);
                self.reap();
                Some(Heard::Death(task))
            }
        }
    }

    /// Takes the status of workers that have ended.
    pub(super) fn reap(&mut self) {
        self.ended.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// The workers' processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.workers.iter().map(|worker| worker.child.id()).collect()
    }

    /// Ends the workers, which finish what they do, and waits for them.
    pub(super) fn dismiss(mut self) {
        let workers = std::mem::take(&mut self.workers).into_iter().map(|worker| worker.child);
        for mut child in workers.chain(std::mem::take(&mut self.ended)) {
            // It is told by the end of its channel.
            let _ = child.wait();
        }
    }
}
