//! A layer that is still written, copied again and again: each copy holds what changed since the one before, and over that
//! one shows what the layer shows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tree;

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use proptest::prelude::*;
use regen::error::{Error, Kind};
use regen::pack::{LayerCopy, Passed, Upper};
use regen::sys::xattr::OverlayClass;
use tree::overlay::Overlay;
use tree::step::{self, Step};

/// After so long, a change shows in the times for sure.
const SURE: Duration = Duration::from_millis(120);

/// A layer over a base, and its copies over each other.
struct Series {
    home: tempfile::TempDir,
    copies: Vec<PathBuf>,
    known: Option<Vec<u8>>,
}

impl Series {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for name in ["layer", "base", "work"] {
            fs::create_dir(home.path().join(name)).unwrap();
        }
        Self { home, copies: Vec::new(), known: None }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.at("layer").join(name)
    }

    /// The next copy, begun.
    fn begin(&mut self) -> LayerCopy {
        let (layer, target) = (self.at("layer"), self.at(&format!("copy{}", self.copies.len())));
        fs::create_dir(&target).unwrap();
        self.copies.push(target.clone());
        match &self.known {
            None => LayerCopy::new(&layer, &target, OverlayClass::Trusted).unwrap(),
            Some(known) => LayerCopy::over(&layer, &target, OverlayClass::Trusted, known).unwrap(),
        }
    }

    fn end(&mut self, mut copy: LayerCopy) -> Passed {
        let passed = copy.pass(Upper::Still, &|_| Ok(())).unwrap();
        self.known = copy.known().unwrap();
        passed
    }

    /// The next copy, of a layer that stands still all the while.
    fn copy(&mut self) -> Passed {
        let copy = self.begin();
        self.end(copy)
    }

    /// All paths of the newest copy itself.
    fn newest(&self) -> Vec<String> {
        let paths = tree::read(self.copies.last().unwrap());
        paths.into_iter().map(|(path, node)| format!("{}{}", node.kind, path.display())).collect()
    }

    #[track_caller]
    fn assert_same(&self) {
        let base = self.at("base");
        let over = |tops: Vec<&Path>| Overlay::read_only(&tops.into_iter().chain([&*base]).collect::<Vec<_>>());
        let layer = over(vec![&self.at("layer")]);
        let copies = over(self.copies.iter().rev().map(AsRef::as_ref).collect());
        tree::assert_same(&tree::read(&layer.root()), &tree::read(&copies.root()));
    }
}

fn living(copy: &mut LayerCopy) -> Passed {
    let passed = copy.pass(Upper::Living, &|_| Ok(())).unwrap();
    copy.get_ready();
    passed
}

#[test]
fn only_what_changed_since_is_in_the_next_copy() {
    let mut series = Series::new();
    fs::create_dir_all(series.layer("d/deep")).unwrap();
    for n in 0..20 {
        fs::write(series.layer(&format!("d/deep/{n}")), vec![n; 5000]).unwrap();
    }
    symlink("x", series.layer("link")).unwrap();
    sleep(SURE);
    // What is copied of a still layer only counts as changed.
    let mut first = series.begin();
    living(&mut first);
    series.end(first);
    series.copy();
    assert_eq!(series.newest(), ["d"], "nothing changed");
    fs::write(series.layer("d/deep/3"), "new").unwrap();
    fs::remove_file(series.layer("d/deep/4")).unwrap();
    let mut second = series.begin();
    assert_eq!(living(&mut second).bytes, 3);
    series.end(second);
    assert_eq!(series.newest(), ["d", "dd", "dd/deep", "fd/deep/3", "wd/deep/4"]);
    series.assert_same();
    fs::remove_dir_all(series.layer("d")).unwrap();
    series.copy();
    assert_eq!(series.newest(), ["d", "wd"]);
    series.assert_same();
    fs::create_dir(series.layer("d")).unwrap();
    fs::write(series.layer("d/x"), "x").unwrap();
    series.copy();
    assert_eq!(series.newest(), ["d", "dd", "fd/x"]);
    series.assert_same();
}

#[test]
fn names_of_one_file_stay_so_also_if_only_their_directory_has_another_name() {
    let mut series = Series::new();
    for name in ["a", "b"] {
        fs::create_dir(series.layer(name)).unwrap();
    }
    fs::write(series.layer("a/f"), "one").unwrap();
    fs::hard_link(series.layer("a/f"), series.layer("b/f")).unwrap();
    sleep(SURE);
    let mut first = series.begin();
    living(&mut first);
    series.end(first);
    fs::rename(series.layer("b"), series.layer("c")).unwrap();
    series.copy();
    assert_eq!(series.newest(), ["d", "da", "fa/f", "wb", "dc", "fc/f"]);
    series.assert_same();
}

