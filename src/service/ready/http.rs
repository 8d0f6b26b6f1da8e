//! A question to an HTTP server, and its answer; the connection never waits.

use std::io::{ErrorKind, Read, Write};

/// No status line is longer, nor is more of an answer read.
const LONGEST: usize = 1024;
const NOT_HTTP: &str = "its answer is not HTTP";

/// How far an exchange is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing can be done until the connection is ready for it.
    Waiting,
    /// The server answered 2xx or 3xx.
    Good,
    /// It answered something else, or not at all: why that is not enough.
    Bad(String),
}

/// One question.
#[derive(Debug)]
pub struct Exchange {
    unsent: Vec<u8>,
    answer: Vec<u8>,
}

impl Exchange {
    /// `GET PATH` of a host, which is an address with its port.
    #[must_use]
    pub fn new(path: &str, host: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: regen\r\nConnection: close\r\n\r\n");
        Self { unsent: request.into_bytes(), answer: Vec::new() }
    }

    /// Whether there is something to send.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Does what can be done now on a connection that never waits.
    pub fn turn(&mut self, mut connection: impl Read + Write) -> Progress {
        while !self.unsent.is_empty() {
            match connection.write(&self.unsent) {
                Ok(0) => return Progress::Bad("the connection takes nothing".to_owned()),
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Progress::Bad(describe(&error)),
            }
        }
        loop {
            let mut chunk = [0; LONGEST];
            match connection.read(&mut chunk[..LONGEST - self.answer.len()]) {
                Ok(0) if self.answer.is_empty() => return Progress::Bad("it closed without an answer".to_owned()),
                Ok(0) => return Progress::Bad(NOT_HTTP.to_owned()),
                Ok(count) => self.answer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Progress::Bad(describe(&error)),
            }
            if let Some(judged) = judge(&self.answer) {
                return judged;
            }
        }
    }
}

fn describe(error: &std::io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// What the beginning of an answer means; `None` if its first line has not come yet.
fn judge(answer: &[u8]) -> Option<Progress> {
    let Some(end) = answer.iter().position(|byte| *byte == b'\n') else {
        return (answer.len() >= LONGEST).then(|| Progress::Bad(NOT_HTTP.to_owned()));
    };
    let line = String::from_utf8_lossy(&answer[..end]);
    let mut words = line.trim_end().splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|word| word.parse::<u16>().ok());
    Some(match status {
        Some(200..=399) if version.starts_with("HTTP/") => Progress::Good,
        Some(status) if version.starts_with("HTTP/") => Progress::Bad(format!("it answered {status}")),
        Some(_) | None => Progress::Bad(NOT_HTTP.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_status_line_decides() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n", Some(Progress::Good)),
            ("HTTP/1.0 302 Found\r\nLocation: /\r\n", Some(Progress::Good)),
            ("HTTP/1.1 503 Service Unavailable\r\n", Some(Progress::Bad("it answered 503".to_owned()))),
            ("HTTP/1.1 199 Early\r\n", Some(Progress::Bad("it answered 199".to_owned()))),
            ("SSH-2.0-OpenSSH 200\r\n", Some(Progress::Bad(NOT_HTTP.to_owned()))),
            ("HTTP/1.1 20", None),
            ("", None),
        ] {
            assert_eq!(judge(answer.as_bytes()), expected, "{answer:?}");
        }
        assert!(matches!(judge(&[b'x'; LONGEST]), Some(Progress::Bad(_))));
    }

    #[test]
    fn a_slow_server_is_asked_once_and_waited_for() {
        let (ours, mut server) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut exchange = Exchange::new("/up?x=1", "127.0.0.1:80");
        assert_eq!(exchange.turn(&ours), Progress::Waiting);
        assert!(!exchange.is_sending());
        let mut request = [0; 300];
        let length = server.read(&mut request).unwrap();
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        assert!(request.starts_with("GET /up?x=1 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n") && request.ends_with("\r\n\r\n"));
        server.write_all(b"HTTP/1.1 ").unwrap();
        assert_eq!(exchange.turn(&ours), Progress::Waiting);
        server.write_all(b"204 No Content\r\n\r\n").unwrap();
        assert_eq!(exchange.turn(&ours), Progress::Good);
        drop(server);
        assert!(matches!(Exchange::new("/", "h").turn(&ours), Progress::Bad(_)));
    }
}
