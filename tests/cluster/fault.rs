//! Wires are cut, daemons and members of etcd are killed and stopped while clients go on asking; then everything is healed, and
//! whatever was answered has to be true.
//!
//! `REGEN_OCI_CLUSTER_ROUNDS` and `REGEN_OCI_CLUSTER_SEED` say how much is done, and which of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::harness::site::Cut;
use crate::node::Nodes;

/// How much is done if nothing is said.
const ROUNDS: u64 = 8;
/// As many clients ask at a time.
const CLIENTS: u64 = 2;

/// Numbers that look drawn, the same for the same seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn host(&mut self) -> usize {
        usize::try_from(self.below(3)).unwrap()
    }

    fn time(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// What is done to the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    CutDown,
    CutSilent,
    PairDown,
    PairSilent,
    KillDaemon,
    StopDaemon,
    KillMember,
    StopMember,
}

impl Fault {
    const WIRES: [Self; 4] = [Self::CutDown, Self::CutSilent, Self::PairDown, Self::PairSilent];
    const PROCESSES: [Self; 4] = [Self::KillDaemon, Self::StopDaemon, Self::KillMember, Self::StopMember];

    fn inject(self, trial: &Trial<'_>, host: usize) {
        let (nodes, next) = (trial.nodes, (host + 1) % 3);
        match self {
            Self::CutDown => nodes.cut(host, Cut::Down),
            Self::CutSilent => nodes.cut(host, Cut::Silence),
            Self::PairDown => nodes.cut_between(host, next, Cut::Down),
            Self::PairSilent => nodes.cut_between(host, next, Cut::Silence),
            Self::KillDaemon => {
                let log = nodes.end(host, Signal::SIGKILL).stderr().to_owned();
                trial.logs.lock().unwrap()[host].push_str(&log);
            }
            Self::StopDaemon => nodes.signal(host, Signal::SIGSTOP),
            Self::KillMember => nodes.kill_member(host),
            Self::StopMember => nodes.pause_member(host),
        }
    }

    fn undo(self, nodes: &Nodes, host: usize) {
        match self {
            Self::CutDown | Self::CutSilent | Self::PairDown | Self::PairSilent => nodes.heal(),
            Self::KillDaemon => nodes.serve(host, &[]),
            Self::StopDaemon => nodes.signal(host, Signal::SIGCONT),
            Self::KillMember => nodes.restart_member(host),
            Self::StopMember => nodes.resume_member(host),
        }
    }
}

/// What was asked for, and what was answered.
#[derive(Debug, Default)]
struct Asked {
    /// Operations that were promised.
    taken: BTreeSet<String>,
    /// Operations of which was said that they may be some.
    doubtful: BTreeSet<String>,
    refused: u64,
}

struct Trial<'a> {
    nodes: &'a Nodes,
    asked: Mutex<Asked>,
    /// What each daemon has logged that is gone.
    logs: Mutex<[String; 3]>,
    over: AtomicBool,
}

impl Trial<'_> {
    /// Asks any node for something on any node, again and again.
    fn ask(&self, mut dice: Dice) {
        while !self.over.load(Ordering::Relaxed) {
            let (from, to, draw) = (dice.host(), dice.host(), dice.below(10));
            let (kind, subject, parameters) = match draw {
                0..5 => ("probe", format!("probe/{}", dice.below(4)), json!({"delay_ms": dice.below(300)})),
                5..8 => ("service-restart", "service/s@1.0.0".to_owned(), json!({"name": "s", "version": "1.0.0"})),
                _ => ("ring-set", "ring/root/r".to_owned(), json!({"ring": "r", "depth": 2 + dice.below(8)})),
            };
            let targets = json!([format!("n{to}:{subject}")]);
            let parameters = format!("parameters={parameters}");
            let (kind, targets) = (format!("kind={kind}"), format!("targets={targets}"));
            let call = ["call", "--json", "run.regen.Operation.Submit", &kind, &targets, &parameters];
            let output = self.nodes.regen(from, &call);
            let mut asked = self.asked.lock().unwrap();
            if output.code == 0 {
                let answer: Value = serde_json::from_str(output.stdout()).unwrap();
                assert!(asked.taken.insert(answer["operation"].as_str().unwrap().to_owned()), "{answer}: twice");
            } else {
                let lines = output.stderr().lines().count();
                assert_eq!(lines, 1, "a refusal is a line: {}", output.stderr());
                asked.refused += 1;
                if let Some((_, rest)) = output.stderr().split_once("see 'regen op show ") {
                    asked.doubtful.insert(rest[..32].to_owned());
                }
            }
            drop(asked);
            std::thread::sleep(dice.time(1, 100));
        }
    }

    /// One or two faults at a time, each for some seconds.
    fn disturb(&self, rounds: u64, dice: &mut Dice) -> BTreeMap<Fault, u64> {
        let mut counts = BTreeMap::new();
        for round in 0..rounds {
            // Who does more also has leases run out.
            let (least, most) = if rounds > ROUNDS && round % 10 == 9 { (32_000, 45_000) } else { (300, 3000) };
            let which = dice.below(3);
            let drawn =
                |faults: [Fault; 4], dice: &mut Dice| (faults[usize::try_from(dice.below(4)).unwrap()], dice.host());
            let mut faults = Vec::new();
            if which != 0 {
                faults.push(drawn(Fault::WIRES, dice));
            }
            if which != 1 {
                faults.push(drawn(Fault::PROCESSES, dice));
            }
            for (fault, host) in &faults {
                fault.inject(self, *host);
                *counts.entry(*fault).or_default() += 1;
                std::thread::sleep(dice.time(1, 300));
            }
            std::thread::sleep(dice.time(least, most));
            faults.iter().for_each(|(fault, host)| fault.undo(self.nodes, *host));
            std::thread::sleep(dice.time(1, 1000));
        }
        counts
    }

    /// Everything that the daemon of a node, and those before it, have logged.
    fn log(&self, index: usize) -> String {
        self.logs.lock().unwrap()[index].clone() + &self.nodes.log(index)
    }
}

