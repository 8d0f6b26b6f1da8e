//! A connection to systemd, over the bus or straight to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::wire::{self, FIXED, Message, Method, Sort, Writer};
use crate::error::{Context, Error, Kind, Result};

/// How long systemd may take for anything: as runc has it.
const LIMIT: Duration = Duration::from_secs(30);

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: Method<'static> = Method {
    destination: Some(SERVICE),
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
    member: "",
    signature: "",
};
const BUS: Method<'static> = Method {
    destination: Some("org.freedesktop.DBus"),
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
    member: "",
    signature: "",
};

/// Whose systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The system's.
    System,
    /// The calling user's.
    User,
}

/// What the other side said no with.
#[derive(Debug)]
pub(super) struct Refused {
    /// As `org.freedesktop.systemd1.UnitExists`.
    pub name: String,
    /// As a person would say it.
    pub text: String,
}

/// A connection that was let in.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<UnixStream>,
    serial: u32,
    /// Whether a bus is between us and systemd.
    bus: bool,
    /// Jobs that ended while an answer was awaited: their paths and results.
    ended: Vec<(String, String)>,
}

impl Connection {
    /// Connects over the bus, and where there is none, straight to systemd.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if systemd is not to be reached.
    pub(super) fn open(whose: Whose) -> Result<Self> {
        let operation = "connect to systemd";
        let runtime = || std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let (variable, bus, private) = match whose {
            Whose::System => {
                let private = PathBuf::from("/run/systemd/private");
                ("DBUS_SYSTEM_BUS_ADDRESS", Some(PathBuf::from("/run/dbus/system_bus_socket")), Some(private))
            }
            Whose::User => {
                let (bus, private) = (runtime().map(|r| r.join("bus")), runtime().map(|r| r.join("systemd/private")));
                ("DBUS_SESSION_BUS_ADDRESS", bus, private)
            }
        };
        let given = std::env::var(variable).ok().and_then(|text| parse_address(&text));
        let bus = given.or_else(|| bus.and_then(|path| SocketAddr::from_pathname(path).ok()));
        let private = private.and_then(|path| SocketAddr::from_pathname(path).ok());
        let stream = match bus.map(|address| UnixStream::connect_addr(&address)) {
            Some(Ok(stream)) => Ok((stream, true)),
            failed => match private.map(|address| UnixStream::connect_addr(&address)) {
                Some(Ok(stream)) => Ok((stream, false)),
                Some(Err(_)) | None => Err(failed.and_then(std::result::Result::err)),
            },
        };
        let (stream, bus) = stream.map_err(|error| {
            let cause = error.map_or_else(|| "XDG_RUNTIME_DIR is not set".to_owned(), |error| error.to_string());
            Error::new(Kind::Unsupported, operation, cause).next("use --cgroup-manager cgroupfs")
        })?;
        stream.set_read_timeout(Some(LIMIT)).context(|| operation)?;
        let mut connection = Self { stream: BufReader::new(stream), serial: 0, bus, ended: Vec::new() };
        connection.authenticate().context(|| operation)?;
        if bus {
            connection.answer(Method { member: "Hello", ..BUS }, &Writer::default())?;
        }
        Ok(connection)
    }

    /// By the credentials of the socket: a user id of ours would be another one outside of a user namespace.
    fn authenticate(&mut self) -> Result<()> {
        let operation = || "authenticate";
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\n")?;
        loop {
            let mut line = Vec::new();
            (&mut self.stream).take(4096).read_until(b'\n', &mut line).context(operation)?;
            match line.split(|byte| byte.is_ascii_whitespace()).next() {
                Some(b"OK") => return self.send(b"BEGIN\r\n"),
                Some(b"DATA") => {}
                _ => {
                    let cause = format!("permission denied ({})", String::from_utf8_lossy(&line).trim());
                    return Err(Error::new(Kind::System, operation(), cause));
                }
            }
        }
    }

