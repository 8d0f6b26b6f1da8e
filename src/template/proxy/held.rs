//! A loaded template and what is done with it.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::change::{kept, plan_change, plan_confinement};
use super::crew::{Crew, Forking, end_strays, finish, has_ended};
use super::guest::{self, Guest, Stage};
use super::loader::{self, Ends};
use super::{Control, End, LANE, Origin, Sandbox};
use crate::error::{Context, Error, Kind, Result};
use crate::program::{Confinement, Persona, fork_filter, persona};
use crate::sys::channel::Channel;
use crate::sys::process::Process;
use crate::sys::trace::{Call, Gate, Registers, Resume, Tracee, listen_for_stops, tell_of_stops_again};

/// How long loading may take up to the program's first instruction, a call of one of ours, and dying.
const PATIENCE: Duration = Duration::from_secs(10);
/// How large the scratch area is, in bytes: the longest filter has half of that.
const SCRATCH: u64 = 64 << 10;
/// Every signal but SIGTRAP, by which a step ends: nothing else shall come between.
const ALL_BUT_TRAP: u64 = !(1 << 4);

/// A loaded template, held by the calling thread, which is its process's only one.
#[derive(Debug)]
pub struct Held {
    template: Process,
    channel: Channel,
    /// T, until it has ended.
    parked: Option<Tracee>,
    crew: Crew,
    /// Whoever is in a container and was not told of as ended.
    guests: Vec<Tracee>,
    gate: Gate,
    base: Registers,
    scratch: u64,
    /// The way by which descriptors come, and a copy of T's end of it.
    lane: (Channel, Channel),
    /// T's own adjustment for the killer of processes.
    oom_score_adj: Option<i32>,
    sound: bool,
}

impl Held {
    /// Loads a program: in its container, with descriptor 3 its end of the zygote socket. Its process runs when this
    /// returns. Blocks SIGCHLD in the calling thread, which has to be its process's only one and to make every further
    /// call.
    ///
    /// # Errors
    /// [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] for the program; [`Kind::Unsupported`] for what does
    /// not fit; else what was refused. Nothing is left then.
    pub fn take(origin: &Origin<'_>) -> Result<Self> {
        let persona = persona(origin.process, origin.linux)?;
        listen_for_stops()?;
        let deadline = Instant::now() + PATIENCE;
        let (channel, zygote) = Channel::pair()?;
        let (near, far) = Channel::pair()?;
        let ends = Ends { zygote: OwnedFd::from(zygote), lane: OwnedFd::from(far.duplicate()?) };
        let parked = loader::load(origin, ends, deadline)?;
        let mut family = Family { parked, leader: None };
        let taken = family.found(&persona, deadline).and_then(|(stage, leader)| {
            let operation = || Error::new(Kind::State, "load a template", "its process is gone");
            let template = Process::open(leader.pid())?.ok_or_else(operation)?;
            Ok(Self {
                template,
                channel,
                parked: Some(parked),
                crew: Crew::new(leader),
                guests: Vec::new(),
                gate: stage.gate,
                base: stage.base,
                scratch: stage.scratch,
                lane: (near, far),
                oom_score_adj: oom_score_adj(parked),
                sound: true,
            })
        });
        tell_of_stops_again();
        taken.inspect_err(|_| family.end(deadline))
    }

