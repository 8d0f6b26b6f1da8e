//! A worker of a keeper: a process that makes and removes containers, one after the other, so that the keeper never waits
//! for that. It ends with its keeper.

use nix::sys::wait::{WaitPidFlag, waitpid};
use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::json;

use super::task::{Made, Outcome, Part, Task};
use super::{blank, place, receive_order};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::ContainerId;
use crate::ops::apart;
use crate::ops::load::Attachment;
use crate::ops::{Place, save};
use crate::runtime::{self, Berth, Created, Starter};
use crate::store::{Run, Store};
use crate::sys::channel::Channel;
use crate::sys::process::Identity;
use crate::sys::signal::Blocked;
use crate::template::definition::Order;
use crate::template::message::Limits;

/// What the process does, from its order to the end of its keeper.
///
/// # Errors
/// Why it cannot work for anybody.
pub fn run() -> Result<()> {
    let (channel, order) = receive_order("take the order of a worker")?;
    let signals = Blocked::all()?;
    let worker = Worker { place: place(&order)?, order, channel, signals };
    while let Some(task) = worker.next()? {
        worker.work(task)?;
    }
    Ok(())
}

struct Worker {
    order: Order,
    place: Place,
    channel: Channel,
    signals: Blocked,
}

impl Worker {
    /// The next task; `None` once the keeper is gone. Containers are our children: what has ended of them is reaped.
    fn next(&self) -> Result<Option<Task>> {
        loop {
            reap();
            let mut sources = [PollFd::new(&self.channel, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut sources, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).context(|| "wait for a task"),
            }
            let called = !sources[0].revents().is_empty();
            // A keeper is what tells us to end, by its own end.
            while self.signals.take()?.is_some() {}
            if called {
                let Some(received) = self.channel.receive()? else { return Ok(None) };
                return serde_json::from_slice(&received.bytes).map(Some).context(|| "read a task");
            }
        }
    }

    fn work(&self, task: Task) -> Result<()> {
        let (outcome, ways) = match &task {
            Task::Make { container, part } => match self.make(container, *part) {
                Ok((made, berth)) => (Outcome::Made(Box::new(made)), Some(berth)),
                Err(error) => (Outcome::Failed { error }, None),
            },
            Task::Remove { container } => (done(self.remove(container)), None),
            Task::Settle { container, renamed, limits } => (done(self.settle(container, *renamed, limits)), None),
            Task::Measure { processes } => (Outcome::Measured { bytes: processes.iter().map(share).collect() }, None),
        };
        let text = serde_json::to_vec(&outcome).context(|| "tell what came of a task")?;
        let files: Vec<_> = ways.iter().flat_map(Berth::files).collect();
        if !self.channel.send(&text, &files)?
            && let Task::Make { container, .. } = &task
        {
            // Nobody knows of it.
            self.remove(container)?;
        }
        Ok(())
    }

    fn make(&self, container: &ContainerId, part: Part) -> Result<(Made, Berth)> {
        let wish = blank::wish(&self.order, container)?;
        let streams = blank::no_streams()?;
        let manager = self.order.cgroup_manager.parse()?;
        let (mut adapted, mut seen) = (Ok(()), None);
        let base = blank::apart(&self.order, &self.place, &wish, part)?;
        let created = apart::create_apart(&self.place, wish, base, |request| {
            adapted = blank::adapt(&mut request.spec, &self.order, part);
            request.cgroups = manager;
            request.starter = Starter::Creator;
            request.mask = Some(self.signals.before());
            request.stdio = streams;
            seen = request.spec.process().clone().map(|process| (process, filter(request)));
        });
        let created = match (adapted, created) {
            (Ok(()), created) => created?,
            // What it was not meant to be may not even be possible.
            (Err(error), Err(_)) => return Err(error),
            (Err(error), Ok(_)) => {
                self.discard(container);
                return Err(error);
            }
        };
        let berth = self.moor(&created, container).inspect_err(|_| self.discard(container))?;
        let (process, seccomp) = seen.ok_or_else(|| {
            self.discard(container);
            Error::new(Kind::Invalid, format!("create container '{container}'"), "process is missing")
        })?;
        if part == Part::Sandbox {
            blank::identify(&created.init);
        }
        let memory = share(&created.init);
        Ok((Made { init: created.init, cgroup: created.cgroup, process, seccomp, memory }, berth))
    }

    /// Lets its first process wait for a program from elsewhere.
    fn moor(&self, created: &Created, container: &ContainerId) -> Result<Berth> {
        Ok(created.shelter(&self.place.root, container)?.moor())
    }

    /// After a failure: the first error is the one that is told.
    fn discard(&self, container: &ContainerId) {
        if let Err(error) = self.remove(container) {
            tracing::warn!("delete container '{container}' after a failure: {error}");
        }
    }

    fn remove(&self, container: &ContainerId) -> Result<()> {
        save::delete_unfinished(&self.place, container)
    }

    /// Every step is tried; the first failure is told.
    fn settle(&self, container: &ContainerId, renamed: bool, limits: &Limits) -> Result<()> {
        let root = &self.place.root;
        let limited = match limits.memory {
            Some(bytes) => resources(bytes).and_then(|resources| runtime::update(root, container, &resources)),
            None => Ok(()),
        };
        let named = if renamed { self.name_run(container) } else { Ok(()) };
        let hooked = runtime::finish_start(root, container, Some(self.signals.before()));
        [limited, named, hooked].into_iter().find(Result::is_err).unwrap_or(Ok(())).or_else(|error| {
            match error.kind() {
                // It has ended meanwhile, and was taken away.
                Kind::NotFound | Kind::State => Ok(()),
                _ => Err(error),
            }
        })
    }

    /// The store knows runs by their containers.
    fn name_run(&self, container: &ContainerId) -> Result<()> {
        let Some(value) = runtime::attachment(&self.place.root, container)? else { return Ok(()) };
        let attachment: Attachment = serde_json::from_value(value).context(|| "read what belongs to a container")?;
        let Some(store) = Store::open_existing(&attachment.store)? else { return Ok(()) };
        let Some(mut run) = Run::load(&store, &attachment.run)? else { return Ok(()) };
        run.record.container = container.clone();
        run.write()
    }
}

fn done(result: Result<()>) -> Outcome {
    result.map_or_else(|error| Outcome::Failed { error }, |()| Outcome::Done)
}

fn filter(request: &runtime::CreateRequest) -> Option<oci_spec::runtime::LinuxSeccomp> {
    request.spec.linux().as_ref().and_then(|linux| linux.seccomp().clone())
}

/// A limit of memory as a specification says it.
pub(super) fn resources(memory: u64) -> Result<LinuxResources> {
    serde_json::from_value(json!({"memory": {"limit": memory}})).context(|| "limit memory")
}

/// A process's share of memory in bytes (PSS); nothing if it has ended.
fn share(process: &Identity) -> u64 {
    let read = || {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)).ok()?;
        process.is_alive().ok().filter(|alive| *alive)?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    read().map_or(0, |kibibytes| kibibytes << 10)
}

/// Nobody else takes the status of containers' first processes, and nobody wants it.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
        if status == nix::sys::wait::WaitStatus::StillAlive {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_process_is_told_and_the_dead_have_none() {
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(share(&own) > 100 << 10);
        assert_eq!(share(&Identity { start_time: own.start_time + 1, ..own }), 0);
    }
}
