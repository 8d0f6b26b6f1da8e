//! What is typed or annotated: names, selectors, sizes, references, signals, the configuration file. What is accepted
//! means the same when it is written down and read again.

#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use regen::config::{self, Config, human_bytes, parse_bytes};
use regen::ids::{ContainerId, Digest, LayerId, Name, RingName};
use regen::image::ImageSource;
use regen::ops::request::{RingRequest, parse_annotations, parse_depth, parse_max_bytes};
use regen::ring::selector::{Selector, Target};
use regen::sys::signal::Signal;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let caller: Name = "root".parse().unwrap();
    if let Ok(selector) = text.parse::<Selector>() {
        // It is shown as it is typed, with the sign before it.
        let shown = selector.to_string();
        let again: Selector = shown.trim_start_matches('@').parse().unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(again, selector, "{shown}");
    }
    if let Ok(target) = Target::parse(text, &caller) {
        let _ = target.named();
    }
    if let Ok(name) = RingName::parse(text, &caller) {
        assert_eq!(RingName::parse(&name.to_string(), &caller).unwrap(), name);
        // A name becomes a directory.
        for part in [name.owner.as_str(), name.name.as_str()] {
            assert!(!part.contains('/') && !part.starts_with('.') && !part.is_empty());
        }
    }
    if let Ok(id) = text.parse::<ContainerId>() {
        assert!(!id.as_str().contains('/') && id.as_str() != "." && id.as_str() != "..");
    }
    for accepted in [text.parse::<Digest>().map(|d| d.to_string()), text.parse::<LayerId>().map(|l| l.to_string())] {
        if let Ok(shown) = accepted {
            assert_eq!(shown, text);
        }
    }
    if let Ok(bytes) = parse_bytes(text) {
        let _ = human_bytes(bytes);
    }
    let _ = (text.parse::<ImageSource>(), text.parse::<Signal>(), parse_depth(text), parse_max_bytes(text));
    let _ = (Config::parse(text), RingRequest::parse(text, &caller));
    annotations(text, &caller);
});

/// Lines of key and value.
fn annotations(text: &str, caller: &Name) {
    let pairs: HashMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (format!("run.regen.{key}"), value.to_owned()))
        .chain(text.lines().filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    let _ = parse_annotations(&pairs, caller, &config::Ring::default());
}
