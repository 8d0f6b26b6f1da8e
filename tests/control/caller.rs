//! The other end, byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Nobody waits longer for an answer.
const LIMIT: Duration = Duration::from_secs(60);

/// One connection.
#[derive(Debug)]
pub struct Caller {
    pub stream: UnixStream,
    bytes: Vec<u8>,
}

/// What `GetStatus` is asked with.
pub fn status() -> Value {
    json!({"method": "run.regen.Control.GetStatus"})
}

impl Caller {
    pub fn connect(root: &Path) -> Self {
        Self::over(UnixStream::connect(root.join("run.regen.Control")).unwrap())
    }

    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self { stream, bytes: Vec::new() }
    }

    pub fn send(&mut self, call: &Value) {
        self.stream.write_all(format!("{call}\0").as_bytes()).unwrap();
    }

    /// The answer's parameters; `None` if the other end goes away instead.
    pub fn attempt(&mut self, call: &Value) -> Option<Value> {
        self.stream.write_all(format!("{call}\0").as_bytes()).ok()?;
        let answer = self.receive()?;
        assert!(answer.get("error").is_none(), "{answer}");
        Some(answer["parameters"].clone())
    }

    /// The next answer; `None` once the other end is closed.
    pub fn receive(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.bytes.drain(..=end).collect();
                return Some(serde_json::from_slice(&message[..end]).unwrap());
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                // Closed with something unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(self.bytes.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&self.bytes));
        None
    }

    /// The answer's parameters.
    #[track_caller]
    pub fn call(&mut self, call: &Value) -> Value {
        self.send(call);
        let answer = self.receive().unwrap();
        assert!(answer.get("error").is_none(), "{answer}");
        answer["parameters"].clone()
    }

    /// The name of the error that comes next, and what it carries, with its words.
    #[track_caller]
    pub fn error(&mut self) -> (String, Value) {
        let answer = self.receive().expect("closed without a word");
        let name = answer["error"].as_str().unwrap_or_else(|| panic!("no error: {answer}"));
        let mut parameters = answer.get("parameters").cloned().unwrap_or(json!({}));
        if let Some(words) = answer.get("message") {
            parameters["message"] = words.clone();
        }
        (name.to_owned(), parameters)
    }

    /// The error with this name comes next, and nothing after it.
    #[track_caller]
    pub fn is_closed_with(&mut self, name: &str) -> Value {
        let (found, parameters) = self.error();
        assert_eq!(found, name, "{parameters}");
        assert_eq!(self.receive(), None);
        parameters
    }
}
