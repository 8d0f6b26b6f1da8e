//! A container's first process, from its birth to its program. It acts; what to do was decided before.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, setresgid, setresuid, setsid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::system::{setdomainname, sethostname};

use super::message::{Handed, Report, Word, hear, report};
use super::namespace::{self, Open};
use super::plan::{Plan, Terminal, used_up};
use super::terminal;
use crate::cgroup::Entrance;
use crate::error::{Context, Error, Kind, Result};
use crate::program::{self, FIRST_SOCKET};
use crate::runtime::Status;
use crate::runtime::create::Stdio;
use crate::runtime::hook::{self, Place, State};
use crate::runtime::record::Record;
use crate::sys::channel::{Channel, Listener};
use crate::sys::clone::{self, Birth, Parent, close_all_but, close_on_exec_from, lift, place_from, replace_stream};
use crate::sys::keyring::join_session_keyring;
use crate::sys::namespace::{NEW_TIME, loopback_up};

/// What the process has at its birth.
#[derive(Debug)]
pub(super) struct Init<'a> {
    pub record: &'a Record,
    pub plan: &'a mut Plan,
    /// To the maker.
    pub channel: Channel,
    pub entrance: Entrance,
    /// Namespaces that are still to be joined.
    pub joined: Vec<Open>,
    /// Where `start` comes from; if there is none, from the maker.
    pub starter: Option<Listener>,
    pub stdio: Stdio,
    /// The first descriptor that the program does not get.
    pub closed_from: u32,
    /// What the program finds open from descriptor 3 on.
    pub sockets: Vec<OwnedFd>,
    /// The name of its session keyring, if it gets one.
    pub keyring: Option<String>,
    /// The signal mask that the program starts with.
    pub mask: SigSet,
    /// Whether the maker has something to do before anything else.
    pub waits: bool,
}

impl Init<'_> {
    /// Becomes the program. Returns the exit status of a process that could not.
    pub(super) fn run(mut self) -> i32 {
        let error = match self.live() {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let status = i32::from(error.exit_code());
        // If nobody is left to be told, nobody waits for it either.
        let _ = report(&self.channel, &Report::Failed(error));
        status
    }

    fn live(&mut self) -> Result<Infallible> {
        // First, so that nothing of the image ever runs with a descriptor of the host (the class of CVE-2024-21626).
        close_on_exec_from(self.closed_from)?;
        self.settle()?;
        self.enter_root()?;
        let beginning = self.await_start()?;
        let state = State::of(self.record, Status::Created, Some(own_pid()));
        let place = Place { directory: None, environment: Some(&self.plan.environment), mask: Some(self.mask) };
        hook::run("startContainer", self.plan.hooks.start_container().as_deref().unwrap_or_default(), &state, place)?;
        if beginning == Word::Shelter {
            self.shelter()?;
        }
        self.place_sockets()?;
        self.tell(&Report::Executing)?;
        Err(self.plan.program.take().ok_or_else(used_up)?.execute(&self.mask))
    }

    /// Namespaces, cgroups, session, names.
    fn settle(&mut self) -> Result<()> {
        if self.waits {
            self.await_word(Word::Go)?;
        }
        namespace::join(&self.joined)?;
        self.joined.clear();
        let namespaces = &self.plan.namespaces;
        if namespaces.has(CloneFlags::CLONE_NEWUSER) {
            become_root()?;
        }
        // Whoever is in the same pid namespace must not look into us, or take over what we have open.
        hide()?;
        setsid().context(|| "begin a session")?;
        std::mem::take(&mut self.entrance).enter()?;
        if namespaces.new.contains(CloneFlags::CLONE_NEWCGROUP) {
            unshare(CloneFlags::CLONE_NEWCGROUP).context(|| "make a cgroup namespace")?;
        }
        if let Some(name) = &self.keyring {
            join_session_keyring(name)?;
        }
        if namespaces.new.contains(CloneFlags::CLONE_NEWNET) {
            loopback_up()?;
        }
        if let Some(name) = &self.plan.hostname {
            sethostname(name.as_bytes()).context(|| format!("set hostname '{}'", name.escape_debug()))?;
        }
        if let Some(name) = &self.plan.domainname {
            setdomainname(name.as_bytes()).context(|| format!("set domainname '{}'", name.escape_debug()))?;
        }
        Ok(())
    }

    /// The container's file system becomes the process's root, and everything is made ready.
    fn enter_root(&mut self) -> Result<()> {
        let mounted = self.plan.rootfs.take().ok_or_else(used_up)?.mount()?;
        let hooks = &self.plan.hooks;
        if super::has_host_hooks(hooks) {
            self.tell(&Report::Mounted)?;
            self.await_word(Word::Go)?;
        }
        let hooks = hooks.create_container().as_deref().unwrap_or_default();
        if !hooks.is_empty() {
            let state = State::of(self.record, Status::Creating, Some(own_pid()));
            hook::run("createContainer", hooks, &state, hook::on_host(self.record, Some(self.mask)))?;
        }
        let entered = mounted.enter()?;
        let pair = self.plan.terminal.map(Terminal::open).transpose()?;
        if let Some(pair) = &pair {
            entered.attach_console(pair.far.as_fd())?;
            terminal::attach(pair.far.as_fd())?;
        }
        entered.finish()?;
        if let Stdio::Files { stdin, stdout, stderr } = std::mem::take(&mut self.stdio) {
            for (file, stream) in [(&stdin, 0), (&stdout, 1), (&stderr, 2)] {
                replace_stream(file.as_fd(), stream)?;
            }
        }
        program::reopen_null()?;
        let listener = self.plan.program.as_mut().ok_or_else(used_up)?.prepare()?;
        let terminal = pair.map(|pair| pair.near);
        self.tell(&Report::Ready(Handed { terminal, listener }))
    }

    /// Until somebody says so, and how: `Start` or `Shelter`. Whoever says it hears what comes of it.
    fn await_start(&mut self) -> Result<Word> {
        let starter = self.starter.take();
        // What the maker had open when it made us. We have given up our privileges by now, so neighbours with the same
        // ones may come to look into us however well we hide.
        let own = [Some(self.channel.as_fd()), starter.as_ref().map(AsFd::as_fd)].into_iter().flatten();
        let kept: Vec<_> = own.chain(self.sockets.iter().map(AsFd::as_fd)).collect();
        close_all_but(self.closed_from, &kept)?;
        let Some(starter) = starter else {
            return match hear(&self.channel)? {
                Some(word @ (Word::Start | Word::Shelter)) => Ok(word),
                Some(word @ (Word::Go | Word::Listen)) => Err(misheard(Word::Start, word)),
                None => Err(orphaned()),
            };
        };
        self.await_word(Word::Listen)?;
        loop {
            let caller = starter.accept()?;
            match hear(&caller)? {
                Some(word @ (Word::Start | Word::Shelter)) => {
                    self.channel = caller;
                    return Ok(word);
                }
                // One that is killed before it has spoken has not started anything.
                Some(Word::Go | Word::Listen) | None => {}
            }
        }
    }

    /// Last, when nothing but the way to the maker is open that could be in their place.
    fn place_sockets(&mut self) -> Result<()> {
        if self.sockets.is_empty() {
            return Ok(());
        }
        self.channel = Channel::from(lift(&self.channel, super::above(self.sockets.len()))?);
        let sockets: Vec<BorrowedFd<'_>> = self.sockets.iter().map(AsFd::as_fd).collect();
        place_from(FIRST_SOCKET, &sockets)
    }

    /// Without its maker there is nobody for whom to go on.
    fn await_word(&self, expected: Word) -> Result<()> {
        match hear(&self.channel)? {
            Some(word) if word == expected => Ok(()),
            Some(word) => Err(misheard(expected, word)),
            None => Err(orphaned()),
        }
    }

    pub(super) fn tell(&self, what: &Report) -> Result<()> {
        if report(&self.channel, what)? { Ok(()) } else { Err(orphaned()) }
    }
}

