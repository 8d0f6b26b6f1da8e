//! The process that keeps a template, asked as the daemon asks it, and as those do who want clones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod crash;
mod foreign;
mod function;
mod hostile;
mod life;
mod loading;
mod rights;
mod start;

use std::path::Path;

use harness::World;
use harness::template::compile;
use regen::template::definition::{Order, Source};

/// An order for a template of the small program in C.
fn native(world: &World, name: &str, arguments: &[&str]) -> Order {
    let program = world.rootfs().join("program");
    if !program.exists() {
        compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/template/program.c"), &program);
    }
    let command: Vec<&str> = ["/program"].iter().chain(arguments).copied().collect();
    world.template(name, Source::Rootfs(world.rootfs()), &command)
}

/// How a clone ends that has no result.
fn ended(status: &str, output: &str) -> harness::template::Ended {
    harness::template::Ended { status: status.into(), output: output.into(), result: String::new() }
}
