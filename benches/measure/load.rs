//! The load of `hack/bench hot-restart`, which builds it with rustc alone: see USAGE.

#[path = "../../tests/harness/load/mod.rs"]
mod load;

use std::fs;
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use load::{Connections, Load, Plan, Protocol, Request, http_request, redis_request};

const USAGE: &str = "usage: load TARGET (--http PATH=FILE | --redis KEY=FILE)... [--kept] [--threads N] [--rate N] \
                     [--pause-ms N] [--seconds N]
Asks TARGET (HOST:PORT or a path) for so many seconds, or else until its standard input ends; FILE has the answer that is right
(of one PATH given twice, either is). Prints one JSON object: counts, failures, microseconds.";

fn main() -> ExitCode {
    let (plan, seconds) = match parse(std::env::args().skip(1).collect()) {
        Ok(parsed) => parsed,
        Err(reason) => {
            eprintln!("load: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let load = Load::start(plan);
    match seconds {
        Some(seconds) => std::thread::sleep(seconds),
        None => drop(std::io::stdin().read_to_end(&mut Vec::new())),
    }
    println!("{}", load.stop().to_json());
    ExitCode::SUCCESS
}

fn parse(arguments: Vec<String>) -> Result<(Plan, Option<Duration>), String> {
    let mut arguments = arguments.into_iter();
    let target = arguments.next().ok_or("no target")?.parse()?;
    let mut plan = Plan { requests: Vec::new(), ..Plan::http(target, "/", b"") };
    let mut paths: Vec<String> = Vec::new();
    let mut seconds = None;
    let arguments: Vec<String> = arguments.collect();
    if arguments.iter().any(|argument| argument == "--kept") {
        plan.connections = Connections::Kept;
    }
    let mut arguments = arguments.into_iter().filter(|argument| argument != "--kept");
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(format!("{flag} needs a value"))?;
        let number = || value.parse::<f64>().map_err(|error| format!("{flag} {value}: {error}"));
        match flag.as_str() {
            "--threads" => plan.threads = number()? as usize,
            "--rate" => plan.rate = Some(number()?),
            "--pause-ms" => plan.pause = Duration::from_secs_f64(number()? / 1e3),
            "--seconds" => seconds = Some(Duration::from_secs_f64(number()?)),
            "--http" | "--redis" => {
                let (name, file) = value.split_once('=').ok_or(format!("{flag} {value}: no '='"))?;
                let content = fs::read(file).map_err(|error| format!("read {file}: {error}"))?;
                if flag == "--redis" {
                    plan.protocol = Protocol::Bytes;
                    plan.requests.push(redis_request(name, &content));
                } else if let Some(index) = paths.iter().position(|path| path == name) {
                    plan.requests[index].answers.push(content);
                } else {
                    paths.push(name.to_owned());
                    let bytes = http_request(name, plan.connections);
                    plan.requests.push(Request { bytes, answers: vec![content] });
                }
            }
            _ => return Err(format!("unknown: {flag}")),
        }
    }
    if plan.requests.is_empty() {
        return Err("nothing to ask for".to_owned());
    }
    Ok((plan, seconds))
}
