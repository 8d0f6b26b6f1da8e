//! From a template's container to a program that is loaded.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use chrono::Utc;
use oci_spec::runtime::{LinuxSeccomp, Process as Wanted};

use super::blank::{filter_alone, loading_variables};
use super::caller::Callers;
use super::fit;
use super::keeper::Keeper;
use super::task::{Made, Part, Task, Ways};
use super::watch::Source;
use super::zygote::{self, Said};
use crate::error::{Context, Error, Kind, Result};
use crate::program::{Persona, persona};
use crate::runtime::Berth;
use crate::template::definition::Order;
use crate::template::message::{Fits, Phase, Report, encode};
use crate::template::program::Program;
use crate::template::proxy::{End, Held, Origin, Sandbox};

/// The template's own container.
#[derive(Debug)]
pub(super) enum Own {
    /// It is being made.
    Planned {
        /// Where its program will print to.
        sink: OwnedFd,
    },
    /// It is there, and ends with this.
    Made {
        /// The way to its first process.
        _berth: Berth,
        /// What its program is, and those of clones.
        process: Box<Wanted>,
        /// Their filter.
        seccomp: Option<Box<LinuxSeccomp>>,
    },
}

/// What is known of a program that is loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    /// What it says it is.
    pub language: String,
    /// Who a clone in a sandbox is.
    pub persona: Persona,
    /// What a foreign container has to be.
    pub fits: Fits,
}

/// What makes the template's container.
pub(super) fn task(order: &Order) -> Result<Task> {
    Ok(Task::Make { container: order.container()?, part: Part::Template })
}

impl Keeper {
    /// The template's container is there: its program begins.
    pub(super) fn load(&mut self, made: Made, ways: Ways) {
        if let Err(error) = self.try_load(made, ways) {
            let error = error.during(format!("load template '{}'", self.order.definition));
            self.fail(error);
        }
    }

    fn try_load(&mut self, made: Made, ways: Ways) -> Result<()> {
        let Some(Own::Planned { sink }) = self.own.take() else { return Ok(()) };
        let Made { init, cgroup, mut process, seccomp, .. } = made;
        self.own = Some(Own::Made {
            _berth: Berth::from_files(ways.channel, ways.directory),
            process: Box::new(process.clone()),
            seccomp: seccomp.clone().map(Box::new),
        });
        let gone = || Error::new(Kind::State, "open its container", "its first process has ended");
        let sandbox = Sandbox::new(init.open()?.ok_or_else(gone)?, &cgroup)?;
        process.set_env(process.env().as_deref().map(loading_variables));
        let command = process.args().clone().unwrap_or_default().join(" ");
        self.progress(&format!("load '{}'", command.chars().take(80).collect::<String>().escape_debug()));
        let null = std::fs::File::open("/dev/null").context(|| "open '/dev/null'")?;
        let linux = filter_alone(seccomp);
        let stdio = [null.as_fd(), sink.as_fd(), sink.as_fd()];
        let origin = Origin { sandbox: &sandbox, process: &process, linux: Some(&linux), stdio };
        let held = Held::take(&origin)?;
        self.watch.add(held.channel(), Source::Zygote)?;
        self.held = Some(held);
        self.deadline = Some(Instant::now() + self.order.definition.ready_timeout());
        // It may have stopped already.
        self.attend_template();
        Ok(())
    }

    /// Lets everything of the template go on that stands still for us, and hears of its end.
    pub(super) fn attend_template(&mut self) {
        let Some(held) = &mut self.held else { return };
        let cause = match held.attend() {
            Ok(None) => return,
            Ok(Some(End::Exited(status))) => format!("its program has ended {status}"),
            Ok(Some(End::Executed)) => {
                "its program has executed another one: name the interpreter itself as the command, not a shell"
                    .to_owned()
            }
            Err(error) => error.to_string(),
        };
        self.ended(&cause);
    }

    /// The template is of no use any more.
    fn ended(&mut self, cause: &str) {
        // What it said last may be on its way.
        self.tail.take();
        let verb = if self.phase == Phase::Loading { "load" } else { "keep" };
        let words = self.tail.last_words();
        let cause = if words.is_empty() { cause.to_owned() } else { format!("{cause}; it said: {words}") };
        self.fail(Error::new(Kind::State, format!("{verb} template '{}'", self.order.definition), cause));
    }

    /// The time in which it had to be loaded is over.
    pub(super) fn too_late(&mut self) {
        self.deadline = None;
        let time = self.order.definition.ready_timeout();
        self.ended(&format!("its program was not ready after {} s", time.as_secs_f32()));
    }

    pub(super) fn hear_zygote(&mut self) {
        loop {
            let Some(held) = &self.held else { return };
            let mut room = [0; 8 << 10];
            let heard = match held.channel().receive_now(&mut room) {
                Ok(crate::sys::channel::Now::Message(received)) => zygote::parse(&received.bytes),
                Ok(crate::sys::channel::Now::Nothing) => return,
                Ok(crate::sys::channel::Now::End) => {
                    // It ends, or has closed it: its end, if it comes, says more.
                    self.watch.remove(held.channel());
                    return self.attend_closed();
                }
                Err(error) => Err(error),
            };
            match heard {
                Ok(Said::Ready { language }) if self.phase == Phase::Loading => self.become_ready(language),
                Ok(Said::Forked { number } | Said::Failed { number, .. })
                    if number <= self.forks && number == self.answers + 1 =>
                {
                    self.answers = number;
                }
                Ok(Said::Ready { .. } | Said::Forked { .. } | Said::Failed { .. }) => {
                    return self.ended("it says on the zygote socket what it was not asked");
                }
                Err(error) => return self.ended(&error.to_string()),
            }
        }
    }

    /// Without its end of the socket it cannot be told to fork.
    fn attend_closed(&mut self) {
        self.attend_template();
        if self.held.is_some() {
            // A program that ends closes its files first; what its end was is heard in the next moment.
            let Some(held) = &self.held else { return };
            if matches!(held.process().wait_end(super::end::MOMENT), Ok(true)) {
                self.attend_template();
            }
        }
        if self.held.is_some() {
            self.ended("its program has closed the zygote socket");
        }
    }

    fn become_ready(&mut self, language: String) {
        self.deadline = None;
        if let Err(error) = self.try_become_ready(language) {
            let error = error.during(format!("load template '{}'", self.order.definition));
            self.fail(error);
        }
    }

    fn try_become_ready(&mut self, language: String) -> Result<()> {
        let (Some(Own::Made { process, seccomp, .. }), Some(held)) = (&self.own, &self.held) else { return Ok(()) };
        let linux = filter_alone(seccomp.as_deref().cloned());
        let loaded = Loaded { language, persona: persona(process, Some(&linux))?, fits: fit::look(held.process())? };
        let program = Program { env: process.env().clone().unwrap_or_default(), cwd: process.cwd().clone() };
        program.write(self.home.path())?;
        self.loaded = Some(loaded);
        self.status.ready = Some(Utc::now());
        let requests = Callers::new(self.home.listen_for_requests()?)?;
        if let Some(door) = requests.door() {
            self.watch.add(door, Source::Requests)?;
        }
        self.requests = Some(requests);
        self.enter_phase(Phase::Ready);
        self.measure();
        if let Some(channel) = self.birth.take() {
            self.watch.remove(&channel);
            // Whoever ordered it and is gone will find it.
            let _ = channel.send_now(&encode(&Report::Ready(Box::new(self.describe())))?);
        }
        Ok(())
    }
}
