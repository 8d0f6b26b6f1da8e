//! A program under a filter that reports its binds, and what answers them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use regen::service::address::Listen;
use regen::service::intercept::{Event, Interceptor, Network};
use regen::sys::seccomp::{Instruction, NEW_LISTENER, WAIT_KILLABLE_RECV, load_filter};
use regen::sys::socket::Socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A generous bound for anything that happens.
pub const LIMIT: Duration = Duration::from_secs(30);

/// An instance: a program under a filter, and the interceptor that answers it.
pub struct Instance {
    pub child: Child,
    pub interceptor: Interceptor,
    pub notes: Vec<String>,
}

impl Instance {
    pub fn start(command: Command, declared: &[&str], network: Network) -> Self {
        Self::start_with(command, declared, network, Vec::new())
    }

    /// With sockets of the host's.
    pub fn start_with(command: Command, declared: &[&str], network: Network, hosts: Vec<(usize, Socket)>) -> Self {
        let (child, listener) = filtered(command);
        let name = "web".parse().unwrap();
        let declared: Vec<_> = declared.iter().map(|text| Listen::parse(text, &name).unwrap()).collect();
        let interceptor = Interceptor::new(listener, &declared, network, hosts).unwrap();
        Self { child, interceptor, notes: Vec::new() }
    }

    /// Answers what waits, for as long as `until` says so.
    pub fn answer_until(&mut self, mut until: impl FnMut(&Interceptor, &[String]) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !until(&self.interceptor, &self.notes) {
            assert!(
                Instant::now() < deadline,
                "still missing: {:?}, notes: {:?}",
                self.interceptor.missing(),
                self.notes
            );
            self.answer_once(Duration::from_millis(20));
        }
    }

    pub fn answer_once(&mut self, patience: Duration) {
        let time = Timespec::try_from(patience).unwrap();
        let mut ends = [PollFd::new(&self.interceptor, PollFlags::IN)];
        poll(&mut ends, Some(&time)).unwrap();
        if !ends[0].revents().contains(PollFlags::IN) {
            return;
        }
        for event in self.interceptor.handle().unwrap() {
            if let Event::Note(note) = event {
                self.notes.push(note);
            }
        }
    }

    pub fn answer_until_it_listens(&mut self) {
        self.answer_until(|interceptor, _| interceptor.missing().is_empty());
    }

    /// Answers until the program has ended; its exit status.
    pub fn answer_until_it_ends(&mut self) -> i32 {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(Instant::now() < deadline, "it does not end");
            self.answer_once(Duration::from_millis(20));
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Starts a command under a filter that reports binds and listens, and returns where they are reported.
pub fn filtered(mut command: Command) -> (Child, OwnedFd) {
    let (sender, receiver) = mpsc::channel();
    command.process_group(0);
    // A filter holds for the thread that loads it and for the processes that it makes.
    let thread = std::thread::spawn(move || {
        let load = |k| Instruction { code: 0x20, jt: 0, jf: 0, k };
        let equal = |number: libc::c_long, jt| Instruction { code: 0x15, jt, jf: 0, k: u32::try_from(number).unwrap() };
        let answer = |k| Instruction { code: 0x06, jt: 0, jf: 0, k };
        let program = [
            load(0),
            equal(libc::SYS_bind, 2),
            equal(libc::SYS_listen, 1),
            answer(libc::SECCOMP_RET_ALLOW),
            answer(libc::SECCOMP_RET_USER_NOTIF),
        ];
        let listener = load_filter(&program, NEW_LISTENER | WAIT_KILLABLE_RECV).unwrap().unwrap();
        sender.send((command.spawn().unwrap(), listener)).unwrap();
    });
    let started = receiver.recv().unwrap();
    thread.join().unwrap();
    started
}

/// What every script begins with.
const PRELUDE: &str = "\
import socket, os, sys, time, threading, errno
def listener(address, family=socket.AF_INET, *options, kind=socket.SOCK_STREAM, protocol=0):
    s = socket.socket(family, kind, protocol)
    for option in options: s.setsockopt(*option)
    s.bind(address)
    return s
def serve(s, word):
    while True:
        c, _ = s.accept()
        c.sendall(word.encode())
        c.close()
";

/// Runs a script in Python, without the modules of the site.
pub fn script(body: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-S", "-c", &format!("{PRELUDE}{body}")]).stdin(Stdio::null());
    command
}

/// What a server says to who connects.
pub fn word(address: SocketAddr) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

pub fn http_server(directory: &Path, ip: &str, port: u16) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "http.server", "--bind", ip, &port.to_string()]).current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"GET /body HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n\r\n").next().unwrap().to_owned()
}

/// The old one ends, and all that comes then reaches the new one, whose binds gave no reason for a note.
pub fn gives_way(mut old: Instance, new: &Instance, address: SocketAddr) {
    old.interceptor.release();
    drop(old);
    for _ in 0..20 {
        assert_eq!(get(address), "new");
    }
    assert_eq!(new.notes, Vec::<String>::new());
}

/// A directory with a file `body`.
pub fn site(body: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("body"), body).unwrap();
    directory
}
