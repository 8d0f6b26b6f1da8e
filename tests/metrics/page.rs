//! The page, as the reference parser of OpenMetrics reads it (Debian's python3-prometheus-client).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::Daemon;
use crate::harness::{World, eventually};

const PARSER: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
json.dump([{'name': f.name, 'type': f.type, 'unit': f.unit, 'help': f.documentation,
    'samples': [[s.name, s.labels, s.value] for s in f.samples]} for f in parse(sys.stdin.read())], sys.stdout)
";

/// A page that was read.
#[derive(Debug)]
pub struct Page(pub Vec<Value>);

/// Starts a daemon that tells numbers at a port of its own.
pub fn start(world: &World) -> Daemon<'_> {
    let mut daemon = world.daemon();
    daemon.end(nix::sys::signal::Signal::SIGTERM).success();
    daemon.start_as(world.command(&["serve", "--metrics", "tcp://127.0.0.1:0"]));
    daemon
}

/// Where a daemon tells them: what it has logged last.
pub fn address(daemon: &Daemon<'_>) -> String {
    let log = daemon.log();
    let (_, rest) = log.rsplit_once("address=\"tcp://").expect("no address in the log");
    rest.split('"').next().unwrap().to_owned()
}

/// Sends bytes, and gives what comes back until the other side closes.
pub fn exchange(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The text of the page.
pub fn fetch(address: &str) -> String {
    let answer = exchange(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    body.to_owned()
}

/// The page, read by others.
#[track_caller]
pub fn scrape(daemon: &Daemon<'_>) -> Page {
    Page::parse(&fetch(&address(daemon)))
}

impl Page {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        Self::read(text).unwrap_or_else(|words| panic!("the page is refused: {words}\n{text}"))
    }

    /// What the parser makes of it, or its words.
    pub fn read(text: &str) -> Result<Self, String> {
        // Debian's: another Python may come first, without its packages.
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", PARSER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self(serde_json::from_slice(&output.stdout).unwrap()))
    }

    /// All samples: name, labels, value.
    pub fn samples(&self) -> impl Iterator<Item = (&str, BTreeMap<&str, &str>, f64)> {
        self.0.iter().flat_map(|family| family["samples"].as_array().unwrap()).map(|sample| {
            let labels = sample[1].as_object().unwrap();
            let labels = labels.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
            (sample[0].as_str().unwrap(), labels, sample[2].as_f64().unwrap_or(f64::INFINITY))
        })
    }

    /// The sum of all samples of that name with these labels, whatever others they have.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |found: &BTreeMap<&str, &str>| labels.iter().all(|(name, value)| found.get(name) == Some(value));
        self.samples().filter(|(found, has, _)| *found == name && fits(has)).map(|(_, _, value)| value).sum()
    }
}

/// Waits until a number is that high or higher.
#[track_caller]
pub fn await_sum(daemon: &Daemon<'_>, name: &str, labels: &[(&str, &str)], least: f64) -> Page {
    let mut last = None;
    eventually(name, || {
        let page = scrape(daemon);
        let enough = page.sum(name, labels) >= least;
        last = Some(page);
        enough
    });
    last.unwrap()
}
