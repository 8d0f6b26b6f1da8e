//! A client that keeps a copy of who serves: whoever connects asks nobody, and hears of versions that go before they are
//! gone. It needs the crates semver and serde_json.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use semver::{Version, VersionReq};
use serde_json::{Value, json};

/// Who serves, kept by a thread that listens.
#[derive(Debug, Clone)]
pub struct Versions(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    addresses: BTreeMap<Version, String>,
    turn: usize,
}

impl Versions {
    /// Learns of the versions of a service, and then of what changes. `control` is `/run/regen/run.regen.Control`.
    pub fn watch(control: &Path, service: &str) -> io::Result<Self> {
        let mut daemon = ask(control, service)?;
        let versions = Self(Arc::default());
        versions.hear(&read(&mut daemon)?);
        let (listening, control, service) = (versions.clone(), control.to_owned(), service.to_owned());
        std::thread::spawn(move || listening.listen(daemon, control, &service));
        Ok(versions)
    }

    fn listen(&self, mut daemon: BufReader<UnixStream>, control: PathBuf, service: &str) {
        // As long as somebody else uses it.
        while Arc::strong_count(&self.0) > 1 {
            match read(&mut daemon) {
                Ok(news) => self.hear(&news),
                // The daemon restarts, and what serves goes on: what is known stays until then.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(50));
                    daemon = ask(&control, service).unwrap_or(daemon);
                }
            }
        }
    }

    fn hear(&self, news: &Value) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of =
            |member: &Value| Some((member["version"].as_str()?.parse().ok()?, member["address"].as_str()?.to_owned()));
        // The state comes first, and again if we were too slow for the changes: what is not in it has gone.
        if let Some(state) = news["state"].as_array() {
            known.addresses = state.iter().filter_map(of).collect();
        }
        for change in news["changes"].as_array().into_iter().flatten() {
            let Some((version, address)) = of(change) else { continue };
            match change["change"].as_str() {
                Some("added") => known.addresses.insert(version, address),
                _ => known.addresses.remove(&version),
            };
        }
    }

    /// The newest that satisfies, with its address. Those that differ in build metadata only take turns.
    pub fn newest(&self, requirement: &VersionReq) -> Option<(Version, String)> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.turn += 1;
        let newest = known.addresses.keys().rfind(|version| requirement.matches(version))?;
        let equal = |entry: &(&Version, &String)| entry.0.cmp_precedence(newest).is_eq();
        let equals: Vec<_> = known.addresses.iter().filter(equal).collect();
        let (version, address) = equals[known.turn % equals.len()];
        Some((version.clone(), address.clone()))
    }

    /// A connection to it. One that refuses has just gone: the copy will know in a moment.
    pub fn connect(&self, requirement: &VersionReq) -> io::Result<(Version, TcpStream)> {
        let mut refused = 0;
        loop {
            let Some((version, address)) = self.newest(requirement) else {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no version satisfies {requirement}")));
            };
            match TcpStream::connect(address.trim_start_matches("tcp://")) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && refused < 100 => refused += 1,
                other => return other.map(|stream| (version, stream)),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn ask(control: &Path, service: &str) -> io::Result<BufReader<UnixStream>> {
    let mut daemon = UnixStream::connect(control)?;
    let call = json!({"method": "run.regen.Service.Watch", "parameters": {"name": service}, "more": true});
    daemon.write_all(format!("{call}\0").as_bytes())?;
    Ok(BufReader::new(daemon))
}

/// The parameters of the next answer.
fn read(daemon: &mut BufReader<UnixStream>) -> io::Result<Value> {
    let mut message = Vec::new();
    daemon.read_until(0, &mut message)?;
    match message.pop() {
        Some(0) => {}
        _ => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    let mut answer: Value = serde_json::from_slice(&message)?;
    match answer["error"].as_str() {
        Some(error) => Err(io::Error::other(format!("{error}: {}", answer["parameters"]["message"]))),
        None => Ok(answer["parameters"].take()),
    }
}
