//! What is written about the metrics is so: the table, the alerts, the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::World;
use crate::page::{Page, scrape, start};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

fn document() -> String {
    std::fs::read_to_string(docs().join("metrics.md")).unwrap()
}

/// The table: for each metric its type and its labels.
fn table() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = document();
    let rows = text.lines().filter(|line| line.starts_with("| `regen_"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(", ").filter(|label| !label.is_empty()).map(str::to_owned);
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels.collect()))
    })
    .collect()
}

/// The name of a family as the table has it: with the suffix of its only sample.
fn spelled(family: &Value) -> String {
    let name = family["name"].as_str().unwrap();
    match family["type"].as_str().unwrap() {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.to_owned(),
    }
}

/// The names of metrics in an expression, without what a histogram's samples have at their end.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let words = words.filter(|word| word.starts_with("regen_"));
    words
        .map(|word| {
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| word.strip_suffix(suffix));
            base.filter(|base| base.ends_with("_seconds")).unwrap_or(word).to_owned()
        })
        .collect()
}

#[test]
fn the_table_has_every_metric_of_the_page_and_no_other() {
    let world = World::new("metrics-table");
    let daemon = start(&world);
    let name = daemon.name("web");
    daemon.add(&name, "1.0.0", &[]);
    world.run_in("alice", "echo a > /a").success();
    let page = scrape(&daemon);
    let table = table();
    let told: BTreeSet<_> = page.0.iter().map(spelled).collect();
    assert_eq!(told, table.keys().cloned().collect(), "the page, and docs/metrics.md");
    let mut series: Vec<_> = page.samples().map(|(name, labels, _)| (name, labels)).collect();
    series.sort_unstable();
    let all = series.len();
    series.dedup();
    assert_eq!(series.len(), all, "a series is told twice");
    for family in &page.0 {
        let (kind, labels) = &table[&spelled(family)];
        assert_eq!(family["type"], **kind, "{family}");
        assert!(family["help"].as_str().unwrap().ends_with('.'), "{family}");
        let name = family["name"].as_str().unwrap();
        let unit = family["unit"].as_str().unwrap();
        let based = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")));
        assert_eq!(based.unwrap_or_default(), unit, "{name}: base units are at the end of names");
        for sample in family["samples"].as_array().unwrap() {
            let found = sample[1].as_object().unwrap().keys().filter(|label| *label != "le").cloned();
            assert_eq!(found.collect::<BTreeSet<_>>(), *labels, "{name}");
        }
    }
}

#[test]
fn the_parser_refuses_what_is_no_page() {
    for (text, what) in [
        ("regen_a 1\n", "no end"),
        ("# TYPE regen_a counter\nregen_a 1\n# EOF\n", "a counter without its suffix"),
        ("# TYPE regen_a gauge\n# UNIT regen_a seconds\n# EOF\n", "a unit that is not in the name"),
    ] {
        let words = Page::read(text).unwrap_err();
        assert!(words.contains("ValueError: "), "{what}: {words}");
    }
}

#[test]
fn alerts_name_metrics_that_there_are() {
    let text = document();
    let expressions: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert!(expressions.len() >= 10, "{expressions:?}");
    let table = table();
    for expression in expressions {
        for name in names(expression) {
            assert!(table.contains_key(&name), "{name} in {expression}");
        }
    }
}

#[test]
fn the_dashboard_shows_every_metric_and_none_that_there_is_not() {
    let text = std::fs::read_to_string(docs().join("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36 && dashboard["id"].is_null());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|variable| variable["type"] == "datasource" && variable["name"] == "datasource"));
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are not unique");
    let table = table();
    let mut shown = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", panel["title"]);
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            let open = |c| expression.matches(c).count();
            assert!(open('(') == open(')') && open('{') == open('}') && open('[') == open(']'), "{expression}");
            for name in names(expression) {
                let Some((kind, labels)) = table.get(&name) else { panic!("{name} in {expression}") };
                let rated = expression.contains("rate(") || expression.contains("increase(");
                assert!(rated == ["counter", "histogram"].contains(&kind.as_str()), "{expression} of a {kind}");
                for label in grouped(expression) {
                    let known = labels.contains(label) || ["le", "instance"].contains(&label);
                    assert!(known, "{name} has no label {label}: {expression}");
                }
                shown.insert(name);
            }
        }
    }
    assert_eq!(shown, table.keys().cloned().collect(), "what is shown, and what there is");
}

/// The labels by which an expression sums.
fn grouped(expression: &str) -> Vec<&str> {
    let lists = expression.split(" by (").skip(1).filter_map(|rest| rest.split(')').next());
    lists.flat_map(|list| list.split(", ")).collect()
}