fn misheard(expected: Word, word: Word) -> Error {
    Error::new(Kind::System, format!("wait for {expected:?}"), format!("{word:?} came"))
}

pub(super) fn orphaned() -> Error {
    Error::new(Kind::System, "make the container's first process", "its creator is gone")
}

fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// No other process may trace this one or open its files, before it is the program.
pub(super) fn hide() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context(|| "hide from other processes")
}

/// In a user namespace that was just made or joined a process has every right, and nobody's ids.
pub(super) fn become_root() -> Result<()> {
    let operation = || "become root in the user namespace";
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    // Where id 0 is not mapped the rights have to do.
    match setresgid(gid, gid, gid) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(errno).context(operation),
    }
    match setresuid(uid, uid, uid) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno).context(operation),
    }
}

/// The process between a container's creator and its first process: joins and makes what only later processes are
/// in, and leaves the first process to the creator as its child.
pub(super) fn intermediate(mut init: Init<'_>) -> i32 {
    match step_between(&mut init) {
        Ok(namespaces) => {
            let birth = Birth { namespaces, cgroup: None, parent: Parent::Grandparent };
            // Both read the same end; what this one says is said before the other speaks.
            init.waits = true;
            let told = match init.channel.duplicate() {
                Ok(channel) => channel,
                Err(error) => return fail(&init.channel, error),
            };
            match clone::spawn(birth, || init.run()) {
                Ok(process) => i32::from(report(&told, &Report::Cloned(process.pid())).is_err()),
                Err(error) => fail(&told, error),
            }
        }
        Err(error) => fail(&init.channel, error),
    }
}

fn fail(channel: &Channel, error: Error) -> i32 {
    let _ = report(channel, &Report::Failed(error));
    1
}

fn step_between(init: &mut Init<'_>) -> Result<CloneFlags> {
    close_on_exec_from(init.closed_from)?;
    if init.plan.namespaces.new.contains(CloneFlags::CLONE_NEWUSER) {
        init.await_word(Word::Go)?;
        become_root()?;
    }
    namespace::join(&init.joined)?;
    init.joined.clear();
    let namespaces = &init.plan.namespaces;
    if namespaces.has(CloneFlags::CLONE_NEWUSER) && !namespaces.new.contains(CloneFlags::CLONE_NEWUSER) {
        become_root()?;
    }
    if namespaces.new.contains(NEW_TIME) {
        make_time_namespace(&namespaces.offsets)?;
    }
    Ok(namespaces.at_birth())
}

/// time_namespaces(7): the offsets are fixed once a process is in it.
fn make_time_namespace(offsets: &str) -> Result<()> {
    let operation = || "make a time namespace";
    unshare(NEW_TIME).context(operation)?;
    if offsets.is_empty() {
        return Ok(());
    }
    // A hidden process's files are the host root's.
    set_dumpable_behavior(DumpableBehavior::Dumpable).context(operation)?;
    fs::write("/proc/self/timens_offsets", offsets).context(|| format!("write time offsets {offsets:?}"))
}