    /// Calls a method of systemd's manager.
    ///
    /// # Errors
    /// Those of the socket; the inner result is systemd's own answer.
    pub(super) fn manager(
        &mut self,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<std::result::Result<Message, Refused>> {
        self.call(Method { member, signature, ..MANAGER }, body)
    }

    /// From now on ends of jobs are told.
    pub(super) fn watch_jobs(&mut self) -> Result<()> {
        if self.bus {
            let mut rule = Writer::default();
            rule.text("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'");
            self.answer(Method { member: "AddMatch", signature: "s", ..BUS }, &rule)?;
        }
        // Straight connections are told without it, and may not ask.
        let subscribed = self.manager("Subscribe", "", &Writer::default())?;
        match subscribed {
            Err(refused) if self.bus => Err(explain("subscribe to systemd's signals", &refused)),
            _ => Ok(()),
        }
    }

    /// Waits for the end of a job, and tells its result (`done` is the good one).
    pub(super) fn wait_job(&mut self, job: &str) -> Result<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(path, _)| path == job) {
                return Ok(result.clone());
            }
            if Instant::now() > deadline {
                return Err(Error::new(Kind::Busy, format!("wait for systemd's job {job}"), "it takes too long"));
            }
            let message = self.receive()?;
            self.note(&message);
        }
    }

    fn answer(&mut self, method: Method<'_>, body: &Writer) -> Result<Message> {
        self.call(method, body)?.map_err(|refused| explain(&format!("call {}", method.member), &refused))
    }

    fn call(&mut self, method: Method<'_>, body: &Writer) -> Result<std::result::Result<Message, Refused>> {
        self.serial += 1;
        let destination = method.destination.filter(|_| self.bus);
        self.send(&wire::call(self.serial, Method { destination, ..method }, body))?;
        loop {
            let mut message = self.receive()?;
            match message.sort {
                Sort::Answer if message.reply_to == self.serial => return Ok(Ok(message)),
                Sort::Failure if message.reply_to == self.serial => {
                    let text = std::mem::take(&mut message.texts).into_iter().next().unwrap_or_default();
                    return Ok(Err(Refused { name: message.error, text }));
                }
                Sort::Signal | Sort::Answer | Sort::Failure | Sort::Other => self.note(&message),
            }
        }
    }

    /// Keeps the end of a job, which may be told before the answer to the call that began it.
    fn note(&mut self, message: &Message) {
        if message.sort == Sort::Signal && message.member == "JobRemoved" {
            // uoss: number, job, unit, result.
            if let [job, _unit, result, ..] = message.texts.as_slice() {
                self.ended.push((job.clone(), result.clone()));
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context(|| "send to systemd")
    }

    fn receive(&mut self) -> Result<Message> {
        let operation = || "read systemd's answer";
        let mut fixed = [0; FIXED];
        self.stream.read_exact(&mut fixed).context(operation)?;
        let rest = wire::rest_of(&fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(FIXED + rest, 0);
        self.stream.read_exact(&mut bytes[FIXED..]).context(operation)?;
        wire::parse(&bytes)
    }
}

/// A refusal as an error.
pub(super) fn explain(operation: &str, refused: &Refused) -> Error {
    Error::new(Kind::System, operation, format!("{} ({})", refused.text, refused.name))
}

/// The first unix address of `unix:path=/run/x,guid=…;unix:abstract=…`.
fn parse_address(text: &str) -> Option<SocketAddr> {
    text.split(';').find_map(|address| {
        address.strip_prefix("unix:")?.split(',').find_map(|pair| match pair.split_once('=')? {
            ("path", path) => SocketAddr::from_pathname(path).ok(),
            ("abstract", name) => SocketAddr::from_abstract_name(name).ok(),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    #[test]
    fn addresses_are_paths_or_abstract_names() {
        let address = parse_address("tcp:host=x;unix:path=/run/user/7/bus,guid=00").unwrap();
        assert_eq!(address.as_pathname(), Some(Path::new("/run/user/7/bus")));
        assert_eq!(parse_address("unix:abstract=/tmp/x").unwrap().as_abstract_name(), Some(&b"/tmp/x"[..]));
        assert!(parse_address("tcp:host=x").is_none());
    }

    #[test]
    fn a_job_may_end_before_its_call_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        // What systemd would say, in its own words: a signal first, then the answer.
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).unwrap();
            let message = |kind: u8, fields: &[(u8, &str)], reply: u32, signature: &str, body: &Writer| {
                let mut bytes = wire::call(1, Method { destination: None, signature, ..MANAGER }, body);
                bytes[1] = kind;
                let _ = (fields, reply);
                bytes
            };
            let mut body = Writer::default();
            for text in ["/job/1", "a.scope", "done"] {
                body.text(text);
            }
            let mut signal = wire::call(1, Method { member: "JobRemoved", signature: "oss", ..MANAGER }, &body);
            signal[1] = 4;
            stream.write_all(&signal).unwrap();
            stream.write_all(&message(3, &[], 0, "", &Writer::default())).unwrap();
        });
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"x").unwrap();
        let mut connection = Connection { stream: BufReader::new(stream), serial: 0, bus: false, ended: Vec::new() };
        assert_eq!(connection.wait_job("/job/1").unwrap(), "done");
        assert!(connection.wait_job("/job/2").is_err(), "the other side is gone");
        server.join().unwrap();
    }
}
