//! The entries of a ring as lines that show which came of which: pure, from nodes and a width to text.

use std::collections::HashSet;

/// Something that a run can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// What its parent is called by others; [`BASE`] for the bare base.
    pub(super) seq: u64,
    /// Where its run started, if that is to be drawn.
    pub(super) parent: Option<u64>,
    pub(super) kind: Kind,
    /// What it is called here.
    pub(super) name: String,
    /// When, why, how large.
    pub(super) text: String,
    pub(super) notes: String,
}

/// The number of the bare base: entries are counted from 1.
pub(super) const BASE: u64 = 0;

/// How a node is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An entry of the main line.
    Main,
    /// One beside it.
    Side,
    /// No saved state.
    Base,
}

/// Which characters there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    Unicode,
    Ascii,
}

/// Whether there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Coloured,
}

/// Where it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Screen {
    /// Characters in a line; a longer one is cut.
    pub(super) width: Option<usize>,
    pub(super) charset: Charset,
    pub(super) paint: Paint,
}

/// A stretch of a line in one colour.
type Span = (&'static str, String);

const PLAIN: &str = "";
const LINES: &str = "\x1b[2m";
const NAME: &str = "\x1b[33m";
const NOTES: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// One line for each node, newest first as they are given, and those that join what started from the same one.
pub(super) fn graph(nodes: &[Node], screen: Screen) -> String {
    let there: HashSet<u64> = nodes.iter().map(|node| node.seq).collect();
    let glyphs = Glyphs::of(screen.charset);
    // Each lane is a line down to the node of this number.
    let mut lanes: Vec<Option<u64>> = Vec::new();
    let mut text = String::new();
    for node in nodes {
        let waiting: Vec<usize> = (0..lanes.len()).filter(|lane| lanes[*lane] == Some(node.seq)).collect();
        // Nothing comes of it, and its parent is waited for: a lane of its own would say no more. Snapshots of one run are many.
        let beside = lanes.iter().position(|waits| waits.is_some() && *waits == node.parent);
        if let (true, Some(from)) = (waiting.is_empty(), beside) {
            text.push_str(&line(&describe(node, (branch(&lanes, from, &glyphs), String::new()), &glyphs), screen));
            continue;
        }
        let lane = waiting.first().copied().or_else(|| lanes.iter().position(Option::is_none));
        let lane = lane.unwrap_or(lanes.len());
        if lane == lanes.len() {
            lanes.push(None);
        }
        if let [_, others @ ..] = &waiting[..]
            && !others.is_empty()
        {
            text.push_str(&line(&[(LINES, join(&lanes, lane, others, &glyphs))], screen));
            others.iter().for_each(|other| lanes[*other] = None);
            while lanes.len() > lane + 1 && lanes.last() == Some(&None) {
                lanes.pop();
            }
        }
        text.push_str(&line(&describe(node, around(&lanes, lane, &glyphs), &glyphs), screen));
        lanes[lane] = node.parent.filter(|parent| there.contains(parent));
        while lanes.last() == Some(&None) {
            lanes.pop();
        }
    }
    text
}

struct Glyphs {
    main: &'static str,
    side: &'static str,
    base: &'static str,
    down: &'static str,
    across: &'static str,
    crossing: &'static str,
    from_right: &'static str,
    corner: &'static str,
    corner_between: &'static str,
    cut: &'static str,
}

impl Glyphs {
    fn of(charset: Charset) -> Self {
        match charset {
            Charset::Unicode => Self {
                main: "●",
                side: "○",
                base: "◌",
                down: "│",
                across: "─",
                crossing: "┼",
                from_right: "├",
                corner: "╯",
                corner_between: "┴",
                cut: "…",
            },
            Charset::Ascii => Self {
                main: "*",
                side: "o",
                base: ".",
                down: "|",
                across: "-",
                crossing: "+",
                from_right: "+",
                corner: "'",
                corner_between: "'",
                cut: ">",
            },
        }
    }

    fn of_kind(&self, kind: Kind) -> &'static str {
        match kind {
            Kind::Main => self.main,
            Kind::Side => self.side,
            Kind::Base => self.base,
        }
    }
}

