//! A layer that is still written, copied: whatever happens to it meanwhile, after the last pass both are the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tree;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use proptest::prelude::*;
use regen::error::{Error, Kind};
use regen::pack::{LayerCopy, Passed, Upper};
use regen::sys::xattr::OverlayClass;
use tree::disk::Disk;
use tree::overlay::Overlay;
use tree::step::{self, Step};

/// After so long, a change shows in the times for sure.
const SURE: Duration = Duration::from_millis(120);

/// A layer and its copy, side by side.
struct Pair {
    home: tempfile::TempDir,
    copy: LayerCopy,
}

impl Pair {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(home: tempfile::TempDir) -> Self {
        let (layer, target) = (home.path().join("layer"), home.path().join("target"));
        fs::create_dir(&layer).unwrap();
        fs::create_dir(&target).unwrap();
        let copy = LayerCopy::new(&layer, &target, OverlayClass::Trusted).unwrap();
        Self { home, copy }
    }

    fn layer(&self) -> PathBuf {
        self.home.path().join("layer")
    }

    fn target(&self) -> PathBuf {
        self.home.path().join("target")
    }

    fn pass(&mut self, upper: Upper) -> Passed {
        self.copy.pass(upper, &|_| Ok(())).unwrap()
    }

    #[track_caller]
    fn assert_same(&self) {
        tree::assert_same(&tree::read(&self.layer()), &tree::read(&self.target()));
    }
}

fn fill(layer: &Path) {
    fs::create_dir_all(layer.join("dir/deep")).unwrap();
    for n in 0..20 {
        fs::write(layer.join(format!("dir/deep/{n}")), vec![n; 5000]).unwrap();
    }
    fs::hard_link(layer.join("dir/deep/7"), layer.join("another name")).unwrap();
    symlink("nowhere", layer.join("link")).unwrap();
}

#[test]
fn what_did_not_change_is_not_copied_again() {
    let mut pair = Pair::new();
    fill(&pair.layer());
    sleep(SURE);
    let first = pair.pass(Upper::Living);
    assert_eq!((first.names, first.changed), (24, 25));
    assert_eq!(pair.pass(Upper::Living), Passed { names: 24, ..Passed::default() });
    fs::write(pair.layer().join("dir/deep/3"), "new").unwrap();
    fs::remove_file(pair.layer().join("dir/deep/4")).unwrap();
    let second = pair.pass(Upper::Still);
    // The file, its directory, and what went.
    assert_eq!((second.names, second.changed), (24, 3));
    assert_eq!(second.bytes, 3);
    pair.assert_same();
}

#[test]
fn what_changed_just_now_is_copied_again_for_its_next_change_may_show_the_same_time() {
    let mut pair = Pair::new();
    fs::write(pair.layer().join("f"), "one").unwrap();
    pair.pass(Upper::Living);
    assert_eq!(pair.pass(Upper::Still).bytes, 3);
}

#[test]
fn a_write_through_a_mapping_of_a_page_that_is_dirty_already_is_seen() {
    let mut pair = Pair::new();
    let path = pair.layer().join("mapped");
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
    // It shows that this is what hides: the times stay.
    let times = || path.metadata().map(|found| (found.mtime(), found.mtime_nsec(), found.ctime_nsec())).unwrap();
    let before = times();
    put(b'2');
    assert_eq!(times(), before);
    pair.pass(Upper::Living);
    put(b'3');
    pair.pass(Upper::Still);
    assert_eq!(fs::read(pair.target().join("mapped")).unwrap()[4100], b'3');
    // SAFETY: the very mapping that was made above.
    assert_eq!(unsafe { libc::munmap(page, 8192) }, 0);
}

#[test]
fn where_writes_through_mappings_do_not_show_a_living_layer_is_not_copied() {
    let mut pair = Pair::at(tempfile::tempdir_in("/dev/shm").unwrap());
    fill(&pair.layer());
    assert_eq!(pair.pass(Upper::Living), Passed::default());
    assert_eq!(pair.pass(Upper::Still).changed, 25);
    pair.assert_same();
}

