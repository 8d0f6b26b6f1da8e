//! `ring recover`: adopts what crashes left.

use super::{print, store};
use crate::cli::ring::Output;
use crate::command::World;
use crate::error::Result;
use crate::ops::worker;

pub(super) fn run(world: &World, output: Output) -> Result<()> {
    let lines = match store(world)? {
        Some(store) => {
            let lines = worker::recover(&store)?;
            worker::start(&world.place)?;
            lines
        }
        None => Vec::new(),
    };
    print(output, &lines, || lines.iter().map(|line| format!("{line}\n")).collect())
}
