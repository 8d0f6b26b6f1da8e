//! A web server for one page, of Rust's standard library alone.
//!
//! It takes its listening socket as descriptor 3 if it was given one (`--handover listen-fds`), and else binds
//! the address itself (`--handover intercept`). It knows nothing of restarts: no signal handler, no draining.

use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::{env, fs, process, thread};

fn main() -> Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let listener = match inherited() {
        Some(listener) => listener,
        None => TcpListener::bind(address)?,
    };
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || answer(stream));
    }
    Ok(())
}

/// The first socket that was passed, by the convention of systemd: LISTEN_FDS of them, from descriptor 3 on, meant for us
/// if LISTEN_PID says so.
fn inherited() -> Option<TcpListener> {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID")? != process::id() || number("LISTEN_FDS")? == 0 {
        return None;
    }
    // SAFETY: whoever set LISTEN_FDS left descriptor 3 open for us, and nothing else here uses it.
    Some(unsafe { TcpListener::from_raw_fd(3) })
}

fn answer(stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let page = fs::read("/www/index.html")?;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
    (&stream).write_all(&[head.as_bytes(), &page].concat())
}