/// The lanes `others` end in `lane`.
fn join(lanes: &[Option<u64>], lane: usize, others: &[usize], glyphs: &Glyphs) -> String {
    let last = others.last().copied().unwrap_or(lane);
    let mut text = String::new();
    for (index, waits) in lanes.iter().enumerate() {
        let between = index > lane && index <= last;
        if index > 0 {
            text.push_str(if between { glyphs.across } else { " " });
        }
        text.push_str(match waits {
            _ if index == lane => glyphs.from_right,
            _ if index == last => glyphs.corner,
            _ if others.contains(&index) => glyphs.corner_between,
            Some(_) if between => glyphs.crossing,
            None if between => glyphs.across,
            Some(_) => glyphs.down,
            None => " ",
        });
    }
    text
}

/// A way from the lane `from` across the others to a node at their right.
fn branch(lanes: &[Option<u64>], from: usize, glyphs: &Glyphs) -> String {
    let draw = |(index, waits): (usize, &Option<u64>)| match waits {
        _ if index == from => [glyphs.from_right, glyphs.across],
        Some(_) if index < from => [glyphs.down, " "],
        None if index < from => [" ", " "],
        Some(_) => [glyphs.crossing, glyphs.across],
        None => [glyphs.across, glyphs.across],
    };
    lanes.iter().enumerate().flat_map(draw).collect()
}

/// The lanes at the left and at the right of a node in one of them.
fn around(lanes: &[Option<u64>], lane: usize, glyphs: &Glyphs) -> (String, String) {
    let draw = |range: std::ops::Range<usize>| -> String {
        range.map(|index| format!("{} ", if lanes[index].is_some() { glyphs.down } else { " " })).collect()
    };
    (draw(0..lane), draw(lane + 1..lanes.len()))
}

fn describe(node: &Node, (left, right): (String, String), glyphs: &Glyphs) -> Vec<Span> {
    let mut spans = vec![
        (LINES, left),
        (PLAIN, format!("{} ", glyphs.of_kind(node.kind))),
        (LINES, right),
        (PLAIN, " ".to_owned()),
        (NAME, node.name.clone()),
    ];
    if !node.text.is_empty() {
        spans.push((PLAIN, format!("  {}", node.text)));
    }
    if !node.notes.is_empty() {
        spans.push((PLAIN, "  ".to_owned()));
        spans.push((NOTES, format!("({})", node.notes)));
    }
    spans
}

