//! `ring prune`: collects what nothing needs.

use chrono::TimeDelta;

use super::{print, store};
use crate::cli::ring::Prune as Arguments;
use crate::command::World;
use crate::config::human_bytes;
use crate::config::parse_duration;
use crate::error::{Error, Kind, Result};
use crate::ops::prune::{Doing, Pruned, prune};
use crate::ring::Disuse;
use crate::ring::prune::{Garbage, Sort};

const SORTS: [(Sort, &str, &str); 6] = [
    (Sort::Fork, "fork", "forks"),
    (Sort::Layer, "layer", "layers"),
    (Sort::ImageLayer, "image layer", "image layers"),
    (Sort::Blob, "blob", "blobs"),
    (Sort::Run, "dead run", "dead runs"),
    (Sort::Leftover, "leftover", "leftovers"),
];

/// An array of what goes; people get a line with how many there are of each sort.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<()> {
    let doing = if arguments.dry_run { Doing::Look } else { Doing::Remove };
    let older_than = arguments.older_than.as_deref().map(parse_age).transpose()?;
    let forks = arguments.forks.then_some(Disuse { older_than });
    let pruned = match store(world)? {
        Some(store) => prune(&world.place, &store, forks, doing)?,
        None => Pruned::default(),
    };
    print(arguments.output, &pruned.garbage, || text(&pruned, doing))
}

fn parse_age(text: &str) -> Result<TimeDelta> {
    parse_duration(text).ok_or_else(|| {
        let operation = format!("read age '{}'", text.escape_debug());
        Error::new(Kind::Usage, operation, "it is no duration").next("write one like 12h, 7d or 2w")
    })
}

fn text(pruned: &Pruned, doing: Doing) -> String {
    let Pruned { garbage, kept } = pruned;
    let counts = SORTS.iter().filter_map(|(sort, one, many)| {
        match garbage.iter().filter(|garbage| garbage.kind == *sort).count() {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        }
    });
    let counts: Vec<_> = counts.collect();
    let bytes = human_bytes(garbage.iter().map(|garbage: &Garbage| garbage.bytes).sum());
    let verb = match doing {
        Doing::Look => "would be freed",
        Doing::Remove => "freed",
    };
    let kept = kept.map(|why| format!("layers of images stay: {why}\n")).unwrap_or_default();
    if counts.is_empty() {
        return format!("nothing to collect\n{kept}");
    }
    format!("{}: {bytes} {verb}\n{kept}", counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_is_counted_by_sort() {
        let garbage = |kind, bytes| Garbage { kind, name: String::new(), bytes };
        let garbage = vec![garbage(Sort::Run, 1024), garbage(Sort::Layer, 1024), garbage(Sort::Layer, 0)];
        let pruned = Pruned { garbage, kept: None };
        assert_eq!(text(&pruned, Doing::Remove), "2 layers, 1 dead run: 2.0 KiB freed\n");
        let nothing = Pruned { garbage: Vec::new(), kept: Some("x") };
        assert_eq!(text(&nothing, Doing::Look), "nothing to collect\nlayers of images stay: x\n");
    }
}
