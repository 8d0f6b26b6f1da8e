//! `ring recover`: adopts what crashes left.

use super::{print, store};
use crate::cli::ring::Output;
use crate::command::World;
use crate::error::Result;
use crate::ops::worker::{self, Recovery};

/// One line for each thing that was done or could not be; 1 if there is any of the latter.
pub(super) fn run(world: &World, output: Output) -> Result<u8> {
    let Recovery { done, failures } = match store(world)? {
        Some(store) => {
            let recovery = worker::recover(&store)?;
            worker::start(&world.place)?;
            recovery
        }
        None => Recovery::default(),
    };
    let lines = [&done[..], &failures[..]].concat();
    print(output, &lines, || lines.iter().map(|line| format!("{line}\n")).collect())?;
    Ok(u8::from(!failures.is_empty()))
}