#[test]
fn names_of_one_file_stay_names_of_one_file_whichever_changes() {
    let mut pair = Pair::new();
    let at = |pair: &Pair, name: &str| pair.layer().join(name);
    fs::write(at(&pair, "b"), "one").unwrap();
    fs::hard_link(at(&pair, "b"), at(&pair, "c")).unwrap();
    fs::write(at(&pair, "other"), "x").unwrap();
    sleep(SURE);
    pair.pass(Upper::Living);
    pair.assert_same();
    // A new first name, one that leaves, one that is written through another.
    fs::hard_link(at(&pair, "b"), at(&pair, "a")).unwrap();
    pair.pass(Upper::Living);
    pair.assert_same();
    sleep(SURE);
    pair.pass(Upper::Living);
    fs::write(at(&pair, "c"), "two").unwrap();
    fs::remove_file(at(&pair, "b")).unwrap();
    fs::hard_link(at(&pair, "other"), at(&pair, "b")).unwrap();
    pair.pass(Upper::Still);
    pair.assert_same();
}

#[test]
fn one_kind_of_file_takes_the_place_of_another() {
    let mut pair = Pair::new();
    let layer = pair.layer();
    let make = |script: &str| {
        let made = Command::new("sh").args(["-ec", script]).current_dir(&layer).status().unwrap();
        assert!(made.success(), "{script}");
    };
    make("mkdir a d; echo x > a/x; echo b > b; mkfifo c; mknod w c 0 0; ln -s b l; setfattr -n user.k -v 1 d");
    pair.pass(Upper::Living);
    make(
        "rm -r a b c w l; echo a > a; mkdir b; echo y > b/y; mknod c c 0 0; mkdir w; mknod l c 1 3; setfattr -x user.k d",
    );
    drop(UnixListener::bind(layer.join("d/socket")).unwrap());
    pair.pass(Upper::Living);
    pair.assert_same();
    make("rm -r d; mknod d c 0 0; rm a; ln -s nowhere a");
    pair.pass(Upper::Still);
    pair.assert_same();
}

#[test]
fn a_directory_that_takes_the_number_of_an_opaque_one_is_not_opaque() {
    let mut pair = Pair::new();
    let path = pair.layer().join("d");
    let make = || {
        fs::create_dir(&path).unwrap();
        path.metadata().unwrap().ino()
    };
    // ext4 gives a number that became free to the next one, unless somebody else was quicker.
    for _ in 0..100 {
        let first = make();
        xattr::set(&path, "trusted.overlay.opaque", b"y").unwrap();
        pair.pass(Upper::Living);
        fs::remove_dir(&path).unwrap();
        let second = make();
        pair.pass(Upper::Still);
        pair.assert_same();
        if first == second {
            return;
        }
        fs::remove_dir(&path).unwrap();
    }
    panic!("no number came again");
}

#[test]
fn a_copy_that_finds_no_room_ends() {
    let mut pair = Pair::new();
    fs::write(pair.layer().join("big"), vec![1; 40 << 20]).unwrap();
    let room = |bytes: u64| Err(Error::new(Kind::NoSpace, "look", format!("{bytes}")));
    let error = pair.copy.pass(Upper::Living, &room).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().starts_with("copy 'big': look: "), "{error}");
}

