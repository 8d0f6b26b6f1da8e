//! Keepers of templates, as the daemon has them and as those ask them who want clones.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use regen::error::Error;
use regen::sys::channel::Channel;
use regen::template::client::{Controller, Requester};
use regen::template::definition::{Definition, ORDER, Order, Source};
use regen::template::job::Job;
use regen::template::message::{
    Answer, Cleanup, Command as Word, Extra, Phase, Reply, Report, Request, Status, Take, decode, encode,
};
use regen::template::program::Program;

use super::{REGEN, World, eventually};

/// As long as any answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A keeper that was started.
#[derive(Debug)]
pub struct Kept {
    /// The process.
    pub child: Child,
    /// What it keeps.
    pub order: Order,
    /// What it says until it is ready.
    pub birth: Channel,
}

/// A clone that was asked for.
#[derive(Debug)]
pub struct Cloned {
    /// What was answered.
    pub answer: Answer,
    /// By which it was asked for.
    pub requester: Requester,
    output: OwnedFd,
    status: OwnedFd,
    result: OwnedFd,
}

/// How a clone ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// `exit N` or `signal N`.
    pub status: String,
    /// What it printed, and complained of.
    pub output: String,
    /// What its descriptor 4 got.
    pub result: String,
}

impl World {
    /// An order for a template with the host's python, which imports these.
    pub fn python_template(&self, name: &str, imports: &str) -> Order {
        let bundle = self.python("", |spec| {
            let mut args = vec!["/usr/bin/python3", "-m", "regen_zygote"];
            if !imports.is_empty() {
                args.extend(["--import", imports]);
            }
            spec["process"]["args"] = args.into();
        });
        self.template(name, Source::Bundle(bundle.path().to_owned()), &[])
    }

    /// An order for a template of this source, with this command in place of the source's.
    pub fn template(&self, name: &str, source: Source, command: &[&str]) -> Order {
        let definition = Definition {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            pool: 2,
            ..Definition::new("root".parse().unwrap(), self.id(name).parse().unwrap(), source)
        };
        Order {
            order: ORDER,
            definition,
            generation: 1,
            root: self.root(),
            store: self.store(),
            config: None,
            cgroup_manager: "cgroupfs".into(),
        }
    }

    /// Starts a keeper.
    pub fn begin_keeping(&self, order: &Order) -> Kept {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&encode(order).unwrap(), &[]).unwrap();
        let child = Command::new(REGEN)
            .env_clear()
            .args(["template-keeper", &order.definition.to_string()])
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(if std::env::var_os("REGEN_OCI_TEST_LOUD").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .unwrap();
        Kept { child, order: order.clone(), birth: ours }
    }

    /// Starts a keeper, which has to become ready.
    #[track_caller]
    pub fn keep_template(&self, order: &Order) -> Kept {
        let kept = self.begin_keeping(order);
        match kept.outcome() {
            Ok(_) => kept,
            Err(error) => panic!("template '{}': {error}", order.definition),
        }
    }
}

impl Kept {
    /// What comes of the order: how it is, or why it is not.
    pub fn outcome(&self) -> Result<Status, String> {
        loop {
            assert!(self.birth.wait(Some(LIMIT)).unwrap(), "the keeper says nothing");
            let Some(said) = self.birth.receive().unwrap() else { return Err("nothing was said".into()) };
            match decode(&said.bytes).unwrap() {
                Report::Progress { .. } => {}
                Report::Ready(status) => return Ok(*status),
                Report::Failed { error } => return Err(error.to_string()),
            }
        }
    }

    /// Its directory.
    pub fn directory(&self) -> PathBuf {
        self.order.directory()
    }

    /// A connection for commands.
    pub fn controller(&self) -> Controller {
        Controller::connect(&self.directory(), self.order.generation).unwrap().expect("it has no socket")
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.controller().status().unwrap()
    }

    /// Waits until so many sandboxes wait.
    #[track_caller]
    pub fn await_sandboxes(&self, count: u32) -> Status {
        let mut status = self.status();
        eventually("there are sandboxes", || {
            status = self.status();
            status.sandboxes == count
        });
        status
    }

    /// Asks for a clone with these arguments.
    pub fn clone_of(&self, id: Option<&str>, arguments: &[&str]) -> Cloned {
        self.request(id, &Job { args: words(arguments), ..Job::default() }, |_| {}, None)
    }

