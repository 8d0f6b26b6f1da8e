//! A ring that somebody else wrote: `ring.json`, or the index beside it. Every verb that changes a ring ends, with an
//! error or with a ring that can be read again, and nothing beside the store is touched.

#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use libfuzzer_sys::{Corpus, fuzz_target};
use regen::ids::RingName;
use regen::ring::keep::Keep;
use regen::ring::selector::Selector;
use regen::ring::{Limits, Pin, Revival, Ring, gc};
use regen::store::Store;

struct World {
    _directory: tempfile::TempDir,
    store: Store,
    home: PathBuf,
}

thread_local! {
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((which, text)) = data.split_first() else { return Corpus::Reject };
    WORLD.with(|world| {
        let world = world.get_or_init(World::new);
        let name: RingName = RingName { owner: "root".parse().unwrap(), name: "alice".parse().unwrap() };
        let ring = Ring::open_or_create(&world.store, &name, Limits { depth: 8, max_bytes: None }, Keep::default()).unwrap();
        let file = if which % 4 == 3 { "index.json" } else { "ring.json" };
        fs::write(ring.directory().join(file), text).unwrap();
        use_it(world, &ring);
        fs::remove_dir_all(&world.home).unwrap();
    });
    Corpus::Keep
});

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let home = store.rings().join("root/alice");
        Self { _directory: directory, store, home }
    }
}

/// What fails is told; what succeeds leaves a ring that can be read.
fn use_it(world: &World, ring: &Ring) {
    let Ok(state) = ring.read() else { return };
    let _ = (state.bytes(), state.sizes().len(), state.limits());
    for entry in &state.entries {
        let _ = (state.bytes_of(entry), state.base_directories(&entry.base));
    }
    for text in ["@latest", "@1", "@-1", "@-5m", "@base", "@2026-11-22T15:24:48Z"] {
        let selector: Selector = text[1..].parse().unwrap();
        let _ = (state.select_start(&selector), state.select_view(&selector));
    }
    let _ = ring.verify();
    if let Ok(mut locked) = ring.lock() {
        let _ = locked.pin(&Selector::Latest, Pin::Pinned);
        let _ = locked.rollback(&Selector::Back(1), Revival::Wanted);
        let _ = locked.would_evict(Some(1), None);
        let _ = locked.set_limits(Some(2), Some(Some(1000)));
        let _ = locked.repair_index();
        drop(locked);
        ring.read().expect("what was read, changed and written cannot be read again");
        let _ = ring.fold();
    }
    let _ = gc::collect(&world.store);
}
