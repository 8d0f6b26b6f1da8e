//! `ring restore`: a part of a saved state is put back.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{diff, open, print};
use crate::cli::look::Restore;
use crate::command::World;
use crate::error::Result;
use crate::ids::{ContainerId, RingName};
use crate::ops::look::{self, Doing, PutBack, To};
use crate::pack::Change;
use crate::ring::look::check_is_not_ours;
use crate::ring::selector::Target;

#[derive(Debug, Serialize)]
struct RestoreView {
    ring: RingName,
    /// The number of the entry; null for the bare base.
    seq: Option<u64>,
    /// Null for a directory of the host.
    container: Option<ContainerId>,
    files: u64,
    directories: u64,
    bytes: u64,
    /// Of directories that are there already, nothing is said.
    changes: Vec<ChangeView>,
}

#[derive(Debug, Serialize)]
struct ChangeView {
    change: char,
    path: String,
}

pub(super) fn run(world: &World, arguments: &Restore) -> Result<()> {
    let (name, selector) = Target::parse(&arguments.target, &world.place.owner)?.named()?;
    let ring = open(world, &name)?;
    if let Some(directory) = &arguments.to {
        check_is_not_ours(directory, [&world.place.store, world.place.root.path()])?;
    }
    let to = arguments.to.as_deref().map_or(To::Container, To::Directory);
    let doing = if arguments.dry_run { Doing::Planned } else { Doing::Done };
    let PutBack { entry, container, changes, done } =
        look::restore(&world.place, &ring, &selector, (&arguments.path, to), doing)?;
    let changes: Vec<_> = changes.iter().filter_map(|(change, path)| Some((letter(*change)?, path))).collect();
    let view = RestoreView {
        ring: name,
        seq: entry,
        container,
        files: done.files,
        directories: done.directories,
        bytes: done.bytes,
        changes: changes.iter().map(|(change, path)| ChangeView { change: *change, path: text_of(path) }).collect(),
    };
    print(arguments.output, &view, || match doing {
        Doing::Planned => changes.iter().map(|(change, path)| format!("{change} {}\n", diff::shown(path))).collect(),
        Doing::Done => summary(&view, arguments.to.as_ref(), &changes),
    })
}

fn summary(view: &RestoreView, to: Option<&PathBuf>, changes: &[(char, &PathBuf)]) -> String {
    let entry = view.seq.map_or("base".to_owned(), |seq| seq.to_string());
    let place = match (&view.container, to) {
        (Some(container), _) => format!("container '{container}'"),
        (None, to) => to.map_or_else(|| "/".to_owned(), |to| diff::shown(to)),
    };
    let (files, directories) =
        (counted(view.files, "file", "files"), counted(view.directories, "directory", "directories"));
    let mut text = format!("{}: {files} and {directories} of @{entry} are in {place}\n", view.ring);
    for (_, path) in changes.iter().filter(|(change, _)| *change == LEFT) {
        text.push_str(&format!("left alone, because something is mounted there: {}\n", diff::shown(path)));
    }
    text
}

const LEFT: char = '-';

/// What stands before a path; nothing is said of directories that are there.
fn letter(change: Change) -> Option<char> {
    match change {
        Change::Added => Some('A'),
        Change::Replaced => Some('M'),
        Change::Left => Some(LEFT),
        Change::Adjusted => None,
    }
}

fn counted(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
