//! How fast versions are resolved and connected to, for `hack/bench`, which builds this with rustc alone: see USAGE.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: resolve SOCKET SERVICE REQ [--threads N] [--seconds N] [--connect ADDRESS]
Calls Resolve on SOCKET for so many seconds: with N threads on one connection, then with a connection for each. With --connect
calls Connect instead, in turns with connecting to ADDRESS (HOST:PORT) by itself. Prints one JSON object: calls a second, or
microseconds.";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(line) => println!("{line}"),
        Err(reason) => {
            eprintln!("resolve: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn run(arguments: &[String]) -> Result<String, String> {
    let [socket, service, requirement, flags @ ..] = arguments else { return Err("too little is given".to_owned()) };
    let (mut threads, mut seconds, mut address) = (4, Duration::from_secs(3), None);
    for pair in flags.chunks(2) {
        let [flag, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
        let number = || value.parse::<u32>().map_err(|error| format!("{flag} {value}: {error}"));
        match flag.as_str() {
            "--threads" => threads = number()?,
            "--seconds" => seconds = Duration::from_secs(number()?.into()),
            "--connect" => address = Some(value),
            _ => return Err(format!("unknown: {flag}")),
        }
    }
    let call = |method: &str| {
        let parameters = format!(r#"{{"name":"{service}","requirement":"{requirement}"}}"#);
        format!("{{\"method\":\"run.regen.Service.{method}\",\"parameters\":{parameters}}}\0").into_bytes()
    };
    let outcome = match address {
        Some(address) => compare(socket, &call("Connect"), address, seconds),
        None => resolve(socket, &call("Resolve"), threads, seconds),
    };
    outcome.map_err(|error| error.to_string())
}

fn resolve(socket: &str, call: &[u8], threads: u32, seconds: Duration) -> std::io::Result<String> {
    let alone = rate(&[Shared::new(socket)?], call, 1, seconds)?;
    let together = rate(&[Shared::new(socket)?], call, threads, seconds)?;
    let connections = (0..threads).map(|_| Shared::new(socket)).collect::<Result<Vec<_>, _>>()?;
    let apart = rate(&connections, call, threads, seconds)?;
    Ok(format!(
        r#"{{"threads":{threads},"one_thread":{alone:.0},"one_connection":{together:.0},"connection_each":{apart:.0}}}"#
    ))
}

/// Calls a second of so many threads, which share these connections.
fn rate(connections: &[Shared], call: &[u8], threads: u32, seconds: Duration) -> std::io::Result<f64> {
    let (calls, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let ask = |connection: &Shared| {
            while !over.load(Ordering::Relaxed) {
                connection.call(call)?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), std::io::Error>(())
        };
        let workers: Vec<_> = (0..threads as usize)
            .map(|index| scope.spawn(move || ask(&connections[index % connections.len()])))
            .collect();
        std::thread::sleep(seconds);
        over.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(|worker| worker.join().expect("a thread has panicked"))
    })?;
    Ok(calls.into_inner() as f64 / begin.elapsed().as_secs_f64())
}

/// A connection that several threads call on at once: answers come in the order of the calls.
struct Shared {
    socket: UnixStream,
    /// Calls that were sent.
    sent: Mutex<u64>,
    /// What was read and belongs to later calls, and how many were answered.
    read: Mutex<(Vec<u8>, u64)>,
    answered: Condvar,
}

impl Shared {
    fn new(path: &str) -> std::io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        Ok(Self { socket, sent: Mutex::new(0), read: Mutex::default(), answered: Condvar::new() })
    }

    fn call(&self, call: &[u8]) -> std::io::Result<()> {
        let turn = {
            let mut sent = self.sent.lock().unwrap();
            (&self.socket).write_all(call)?;
            *sent += 1;
            *sent - 1
        };
        let mut read = self.answered.wait_while(self.read.lock().unwrap(), |(_, answered)| *answered != turn).unwrap();
        loop {
            if let Some(end) = read.0.iter().position(|byte| *byte == 0) {
                check(&read.0[..end])?;
                read.0.drain(..=end);
                read.1 += 1;
                self.answered.notify_all();
                return Ok(());
            }
            let mut chunk = [0; 8192];
            let count = (&self.socket).read(&mut chunk)?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            read.0.extend_from_slice(&chunk[..count]);
        }
    }
}

fn check(answer: &[u8]) -> std::io::Result<()> {
    let text = String::from_utf8_lossy(answer);
    if text.starts_with("{\"error\"") { Err(std::io::Error::other(text.into_owned())) } else { Ok(()) }
}

/// Medians of connecting through the daemon and by oneself, in turns.
fn compare(socket: &str, call: &[u8], address: &str, seconds: Duration) -> std::io::Result<String> {
    let daemon = UnixStream::connect(socket)?;
    let (mut through, mut plain) = (Vec::new(), Vec::new());
    let end = Instant::now() + seconds;
    while Instant::now() < end {
        let begin = Instant::now();
        (&daemon).write_all(call)?;
        let connected = receive(&daemon)?;
        through.push(begin.elapsed());
        drop(connected);
        let begin = Instant::now();
        let connected = TcpStream::connect(address)?;
        plain.push(begin.elapsed());
        drop(connected);
    }
    let count = plain.len();
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[count / 2].as_secs_f64() * 1e6
    };
    let (through, plain) = (median(through), median(plain));
    Ok(format!(r#"{{"connections":{count},"through_daemon_us":{through:.1},"plain_us":{plain:.1}}}"#))
}

/// An answer with its socket. The standard library cannot receive one yet; these are the C library's names.
fn receive(daemon: &UnixStream) -> std::io::Result<OwnedFd> {
    #[repr(C)]
    struct Part {
        base: *mut u8,
        length: usize,
    }
    #[repr(C)]
    struct Message {
        name: *mut u8,
        name_length: u32,
        parts: *mut Part,
        part_count: usize,
        control: *mut u8,
        control_length: usize,
        flags: i32,
    }
    unsafe extern "C" {
        fn recvmsg(socket: RawFd, message: *mut Message, flags: i32) -> isize;
    }
    const CLOSE_ON_EXEC: i32 = 0x4000_0000;
    let mut bytes = [0_u8; 8192];
    // A header of 16 bytes (length, level, type), then the descriptor.
    let mut control = [0_u64; 3];
    let mut part = Part { base: bytes.as_mut_ptr(), length: bytes.len() };
    let mut message = Message {
        name: std::ptr::null_mut(),
        name_length: 0,
        parts: &raw mut part,
        part_count: 1,
        control: control.as_mut_ptr().cast(),
        control_length: size_of_val(&control),
        flags: 0,
    };
    // SAFETY: all pointers are to live buffers of the lengths that are given.
    let count = unsafe { recvmsg(daemon.as_raw_fd(), &raw mut message, CLOSE_ON_EXEC) };
    let answer = usize::try_from(count).map_err(|_| std::io::Error::last_os_error())?;
    check(&bytes[..answer])?;
    if bytes[..answer].last() != Some(&0) || message.control_length < 20 {
        return Err(std::io::Error::other("an answer without its end or its socket"));
    }
    let descriptor = (control[2] & 0xffff_ffff) as RawFd;
    // SAFETY: the kernel has just installed it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
