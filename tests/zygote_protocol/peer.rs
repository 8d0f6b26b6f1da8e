//! regen's side of the protocol.
//!
//! A clone of regen's finds its job at descriptor 3 and its answer at 4, and nothing else of the template's. After a
//! plain fork it has what the template has; so the job and the answer lie there in the template already, its socket has
//! another number, and each job is written to the same memory file.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::dup2;
use tempfile::TempDir;

/// Debian's; another one may stand before it in PATH.
pub const PYTHON: &str = "/usr/bin/python3";
/// Where the repository is.
pub const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
/// The number of the template's socket.
const SOCKET: i32 = 9;
/// Nothing here takes longer, on a slow machine with everything else running.
const LIMIT: Duration = Duration::from_secs(60);

/// What a clone is to do.
#[derive(Debug, Clone, Default)]
pub struct Job {
    arguments: Vec<String>,
    variables: Vec<String>,
    call: Vec<String>,
}

impl Job {
    /// To be a program.
    pub fn program(arguments: &[&str]) -> Self {
        Self { variables: owned(&["PATH=/usr/bin:/bin", "HOME=/"]), ..Self::only(arguments) }
    }

    /// To be a program without any variable.
    pub fn only(arguments: &[&str]) -> Self {
        Self { arguments: owned(arguments), ..Self::default() }
    }

    /// To call a function.
    pub fn call(handler: &str, event: &str) -> Self {
        Self { call: owned(&[handler, event]), ..Self::program(&[]) }
    }

    /// With one more variable, `NAME=VALUE`.
    pub fn variable(mut self, variable: &str) -> Self {
        self.variables.push(variable.to_owned());
        self
    }

    /// As it lies in descriptor 3.
    pub fn bytes(&self) -> Vec<u8> {
        let mut fields = owned(&["regen-job", "1"]);
        for list in [&self.arguments, &self.variables, &self.call] {
            fields.push(list.len().to_string());
            fields.extend(list.iter().cloned());
        }
        fields.iter().flat_map(|field| field.bytes().chain([0])).collect()
    }

    /// The same program in a new process.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.arguments[0]);
        command.args(&self.arguments[1..]).env_clear();
        command.envs(self.variables.iter().filter_map(|variable| variable.split_once('=')));
        command
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// What became of a process.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// The exit status, or 128 and the signal.
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A template, and what regen holds of it.
#[derive(Debug)]
pub struct Zygote {
    process: Child,
    socket: Option<OwnedFd>,
    job: File,
    answer: File,
    /// Its working directory, empty at first, with its standard streams in `out` and `err` beside it.
    directory: TempDir,
    count: u32,
}

impl Zygote {
    /// Starts a template that has answered nothing yet.
    pub fn start(command: Command) -> Self {
        Self::start_in(command, |_| {})
    }

    /// The same, in a directory that was prepared.
    pub fn start_in(mut command: Command, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::Builder::new().prefix("regen-test-zygote-").tempdir().unwrap();
        let work = directory.path().join("work");
        fs::create_dir(&work).unwrap();
        prepare(&work);
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&ours, ReceiveTimeout, &TimeVal::seconds(LIMIT.as_secs().cast_signed())).unwrap();
        let memory = |name| File::from(memfd_create(name, MemFdCreateFlag::MFD_CLOEXEC).unwrap());
        let (job, answer) = (memory(c"job"), memory(c"answer"));
        let stream = |name| File::create_new(directory.path().join(name)).unwrap();
        command.stdin(File::open("/dev/null").unwrap()).stdout(stream("out")).stderr(stream("err"));
        command.current_dir(&work).env("REGEN_OCI_ZYGOTE_FD", SOCKET.to_string());
        let moves = [(theirs.as_raw_fd(), SOCKET), (job.as_raw_fd(), 3), (answer.as_raw_fd(), 4)];
        let place = move || {
            // First away from the numbers that others of them are to have.
            for (index, (from, _)) in moves.iter().enumerate() {
                dup2(*from, 200 + i32::try_from(index).unwrap())?;
            }
            for (index, (_, to)) in moves.iter().enumerate() {
                let from = 200 + i32::try_from(index).unwrap();
                dup2(from, *to)?;
                nix::unistd::close(from)?;
            }
            Ok(())
        };
        // SAFETY: dup2 and close may be called between fork and exec, and nothing else happens in it.
        unsafe { command.pre_exec(place) };
        let process = command.spawn().unwrap();
        Self { process, socket: Some(ours), job, answer, directory, count: 0 }
    }

