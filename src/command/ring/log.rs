//! `ring log`: the entries of a ring, newest first.

use std::io::IsTerminal;

use chrono::{DateTime, Local, Utc};

use super::graph::{BASE, Charset, Kind, Node, Paint, Screen, graph};
use super::view::{EntryView, size};
use super::{print, ring};
use crate::cli::look::Log;
use crate::command::World;
use crate::command::table::{local, table};
use crate::error::Result;
use crate::ring::entry::{Entry, Reason};
use crate::ring::state::RingState;

pub(super) fn run(world: &World, arguments: &Log) -> Result<()> {
    let state = ring(world, &arguments.ring)?.read()?;
    let views: Vec<_> = state.entries.iter().rev().map(|entry| EntryView::new(&state, entry)).collect();
    print(arguments.output, &views, || {
        if arguments.graph {
            return graph(&nodes(&state, &views), screen());
        }
        let head = ["ENTRY", "CREATED", "REASON", "EXIT", "STATE", "ADDED", "TOTAL", ""].map(str::to_owned);
        let rows = state.entries.iter().rev().zip(&views).map(|(entry, view)| {
            [
                format!("@{}", view.seq),
                local(entry.created),
                view.reason.to_string(),
                view.exit_code.map_or_else(|| "-".into(), |code| code.to_string()),
                view.state.name().into(),
                size(view.added_bytes),
                size(view.total_bytes),
                view.notes(),
            ]
        });
        table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    })
}

/// What is drawn, newest first; the bare base, if anything started from it or will.
fn nodes(state: &RingState, views: &[EntryView]) -> Vec<Node> {
    let entries = state.entries.iter().rev().zip(views);
    let mut nodes: Vec<_> = entries.map(|(entry, view)| node(state, entry, view)).collect();
    if state.next.is_none() || nodes.iter().any(|node| node.parent == Some(BASE)) {
        let notes = if state.next.is_none() { "next" } else { "" };
        nodes.push(Node {
            seq: BASE,
            parent: None,
            kind: Kind::Base,
            name: "base".into(),
            text: String::new(),
            notes: notes.into(),
        });
    }
    nodes
}

fn node(state: &RingState, entry: &Entry, view: &EntryView) -> Node {
    let gone = entry.parent.filter(|parent| state.entry(*parent).is_none());
    let notes = [view.notes(), gone.map(|parent| format!("from @{parent}, which is gone")).unwrap_or_default()];
    let end = view.exit_code.map(|code| format!(" {code}")).unwrap_or_default();
    let added =
        view.added_bytes.map_or_else(|| view.state.name().to_owned(), |bytes| format!("+{}", size(Some(bytes))));
    Node {
        seq: entry.seq,
        // What came from another ring stands on more than the base.
        parent: match entry.reason {
            Reason::Fork | Reason::Import => entry.parent,
            Reason::Exit | Reason::Snapshot | Reason::Recovered | Reason::Rollback => entry.parent.or(Some(BASE)),
        },
        kind: if entry.side { Kind::Side } else { Kind::Main },
        name: format!("@{}", entry.seq),
        text: format!("{}  {}{end}  {added}", moment(entry.created), entry.reason),
        notes: notes.into_iter().filter(|note| !note.is_empty()).collect::<Vec<_>>().join(", "),
    }
}

fn moment(time: DateTime<Utc>) -> String {
    time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// What standard output can show.
fn screen() -> Screen {
    let stdout = std::io::stdout();
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| variable(name)).unwrap_or_default();
    let charset = if is_utf8(&locale) { Charset::Unicode } else { Charset::Ascii };
    if !stdout.is_terminal() {
        return Screen { width: None, charset, paint: Paint::Plain };
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
    let plain = variable("NO_COLOR").is_some() || variable("TERM").is_none_or(|term| term == "dumb");
    let paint = if plain { Paint::Plain } else { Paint::Coloured };
    Screen { width: size.filter(|width| *width > 0), charset, paint }
}

fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_locale_that_says_utf_8_gets_more_than_ascii() {
        assert!(is_utf8("C.UTF-8") && is_utf8("de_DE.utf8"));
        assert!(!is_utf8("") && !is_utf8("C") && !is_utf8("POSIX") && !is_utf8("de_DE"));
    }
}