/// A line that fits: what is too long is cut, never broken. Every character here is one column wide.
fn line(spans: &[Span], screen: Screen) -> String {
    let length: usize = spans.iter().map(|(_, text)| text.chars().count()).sum();
    let width = screen.width.unwrap_or(usize::MAX);
    // As many as fit, the last of which says that there is more.
    let mut room = if length > width { width.saturating_sub(1) } else { length };
    let mut text = String::new();
    for (colour, span) in spans {
        let part: String = span.chars().take(room).collect();
        room -= part.chars().count();
        if part.is_empty() || screen.paint == Paint::Plain || colour.is_empty() {
            text.push_str(&part);
        } else {
            text.push_str(&format!("{colour}{part}{RESET}"));
        }
    }
    if length > width && width > 0 {
        text.push_str(Glyphs::of(screen.charset).cut);
    }
    format!("{}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Screen = Screen { width: None, charset: Charset::Unicode, paint: Paint::Plain };

    fn node(seq: u64, parent: Option<u64>) -> Node {
        let kind = if seq == BASE { Kind::Base } else { Kind::Main };
        let name = if seq == BASE { "base".to_owned() } else { format!("@{seq}") };
        Node { seq, parent, kind, name, text: String::new(), notes: String::new() }
    }

    fn drawn(nodes: &[(u64, Option<u64>)], screen: Screen) -> Vec<String> {
        let nodes: Vec<_> = nodes.iter().map(|(seq, parent)| node(*seq, *parent)).collect();
        graph(&nodes, screen).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_of_entries_is_one_line() {
        assert_eq!(
            drawn(&[(3, Some(2)), (2, Some(1)), (1, Some(0)), (0, None)], TEXT),
            ["●  @3", "●  @2", "●  @1", "◌  base"]
        );
    }

    #[test]
    fn a_rollback_is_a_branch_that_ends_where_it_started() {
        let ring = [(5, Some(4)), (4, Some(1)), (3, Some(2)), (2, Some(1)), (1, None)];
        assert_eq!(drawn(&ring, TEXT), ["●  @5", "●  @4", "│ ●  @3", "│ ●  @2", "├─╯", "●  @1"]);
        let ascii = Screen { charset: Charset::Ascii, ..TEXT };
        assert_eq!(drawn(&ring, ascii), ["*  @5", "*  @4", "| *  @3", "| *  @2", "+-'", "*  @1"]);
    }

    #[test]
    fn several_branches_join_and_cross_what_goes_on() {
        let ring = [(6, Some(1)), (5, Some(2)), (4, Some(1)), (3, Some(1)), (2, Some(1)), (1, None)];
        let lines = ["●  @6", "│ ●  @5", "├─┼─●  @4", "├─┼─●  @3", "│ ●  @2", "├─╯", "●  @1"];
        assert_eq!(drawn(&ring, TEXT), lines);
        let ring = [(7, Some(5)), (6, Some(4)), (5, Some(1)), (4, Some(2)), (3, Some(1)), (2, Some(1)), (1, None)];
        let lines = ["●  @7", "│ ●  @6", "● │  @5", "│ ●  @4", "├─┼─●  @3", "│ ●  @2", "├─╯", "●  @1"];
        assert_eq!(drawn(&ring, TEXT), lines);
        let ring = [(6, Some(3)), (5, Some(4)), (4, Some(1)), (3, Some(1)), (2, Some(1)), (1, None)];
        let ascii = Screen { charset: Charset::Ascii, ..TEXT };
        let joined = [(8, 5), (7, 2), (6, 3), (5, 1), (3, 1), (1, 0), (2, 0)].map(|(seq, parent)| (seq, Some(parent)));
        assert_eq!(drawn(&joined, TEXT)[5], "├─┼─╯");
        assert_eq!(drawn(&ring, ascii), ["*  @6", "| *  @5", "| *  @4", "* |  @3", "+-+-*  @2", "+-'", "*  @1"]);
    }

    #[test]
    fn the_snapshots_of_a_run_need_no_lane_each() {
        let ring = [(5, Some(1)), (4, Some(1)), (3, Some(1)), (2, Some(1)), (1, Some(0)), (0, None)];
        assert_eq!(drawn(&ring, TEXT), ["●  @5", "├─●  @4", "├─●  @3", "├─●  @2", "●  @1", "◌  base"]);
    }

    #[test]
    fn a_line_whose_start_was_evicted_ends_and_its_place_is_used_again() {
        let ring = [(9, Some(8)), (8, Some(3)), (7, Some(6)), (6, Some(2))];
        assert_eq!(drawn(&ring, TEXT), ["●  @9", "●  @8", "●  @7", "●  @6"]);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        let mut long = node(1, None);
        (long.text, long.notes) = ("2026-11-22 18:26:01  exit 3  +4.2 KiB".into(), "next, pinned".into());
        let at = |width| Screen { width: Some(width), ..TEXT };
        let whole = "●  @1  2026-11-22 18:26:01  exit 3  +4.2 KiB  (next, pinned)\n";
        assert_eq!(graph(std::slice::from_ref(&long), at(60)), whole);
        assert_eq!(graph(std::slice::from_ref(&long), at(12)), "●  @1  2026…\n");
        assert_eq!(graph(&[long], at(0)), "\n");
    }

    #[test]
    fn colours_do_not_count_and_are_there_only_if_wanted() {
        let mut noted = node(1, None);
        noted.notes = "next".into();
        let screen = Screen { width: Some(13), paint: Paint::Coloured, ..TEXT };
        let text = graph(std::slice::from_ref(&noted), screen);
        assert_eq!(text, "●  \x1b[33m@1\x1b[0m  \x1b[32m(next)\x1b[0m\n");
        assert!(!graph(&[noted], TEXT).contains('\x1b'));
    }
}