    /// A template that is ready, in Python, with these arguments.
    pub fn python(arguments: &[&str]) -> Self {
        let mut zygote = Self::start(python(arguments));
        assert_eq!(zygote.receive(), zygote.python_ready(), "{}", zygote.err());
        zygote
    }

    /// What a template in Python says first.
    pub fn python_ready(&self) -> String {
        let version = Command::new(PYTHON).arg("-V").output().unwrap().stdout;
        format!("ready 1 python {}", String::from_utf8(version).unwrap().trim().strip_prefix("Python ").unwrap())
    }

    /// Its working directory.
    pub fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// Its next message; nothing if it has closed its socket.
    pub fn receive(&mut self) -> String {
        let mut buffer = [0; 8192];
        let socket = self.socket.as_ref().unwrap().as_raw_fd();
        // With a time limit a call is not begun anew by itself after the process was stopped.
        let size = loop {
            match recv(socket, &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                size => break size,
            }
        };
        String::from_utf8(buffer[..size.unwrap_or_else(|errno| panic!("{errno}: {}", self.err()))].to_vec()).unwrap()
    }

    /// Says something to it.
    pub fn send(&mut self, message: &[u8]) {
        send(self.socket.as_ref().unwrap().as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// Has it fork, and waits for the end of the clone.
    pub fn clone(&mut self, job: &Job) -> End {
        self.clone_bytes(&job.bytes())
    }

    /// The same with whatever is in the job.
    pub fn clone_bytes(&mut self, job: &[u8]) -> End {
        let (out, err) = (self.out().len(), self.err().len());
        let pid = self.fork(job);
        let code = wait(pid);
        End { code, out: self.out().split_off(out), err: self.err().split_off(err) }
    }

    /// Has it fork; gives the pid.
    pub fn fork(&mut self, job: &[u8]) -> u32 {
        for (file, data) in [(&mut self.job, job), (&mut self.answer, &[][..])] {
            file.set_len(0).unwrap();
            file.rewind().unwrap();
            file.write_all(data).unwrap();
            file.rewind().unwrap();
        }
        self.count += 1;
        self.send(format!("fork {}", self.count).as_bytes());
        let answer = self.receive();
        let pid = answer.strip_prefix(&format!("forked {} ", self.count));
        pid.unwrap_or_else(|| panic!("{answer}: {}", self.err())).parse().unwrap()
    }

    /// What the last clone answered to its call.
    pub fn answer(&self) -> String {
        let mut answer = vec![0; usize::try_from(self.answer.metadata().unwrap().len()).unwrap()];
        self.answer.read_exact_at(&mut answer, 0).unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// What it and its clones have written to standard output.
    pub fn out(&self) -> String {
        read(&self.directory.path().join("out"))
    }

    /// What it and its clones have written to standard error.
    pub fn err(&self) -> String {
        read(&self.directory.path().join("err"))
    }

    /// Closes its socket.
    pub fn hang_up(&mut self) {
        self.socket = None;
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        until("the template ends", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What is in a file, whatever that is.
pub fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned()
}

/// `python3 -m regen_zygote` as regen starts it.
pub fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new(PYTHON);
    // Nothing is to be written beside the sources.
    command.args(["-B", "-m", "regen_zygote"]).args(arguments);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/").env("REGEN_OCI_ZYGOTE", "1");
    command.env("PYTHONPATH", format!("{REPOSITORY}/zygote/python"));
    command
}

/// Waits for the end of a clone, whose parent does not: so it stays until the template ends.
pub fn wait(pid: u32) -> i32 {
    let mut code = 0;
    until("the clone ends", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // Fields 3 and 52 of proc(5): the state, and the status as of wait(2).
        let status: i32 = fields[49].trim().parse().unwrap();
        code = if status & 0x7f == 0 { status >> 8 } else { 128 + (status & 0x7f) };
        fields[0] == "Z"
    });
    code
}

/// Waits until something is so.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