#[test]
fn a_file_that_its_layer_does_not_hold_is_refused() {
    let mut pair = Pair::new();
    fs::write(pair.layer().join("f"), "").unwrap();
    xattr::set(pair.layer().join("f"), "trusted.overlay.metacopy", b"").unwrap();
    assert_eq!(pair.copy.pass(Upper::Still, &|_| Ok(())).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn holes_stay_holes() {
    let mut pair = Pair::new();
    let file = File::create(pair.layer().join("sparse")).unwrap();
    file.write_all_at(b"middle", 1 << 39).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(pair.pass(Upper::Living).bytes < 1 << 20);
    pair.assert_same();
}

/// Whatever others do to the layer while it is copied, at the end it is what it is.
#[test]
fn a_layer_that_changes_under_the_copy_is_the_same_once_it_stands_still() {
    for seed in 0..6 {
        let mut pair = Pair::new();
        let (layer, over) = (pair.layer(), AtomicBool::new(false));
        fill(&layer);
        scope(|threads| {
            for thread in 0..2 {
                let (layer, over) = (&layer, &over);
                threads.spawn(move || churn(layer, seed * 2 + thread, over));
            }
            let passes: Vec<_> = (0..15).map(|_| pair.copy.pass(Upper::Living, &|_| Ok(()))).collect();
            over.store(true, Ordering::Relaxed);
            passes.into_iter().for_each(|passed| assert!(passed.unwrap().names > 0));
        });
        pair.pass(Upper::Still);
        pair.assert_same();
    }
}

/// Changes a directory at random until it is over.
fn churn(layer: &Path, seed: u64, over: &AtomicBool) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    while !over.load(Ordering::Relaxed) {
        let depth = next(3);
        let mut path = layer.to_owned();
        (0..=depth).for_each(|_| path.push(format!("n{}", next(5))));
        let other = layer.join(format!("n{}", next(5))).join(format!("n{}", next(5)));
        // Most of it fails, for what it is about is not there, or something else.
        let _ = match next(8) {
            0 | 1 => fs::write(&path, vec![0; usize::try_from(next(9000)).unwrap()]),
            2 => fs::create_dir_all(&path),
            3 => fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)),
            4 => fs::rename(&path, &other),
            5 => fs::hard_link(&path, &other),
            6 => symlink("x", &path),
            _ => xattr::set(&path, "user.n", &[u8::try_from(next(200)).unwrap()]),
        };
    }
}

#[test]
fn files_share_their_blocks_where_the_file_system_can() {
    for disk in Disk::all() {
        let mut pair = Pair::at(tempfile::tempdir_in(&disk.point).unwrap());
        fs::write(pair.layer().join("big"), vec![7; 20 << 20]).unwrap();
        let passed = pair.pass(Upper::Living);
        assert_eq!((passed.changed, passed.bytes), (2, 0));
        fs::write(pair.layer().join("small"), "x").unwrap();
        assert_eq!(pair.pass(Upper::Still).bytes, 0);
        pair.assert_same();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_programs_do_between_two_passes_is_in_the_copy(
        before in step::steps(), between in step::steps(), wait in any::<bool>(), ready in any::<bool>()
    ) {
        let mut pair = Pair::new();
        step::apply(&pair.layer(), &before);
        if wait {
            sleep(SURE);
        }
        pair.pass(Upper::Living);
        if ready {
            pair.copy.get_ready();
        }
        step::apply(&pair.layer(), &between);
        pair.pass(Upper::Still);
        pair.assert_same();
    }

    #[test]
    fn the_copy_of_a_mounted_upper_shows_what_the_upper_showed(
        before in step::steps(), between in step::steps(), wait in any::<bool>(), ready in any::<bool>()
    ) {
        let mut pair = Pair::new();
        let (base, work) = (tempfile::tempdir().unwrap(), pair.home.path().join("work"));
        step::fill_base(base.path());
        fs::create_dir(&work).unwrap();
        let overlay = Overlay::writable(&pair.layer(), &work, &[base.path()], OverlayClass::Trusted);
        // A program that mounts overlays itself may note things of its own here: those are dropped.
        let own = |steps: Vec<Step>| -> Vec<Step> {
            steps.into_iter().filter(|step| !matches!(step, Step::Opaque(_))).collect()
        };
        step::apply(&overlay.root(), &own(before));
        if wait {
            sleep(SURE);
        }
        pair.pass(Upper::Living);
        if ready {
            pair.copy.get_ready();
        }
        step::apply(&overlay.root(), &own(between));
        pair.pass(Upper::Still);
        drop(overlay);
        // The upper's own, and what it shows.
        pair.assert_same();
        let [upper, copy] = [pair.layer(), pair.target()];
        let (first, second) = (Overlay::read_only(&[&upper, base.path()]), Overlay::read_only(&[&copy, base.path()]));
        tree::assert_same(&tree::read(&first.root()), &tree::read(&second.root()));
    }
}
