//! `ring verify`: one line per fault, and exit status 1 if there is any.

use super::{print, ring, store};
use crate::cli::ring::Some as SomeRing;
use crate::command::World;
use crate::error::Result;
use crate::ring::Ring;
use crate::ring::verify::Fault;

pub(super) fn run(world: &World, arguments: &SomeRing) -> Result<u8> {
    let results: Vec<Result<Vec<Fault>>> = match (&arguments.ring, store(world)?) {
        (Some(name), _) => vec![ring(world, name)?.verify()],
        (None, Some(store)) => Ring::each(&store, Ring::verify)?.map(|(_, found)| found).collect(),
        (None, None) => Vec::new(),
    };
    let mut faults = Vec::new();
    for result in results {
        match result {
            Ok(found) => faults.extend(found),
            // One ring that cannot be read must not hide what is wrong with the others.
            Err(error) => faults.push(error.to_string()),
        }
    }
    print(arguments.output, &faults, || faults.iter().map(|fault| format!("{fault}\n")).collect())?;
    Ok(u8::from(!faults.is_empty()))
}