    /// The template's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.template
    }

    /// The zygote socket: one message for each datagram.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Whether copies can still be made; if not, the template has to be loaded anew.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// Lets everything of the template go on that was stopped by what it does: to be called for every SIGCHLD. Never
    /// blocks, and reaps the template's own processes only. Returns how it ended, once it has.
    ///
    /// # Errors
    /// Those of ptrace(2).
    pub fn attend(&mut self) -> Result<Option<End>> {
        self.guests.retain(|guest| !has_ended(*guest));
        if self.parked.is_some_and(has_ended) {
            // Nothing can be made of it any more.
            self.parked = None;
            self.break_off();
        }
        let end = self.crew.attend()?;
        if end.is_some() {
            self.sound = false;
        }
        Ok(end)
    }

    /// Makes a place for a copy in a container, whose process will be `persona` and begin in `directory`.
    ///
    /// # Errors
    /// What was refused; nothing is left in the container then. If the template has interfered, it is ended.
    pub fn prepare(&mut self, sandbox: &Sandbox, persona: &Persona, directory: BorrowedFd<'_>) -> Result<Guest> {
        let parked = self.check_sound()?;
        let stage = self.stage(PATIENCE);
        let entered = guest::enter(&stage, (parked, &self.lane.0), sandbox, directory);
        let prepared = entered.and_then(|(tracee, cgroups)| {
            self.guests.push(tracee);
            let keep = guest::settle(&stage, tracee, cgroups, persona)
                .and_then(|keep| guest::check(tracee, sandbox, persona, keep).map(|()| keep))
                .map_err(|error| guest::excuse(error, &[tracee.pid(), sandbox.init.pid()]));
            match keep {
                Ok(keep) => {
                    let init = sandbox.init.pid();
                    Ok(Guest { tracee, init, persona: persona.clone(), keep, furnished: false })
                }
                Err(error) => {
                    self.discard(tracee);
                    Err(error)
                }
            }
        });
        if prepared.is_err() {
            self.tidy(parked, &stage);
        }
        self.conclude(prepared)
    }

    /// Gives it the descriptors that the copy will have, from 0 on: standard streams, job and, for a call, result.
    ///
    /// # Errors
    /// As [`Held::prepare`]; it is then of no use.
    pub fn furnish(&mut self, guest: &mut Guest, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        self.check_sound()?;
        self.check_lives(guest)?;
        let stage = self.stage(PATIENCE);
        let result = guest::receive(&stage, guest.tracee, &self.lane.0, descriptors)
            .and_then(|()| stage.call(guest.tracee, &Call::close(LANE, u32::MAX)))
            .map(|_| guest.furnished = true)
            .map_err(|error| guest::excuse(error, &[guest.tracee.pid(), guest.init]));
        if result.is_err() {
            self.discard(guest.tracee);
            self.drain();
        }
        self.conclude(result)
    }

    /// Makes the copy, once the template was asked to fork. It runs when this returns, as a child of its container's
    /// first process.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the template does not fork within `limit`: it is of no use any more. Else what was refused. No
    /// copy is left.
    pub fn fork(&mut self, guest: Guest, control: Control, limit: Duration) -> Result<Process> {
        self.check_sound()?;
        let forked = self.crew.await_fork(Instant::now() + limit).inspect_err(|_| {
            // Whoever was asked and has not forked may do so at any later time.
            self.break_off();
        });
        // T's own is what a copy has anyway.
        let score = guest.persona.oom_score_adj.filter(|score| self.oom_score_adj != Some(*score));
        let copied = forked.and_then(|forking| {
            let stage = self.stage(PATIENCE);
            let made = self.check_lives(&guest).and_then(|()| make(&stage, &guest, &forking, (control, score)));
            // Its maker ends in any case.
            let made = made.map_err(|error| guest::excuse(error, &[guest.init]));
            let released = release(&forking, made.as_ref().ok());
            made.and_then(|process| released.map(|()| process))
        });
        self.discard(guest.tracee);
        if copied.is_err() {
            end_strays(guest.init, Instant::now() + PATIENCE)?;
        }
        self.conclude(copied)
    }

    /// Ends what was prepared and is not wanted.
    ///
    /// # Errors
    /// Those of ending it.
    pub fn dismiss(&mut self, guest: Guest) -> Result<()> {
        self.discard(guest.tracee);
        self.conclude(Ok(()))
    }

    /// Ends the template: its processes are killed and reaped. Copies go on. Dropping does the same.
    ///
    /// # Errors
    /// Those of ending them.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.sound = false;
        let deadline = Instant::now() + PATIENCE;
        for tracee in self.guests.drain(..).chain(self.parked.take()) {
            finish(tracee, deadline)?;
        }
        let ended = self.crew.end(deadline);
        tell_of_stops_again();
        ended
    }

    fn stage(&self, limit: Duration) -> Stage {
        let deadline = Instant::now() + limit;
        Stage { gate: self.gate, base: self.base, scratch: self.scratch, deadline }
    }

    fn check_sound(&self) -> Result<Tracee> {
        match (self.sound, self.parked) {
            (true, Some(parked)) => Ok(parked),
            (true | false, _) => {
                let operation = format!("make a copy of template process {}", self.template.pid());
                Err(Error::new(Kind::State, operation, "it is of no use any more").next("load the template anew"))
            }
        }
    }

    fn check_lives(&self, guest: &Guest) -> Result<()> {
        match self.guests.contains(&guest.tracee) {
            true => Ok(()),
            false => Err(Error::new(Kind::State, "use a place for a copy", "it has ended, as its container has")),
        }
    }

    /// The template is of no use any more: it ends, which is told as the end of its process.
    fn break_off(&mut self) {
        self.sound = false;
        self.crew.leader().kill();
        if let Some(parked) = self.parked {
            parked.kill();
        }
    }

    /// A failure that only the template itself can have caused ends it.
    fn conclude<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(|error| matches!(error.kind(), Kind::Damaged | Kind::Busy)) {
            self.break_off();
        }
        tell_of_stops_again();
        result
    }

    fn discard(&mut self, tracee: Tracee) {
        if let Some(at) = self.guests.iter().position(|guest| *guest == tracee) {
            self.guests.swap_remove(at);
            if let Err(error) = finish(tracee, Instant::now() + PATIENCE) {
                tracing::warn!("{error}");
            }
        }
    }

    /// After a failure: T has no descriptors of a container, and none are on the way.
    fn tidy(&mut self, parked: Tracee, stage: &Stage) {
        self.drain();
        if stage.call(parked, &Call::close(0, LANE - 1)).is_err() {
            self.break_off();
        }
    }

    fn drain(&self) {
        let far = &self.lane.1;
        let waiting = || poll(&mut [PollFd::new(far, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        while waiting() == Ok(1) && far.receive().is_ok() {}
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.end();
    }
}

/// The processes of a template that is being made.
struct Family {
    parked: Tracee,
    leader: Option<Tracee>,
}

impl Family {
    /// From T at its first instruction to Z that runs.
    fn found(&mut self, persona: &Persona, deadline: Instant) -> Result<(Stage, Tracee)> {
        let parked = self.parked;
        parked.set_signal_mask(ALL_BUT_TRAP)?;
        let base = parked.registers()?;
        let mut stage = Stage { gate: Gate::find(parked)?, base, scratch: 0, deadline };
        stage.scratch = stage.call(parked, &Call::map(SCRATCH))?;
        stage.call(parked, &Call::keep_from_children(stage.scratch, SCRATCH))?;
        let leader = stage.clone_of(parked)?;
        self.leader = Some(leader);
        stage.call(parked, &Call::close(0, LANE - 1))?;
        stage.call(leader, &Call::close(4, u32::MAX))?;
        stage.call(leader, &Call::begin_session())?;
        guest::limit(leader, persona)?;
        let forks = fork_filter();
        let filters: Vec<&Confinement> = [&forks].into_iter().chain(&persona.filter).collect();
        let keep = kept(persona, filters.len());
        let confinement = plan_confinement(persona, &filters, keep, stage.scratch);
        for call in plan_change(persona, keep, stage.scratch).iter().chain(&confinement) {
            stage.call(leader, call)?;
        }
        leader.set_registers(&base)?;
        leader.set_signal_mask(0)?;
        leader.resume(Resume::Run, 0)?;
        Ok((stage, leader))
    }

    fn end(&self, deadline: Instant) {
        for tracee in [Some(self.parked), self.leader].into_iter().flatten() {
            // The failure that led here is what is told.
            let _ = finish(tracee, deadline);
        }
    }
}

/// From a fork that waits to a copy that runs. On failure none is left.
///
/// Its adjustment for the killer of processes is set from outside, and only now: I shares the template's memory, and the
/// kernel gives all who share it the same.
fn make(stage: &Stage, guest: &Guest, forking: &Forking, (control, score): (Control, Option<i32>)) -> Result<Process> {
    let made = guest.tracee.call_once(stage.gate, &stage.base, &forking.call, stage.deadline)?;
    // Once that has ended, the copy is a child of its container's first process. It dies while the copy is dressed.
    guest.tracee.kill();
    let dressed = stage.await_birth(made).and_then(|()| dress(stage, guest, forking, (made, control)));
    let adjusted =
        dressed.and_then(|process| score.map_or(Ok(()), |score| adjust(made.pid(), score)).map(|()| process));
    adjusted.and_then(|process| made.detach().map(|()| process)).map_err(|error| end(made, stage.deadline, error))
}

fn adjust(pid: i32, score: i32) -> Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
        .context(|| format!("set oom score adjustment {score}"))
}

/// Lets the thread that forks go on as if it had.
fn release(forking: &Forking, made: Option<&Process>) -> Result<()> {
    let failed = -i64::from(nix::errno::Errno::EAGAIN as i32);
    let result = made.map_or(failed, |copy| copy.pid().into());
    forking.thread.set_registers(&forking.registers.returning(result))?;
    forking.thread.resume(Resume::Run, 0).map(|_| ())
}

fn end(tracee: Tracee, deadline: Instant, error: Error) -> Error {
    // The failure that led here is what is told.
    let _ = finish(tracee, deadline);
    error
}

/// Gives a copy what a fork of the thread itself would have, and the rest of its persona.
fn dress(stage: &Stage, guest: &Guest, forking: &Forking, (made, control): (Tracee, Control)) -> Result<Process> {
    let thread = forking.thread;
    if !stage.gate.is_there(made)? {
        let operation = format!("make a copy in process {}", made.pid());
        return Err(Error::new(Kind::Damaged, operation, "the kernel's code (vDSO) in it is another"));
    }
    if let Some(area) = thread.sequences()? {
        stage.call(made, &Call::register_sequences(area))?;
    }
    stage.call(made, &Call::begin_session())?;
    match control {
        Control::Terminal => stage.call(made, &Call::take_terminal()).map(|_| ())?,
        Control::None => {}
    }
    if let Some(filter) = &guest.persona.filter {
        // Its own memory: the scratch area is not copied.
        let private = stage.call(made, &Call::map(SCRATCH))?;
        let unmap = Call::unmap(private, SCRATCH);
        for call in plan_confinement(&guest.persona, &[filter], guest.keep, private) {
            stage.call(made, &call)?;
        }
        stage.call(made, &unmap)?;
    }
    made.set_vectors(&mut thread.vectors()?)?;
    made.set_signal_mask(thread.signal_mask()?)?;
    made.set_registers(&forking.registers.returning(0))?;
    let gone = || Error::new(Kind::State, format!("open process {}", made.pid()), "no such process");
    Process::open(made.pid())?.ok_or_else(gone)
}

fn oom_score_adj(tracee: Tracee) -> Option<i32> {
    fs::read_to_string(format!("/proc/{}/oom_score_adj", tracee.pid())).ok()?.trim().parse().ok()
}
