//! Ten thousand nodes on virtual time: admission, markers, leases, fences and fan-out, with nodes that die, hang, are cut off or
//! never come back, messages that are lost or late, a registry that is away, and clocks that run apart.
//!
//! What decides is the crate's own: admission, markers, leases, whose turn it is, what was begun and what a failure leads to, the
//! course of an operation, what is written down, recovery, fences on disk, the directory of nodes. What is simulated is the
//! machine around it: threads, wires, the work itself, the registry. A seed gives one course of things.
//!
//! `cargo test --test scale -- --nocapture` prints what `docs/scale.md` says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod check;
mod cost;
mod daemon;
mod dice;
mod event;
mod fault;
mod host;
mod ledger;
mod membership;
mod plan;
mod registry;
mod request;
mod simulation;
mod work;

use plan::Plan;
use simulation::Simulation;

#[test]
fn ten_thousand_nodes_lose_nothing_and_do_nothing_twice() {
    let simulation = Simulation::new(Plan::large(2026));
    simulation.run();
    simulation.check();
    #[allow(clippy::print_stdout, reason = "docs/scale.md has these numbers")]
    {
        println!("{}", simulation.report());
    }
    simulation.assert_that_it_was_hard();
}

#[test]
fn a_few_nodes_that_fail_all_the_time_keep_to_the_same_rules() {
    let (mut fenced, mut barred, mut buried) = (0, 0, 0);
    for seed in 0..60 {
        let simulation = Simulation::new(Plan::small(seed));
        simulation.run();
        simulation.check();
        let ledger = simulation.ledger.lock().unwrap();
        fenced += ledger.fenced;
        barred += ledger.barred;
        buried += ledger.buried + ledger.orphans;
    }
    assert!(fenced >= 30 && barred >= 10 && buried >= 10, "{fenced} {barred} {buried}");
}

#[test]
fn a_seed_gives_one_course_of_things() {
    let course = |seed| {
        let simulation = Simulation::new(Plan { time: 60_000, requests: 100, ..Plan::small(seed) });
        simulation.run();
        simulation.report()
    };
    assert_eq!(course(1), course(1));
    assert_ne!(course(1), course(2));
}
