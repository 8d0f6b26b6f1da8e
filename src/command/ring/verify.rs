//! `ring verify`: one line per fault, and exit status 1 if there is any.

use super::{print, ring, store};
use crate::cli::ring::Some as SomeRing;
use crate::command::World;
use crate::error::Result;
use crate::ring::Ring;

pub(super) fn run(world: &World, arguments: &SomeRing) -> Result<u8> {
    let rings = match &arguments.ring {
        Some(name) => vec![ring(world, name)?],
        None => store(world)?.map(|store| Ring::list(&store)).transpose()?.unwrap_or_default(),
    };
    let mut faults = Vec::new();
    for ring in &rings {
        match ring.verify() {
            Ok(found) => faults.extend(found),
            // One ring that cannot be read must not hide what is wrong with the others.
            Err(error) => faults.push(error.to_string()),
        }
    }
    print(arguments.output, &faults, || faults.iter().map(|fault| format!("{fault}\n")).collect())?;
    Ok(u8::from(!faults.is_empty()))
}