#[test]
fn a_write_through_a_mapping_after_a_copy_is_in_the_next_one() {
    let mut series = Series::new();
    let path = series.layer("mapped");
    fs::write(&path, vec![b'0'; 8192]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let write = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new shared mapping of two pages of a file that is that long; nothing else is replaced.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 8192, write, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(page, libc::MAP_FAILED);
    let place = page.cast::<u8>().wrapping_add(4100);
    // SAFETY: inside the mapping, which lives until the end of the test.
    let put = |byte: u8| unsafe { place.write_volatile(byte) };
    put(b'1');
    sleep(SURE);
    series.copy();
    // The times tell only if somebody has made the page clean meanwhile.
    put(b'2');
    series.copy();
    assert_eq!(fs::read(series.copies[1].join("mapped")).unwrap()[4100], b'2');
    // Copied while it lived, and then only once more.
    sleep(SURE);
    let mut third = series.begin();
    living(&mut third);
    put(b'3');
    series.end(third);
    assert_eq!(fs::read(series.copies[2].join("mapped")).unwrap()[4100], b'3');
    // SAFETY: the very mapping that was made above.
    assert_eq!(unsafe { libc::munmap(page, 8192) }, 0);
}

#[test]
fn what_a_layer_over_the_former_copy_cannot_say_is_refused() {
    for what in ["a deletion", "an opaque directory"] {
        let mut series = Series::new();
        fs::create_dir(series.layer("d")).unwrap();
        xattr::set(series.layer("d"), "trusted.overlay.opaque", b"y").unwrap();
        let (directory, whiteout) = (rustix::fs::CWD, rustix::fs::FileType::CharacterDevice);
        rustix::fs::mknodat(directory, series.layer("w"), whiteout, rustix::fs::Mode::empty(), 0).unwrap();
        series.copy();
        assert!(series.copies[0].join("w").symlink_metadata().unwrap().file_type().is_char_device());
        match what {
            "a deletion" => fs::remove_file(series.layer("w")).unwrap(),
            _ => xattr::remove(series.layer("d"), "trusted.overlay.opaque").unwrap(),
        }
        let mut next = series.begin();
        // While the layer lives, it may be a moment's confusion.
        let mut pass = |upper| next.pass(upper, &|_| Ok(()));
        let refused = pass(Upper::Living).and_then(|_| pass(Upper::Still));
        assert_eq!(refused.unwrap_err().kind(), Kind::Unsupported, "{what}");
    }
}

#[test]
fn what_regen_did_not_write_is_not_taken_for_what_is_known() {
    let mut series = Series::new();
    fs::write(series.layer("f"), "").unwrap();
    series.copy();
    let known = series.known.clone().unwrap();
    let target = series.at("other");
    fs::create_dir(&target).unwrap();
    let open = |known: &[u8]| -> Result<(), Error> {
        LayerCopy::over(&series.at("layer"), &target, OverlayClass::Trusted, known).map(drop)
    };
    open(&known).unwrap();
    for length in 0..known.len() {
        assert_eq!(open(&known[..length]).unwrap_err().kind(), Kind::Damaged, "{length}");
    }
    assert!(open(&[known, vec![0]].concat()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn copies_over_each_other_show_what_the_mounted_upper_showed(
        rounds in proptest::collection::vec((step::steps(), step::steps(), any::<bool>()), 2..5)
    ) {
        let mut series = Series::new();
        step::fill_base(&series.at("base"));
        // A program that mounts overlays itself may note things of its own here: those are dropped.
        let own = |steps: Vec<Step>| -> Vec<Step> {
            steps.into_iter().filter(|step| !matches!(step, Step::Opaque(_))).collect()
        };
        for (before, between, wait) in rounds {
            let (layer, work, base) = (series.at("layer"), series.at("work"), series.at("base"));
            let overlay = Overlay::writable(&layer, &work, &[&base], OverlayClass::Trusted);
            step::apply(&overlay.root(), &own(before));
            if wait {
                sleep(SURE);
            }
            let mut copy = series.begin();
            living(&mut copy);
            step::apply(&overlay.root(), &own(between));
            series.end(copy);
            drop(overlay);
            series.assert_same();
        }
    }
}