/// A line of a log that says that a task has passed the fence.
#[derive(Debug)]
struct Begun {
    operation: String,
    kind: String,
    target: String,
    token: u64,
}

fn begun(log: &str) -> Vec<Begun> {
    let lines = log.lines().filter_map(|line| line.split_once("begun operation="));
    lines
        .map(|(_, rest)| {
            let field = |name: &str| {
                let (_, value) = rest.split_once(name).unwrap();
                value.split(' ').next().unwrap().to_owned()
            };
            let operation = rest.split(' ').next().unwrap().to_owned();
            let (kind, target) = (field("kind="), field("target="));
            Begun { operation, kind, target, token: field("token=").parse().unwrap() }
        })
        .collect()
}

/// The state of every operation, as a node tells it.
fn states(nodes: &Nodes, index: usize) -> BTreeMap<String, String> {
    let listed = nodes.json(index, &["op", "ls", "--limit", "100000", "--json"]);
    let text = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(|one| (text(one, "id"), text(one, "state"))).collect()
}

/// No token was seen by two operations, none after a higher one, and nothing that must not be done twice was begun twice.
fn check_executions(trial: &Trial<'_>) -> BTreeMap<String, u64> {
    let mut restarts: BTreeMap<String, u64> = BTreeMap::new();
    for index in 0..3 {
        let (mut highest, mut owners) = (BTreeMap::new(), BTreeMap::new());
        for Begun { operation, kind, target, token } in begun(&trial.log(index)) {
            assert!(target.starts_with(&format!("n{index}:")), "{operation} of {target} was begun on n{index}");
            let last = highest.entry((kind.clone(), target.clone())).or_insert(0);
            assert!(token >= *last, "{operation} began on {target} with token {token} after {last}");
            *last = token;
            let owner = owners.entry((target.clone(), token)).or_insert_with(|| operation.clone());
            assert_eq!(*owner, operation, "two hold token {token} of {target}");
            if kind == "service-restart" {
                *restarts.entry(operation).or_default() += 1;
            }
        }
    }
    for (operation, count) in &restarts {
        assert_eq!(*count, 1, "{operation} was begun {count} times");
    }
    restarts
}

/// What was promised is there and has come to an end, which all nodes tell alike; what succeeded was done.
fn check_operations(trial: &Trial<'_>, restarts: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let (nodes, asked) = (trial.nodes, trial.asked.lock().unwrap());
    let states = states(nodes, 0);
    for index in 1..3 {
        assert_eq!(self::states(nodes, index), states, "n0 and n{index} tell otherwise");
    }
    let (mut counts, mut instances) = (BTreeMap::new(), BTreeSet::new());
    for id in &asked.taken {
        let state = states.get(id).unwrap_or_else(|| panic!("operation {id} is lost"));
        *counts.entry(state.clone()).or_default() += 1;
        if state != "succeeded" {
            continue;
        }
        let shown = nodes.operation(0, id);
        if shown["kind"] == "service-restart" {
            assert!(restarts.contains_key(id), "{shown} was never begun");
            let report = &shown["results"][0]["value"]["report"];
            let place = (shown["targets"][0].to_string(), report["instance"].to_string());
            assert!(instances.insert(place), "two have made the same instance: {shown}");
        }
    }
    let doubtful = asked.doubtful.iter().filter(|id| states.contains_key(*id)).count();
    counts.insert("doubtful, and known".to_owned(), u64::try_from(doubtful).unwrap());
    counts
}

