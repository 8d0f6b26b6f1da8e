//! How long the daemon's own copy of who serves takes to answer: joins the cluster at an etcd as one more node, and resolves.
//!
//! `copy etcd://HOST:PORT SERVICE`: prints `{"microseconds": …}`, the median of several batches.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that measures, and fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regen::config;
use regen::ops::cluster::{Cluster, Found, node_here};
use regen::registry::Etcd;
use regen::registry::etcd::Settings;
use regen::service::choice::Wanted;
use regen::service::roster::Roster;

const BATCHES: usize = 21;
const BATCH: u32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (url, wanted) = (arguments.next().unwrap(), arguments.next().unwrap());
    let wanted: Wanted = wanted.parse().unwrap();
    let registry = Etcd::open(Settings::new(&url, &config::Cluster::default()).unwrap()).unwrap();
    let node = node_here("asker".parse().unwrap(), "a".repeat(32), None, Vec::new(), 1);
    let cluster = Cluster::open(Arc::new(registry), node, Roster::new()).unwrap();
    let began = Instant::now();
    while !matches!(cluster.resolve(&wanted), Ok(Found::There { .. })) {
        assert!(began.elapsed() < PATIENCE, "nobody serves {wanted}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut batches: Vec<_> = (0..BATCHES).map(|_| batch(&cluster, &wanted)).collect();
    batches.sort_unstable();
    let each = batches[BATCHES / 2] / BATCH;
    println!("{{\"microseconds\": {}}}", each.as_secs_f64() * 1e6);
    cluster.leave().unwrap();
}

fn batch(cluster: &Cluster, wanted: &Wanted) -> Duration {
    let began = Instant::now();
    for _ in 0..BATCH {
        black_box(cluster.resolve(black_box(wanted))).unwrap();
    }
    began.elapsed()
}