    /// Asks for a clone by a connection of its own.
    pub fn request(
        &self,
        id: Option<&str>,
        job: &Job,
        change: impl FnOnce(&mut Take),
        function: Option<BorrowedFd<'_>>,
    ) -> Cloned {
        self.try_request(id, job, change, function).unwrap()
    }

    /// The same of a keeper that may have ended.
    pub fn try_request(
        &self,
        id: Option<&str>,
        job: &Job,
        change: impl FnOnce(&mut Take),
        function: Option<BorrowedFd<'_>>,
    ) -> Result<Cloned, Error> {
        let program = Program::read(&self.directory())?;
        let job = Job { env: program.environment(&job.env), ..job.clone() }.seal().unwrap();
        let requester = Requester::connect(&self.directory(), "test", LIMIT)?;
        let (output, printer) = pipe();
        let (status, status_end) = pipe();
        let (result, result_end) = pipe();
        let null = fs::File::open("/dev/null").unwrap();
        let mut take = Take {
            id: id.map(|id| id.parse().unwrap()),
            extra: vec![Extra::Status, Extra::Result],
            cleanup: if id.is_some() { Cleanup::Keep } else { Cleanup::WithConnection },
            workdir: None,
            limits: regen::template::message::Limits::default(),
            terminal: regen::template::message::Terminal::None,
        };
        let mut files = vec![job.as_fd(), null.as_fd(), printer.as_fd(), printer.as_fd()];
        files.extend([status_end.as_fd(), result_end.as_fd()]);
        if let Some(function) = function {
            take.extra.push(Extra::Function);
            files.push(function);
        }
        change(&mut take);
        requester.ask(&Request::Take(Box::new(take)), &files)?;
        drop((printer, status_end, result_end));
        let answer = requester.answer(Some(LIMIT)).unwrap_or_else(|error| Answer::Unfit { reason: error.to_string() });
        Ok(Cloned { answer, requester, output, status, result })
    }

    /// Tells it something.
    pub fn tell(&self, word: Word) {
        self.controller().tell(word).unwrap();
    }

    /// Kills it without a warning.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn gone(mut self) {
        eventually("the keeper has ended", || self.child.try_wait().unwrap().is_some());
        let left: Vec<_> = fs::read_dir(self.directory())
            .map(|entries| entries.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        let own = |name: &String| name.contains('-') || name == "socket";
        assert!(!left.iter().any(own), "left in its directory: {left:?}");
    }

    /// Waits for its end, where another keeper is in its directory.
    #[track_caller]
    pub fn child_has_ended(mut self) {
        eventually("the keeper has ended", || self.child.try_wait().unwrap().is_some());
    }

    /// Ends it.
    #[track_caller]
    pub fn finish(self) {
        self.tell(Word::Stop);
        self.gone();
    }

    /// Waits for its last words, on a connection that watches.
    pub fn last_words(controller: &Controller) -> Option<String> {
        loop {
            match controller.next().unwrap() {
                Some(Reply::Ended { error }) => return error.map(|error| error.to_string()),
                Some(Reply::Status(status)) if status.phase == Phase::Ended => {}
                Some(_) => {}
                None => return None,
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A test that failed; the world says what is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cloned {
    /// Its container and its pid.
    #[track_caller]
    pub fn taken(&self) -> (String, i32) {
        match &self.answer {
            Answer::Taken { container, pid } => (container.to_string(), *pid),
            other => panic!("no clone: {other:?}"),
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.taken();
        let read = |from: OwnedFd| {
            let mut text = String::new();
            fs::File::from(from).read_to_string(&mut text).unwrap();
            text
        };
        let (output, result) = (read(self.output), read(self.result));
        Ended { output, result, status: read(self.status).trim_end().to_owned() }
    }
}

/// Owned words.
pub fn words(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|word| (*word).to_owned()).collect()
}

/// A directory as a mount that is attached nowhere, and cannot be written to.
pub fn detached(directory: &Path) -> OwnedFd {
    use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, directory, flags).unwrap();
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    regen::sys::mount::set_attributes(&mount, read_only, MountAttrFlags::empty(), regen::sys::mount::Depth::All)
        .unwrap();
    mount
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Builds a program against the library for C, static.
pub fn compile(source: &Path, into: &Path) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("zygote/c");
    let status = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-O2", "-static", "-o"])
        .arg(into)
        .arg("-I")
        .arg(&here)
        .args([source, &here.join("regen_zygote.c")])
        .status()
        .unwrap();
    assert!(status.success());
}