#[test]
fn whatever_fails_nothing_is_lost_nor_done_twice_and_all_agree_afterwards() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (rounds, seed) = (number("REGEN_OCI_CLUSTER_ROUNDS", ROUNDS), number("REGEN_OCI_CLUSTER_SEED", 1));
    let nodes = Nodes::new("fault");
    let rootfs = nodes.world().rootfs();
    for index in 0..3 {
        nodes.add_sleeper(index, ("s", "1.0.0", 8080), &[]).success();
        nodes.add_sleeper(index, (&format!("only-{index}"), "1.0.0", 8081), &[]).success();
        let run = ["run", "--rootfs", rootfs.to_str().unwrap(), "--ring", "r", "box", "--", "touch", "/root/x"];
        nodes.regen(index, &run).success();
    }
    let trial = Trial { nodes: &nodes, asked: Mutex::default(), logs: Mutex::default(), over: AtomicBool::new(false) };
    let faults = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let trial = &trial;
            scope.spawn(move || trial.ask(Dice::new(seed * 100 + client)));
        }
        // Also if it panics, or the clients would go on for ever.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _over = Over(&trial.over);
        trial.disturb(rounds, &mut Dice::new(seed))
    });
    nodes.await_all();
    eventually("everything has come to an end", || {
        states(&nodes, 0).values().all(|state| !["queued", "running"].contains(&state.as_str()))
    });
    eventually("nobody holds anything", || {
        ["regen/marker/", "regen/active/", "regen/wide/"]
            .iter()
            .all(|prefix| nodes.ctl(0, &["get", "--prefix", "--keys-only", prefix]).stdout().trim().is_empty())
    });
    let restarts = check_executions(&trial);
    let counts = check_operations(&trial, &restarts);
    for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))) {
        eventually("who serves is found", || nodes.resolve(from, &format!("only-{to}")).is_some());
        let on = format!("node=n{to}");
        nodes.regen(from, &["service", "restart", "s", "--on", &on]).success();
    }
    let refused = trial.asked.lock().unwrap().refused;
    let _ = writeln!(
        std::io::stderr(),
        "seed {seed}, rounds {rounds}, faults {faults:?}; operations {counts:?}, refused {refused}, restarts begun {}",
        restarts.len()
    );
}

#[test]
fn who_is_cut_off_or_hangs_longer_than_its_lease_is_not_handed_out_and_loses_what_it_held() {
    let nodes = Nodes::new("expiry");
    for index in [0, 1] {
        nodes.add_sleeper(index, (&format!("only-{index}"), "1.0.0", 8080), &[]).success();
        eventually("it is found", || nodes.resolve(2, &format!("only-{index}")).is_some());
    }
    let held: Vec<_> = [0, 1]
        .map(|index| {
            let target = json!([format!("n2:probe/{index}")]);
            let id = nodes.submit(index, "probe", &target, &json!({"delay_ms": 600_000}));
            eventually("it is begun", || nodes.operation(2, &id)["state"] == "running");
            id
        })
        .into();
    nodes.cut(0, Cut::Silence);
    nodes.signal(1, Signal::SIGSTOP);
    let begun = Instant::now();
    for index in [0, 1] {
        eventually("nobody is sent there", || nodes.resolve(2, &format!("only-{index}")).is_none());
    }
    // A lease lasts for 30 s. What is measured besides is how busy the machine is.
    assert!(begun.elapsed() < Duration::from_secs(45), "it was handed out for {:?}", begun.elapsed());
    eventually("they are not there", || nodes.known_to(2) == ["n2"]);
    assert_eq!(nodes.resolve(0, "only-0").unwrap()["instance"], "only-0-1.0.0-1", "its own clients go on");
    for (index, id) in held.iter().enumerate() {
        let target = format!("targets=[\"n2:probe/{index}\"]");
        let submit = ["call", "run.regen.Operation.Submit", "kind=probe", &target];
        eventually("it is free", || nodes.regen(2, &submit).code == 0);
        let mut shown = Value::Null;
        eventually("somebody says that nobody knows", || {
            shown = nodes.operation(2, id);
            shown["state"] == "unknown"
        });
        assert_eq!(shown["error"], format!("node 'n{index}', which had it, is gone"));
    }
    nodes.heal();
    nodes.signal(1, Signal::SIGCONT);
    nodes.await_all();
    for (index, id) in held.iter().enumerate() {
        eventually("it hears of it", || nodes.operation(index, id)["state"] == "unknown");
        eventually("it is found again", || nodes.resolve(2, &format!("only-{index}")).is_some());
        nodes
            .regen(index, &["service", "restart", &format!("only-{index}"), "--on", &format!("node=n{index}")])
            .success();
    }
}
