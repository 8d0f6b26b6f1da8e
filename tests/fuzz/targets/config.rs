//! A bundle's `config.json`, from bytes to everything that is decided before a process exists.

#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::{Component, Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;
use regen::bundle::process::{Wishes, plan as plan_process};
use regen::bundle::{Bundle, parse, parse_process};
use regen::cgroup::{self, Manager, Request};
use regen::ops::request::parse_annotations;
use regen::program::{self, Given, Kernel, Role, UserNamespace};
use regen::rootfs::{self, Around, Pivot};

thread_local! {
    static BUNDLE: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fuzz_target!(|data: &[u8]| {
    if let Ok(process) = parse_process(data) {
        let _ = regen::bundle::process::complete(process);
    }
    if parse(data).is_err() {
        return;
    }
    BUNDLE.with(|bundle| {
        let directory = bundle.get_or_init(|| {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("rootfs")).unwrap();
            directory
        });
        fs::write(directory.path().join("config.json"), data).unwrap();
        if let Ok(bundle) = Bundle::load(directory.path()) {
            decide(bundle);
        }
    });
});

fn decide(bundle: Bundle) {
    let id = "box1".parse().unwrap();
    let caller = "root".parse().unwrap();
    if let Some(annotations) = bundle.spec.annotations() {
        let _ = parse_annotations(annotations, &caller, &regen::config::Ring::default());
    }
    let wishes = Wishes { args: vec!["ls".to_owned()], capabilities: vec!["KILL".to_owned()], ..Wishes::default() };
    let _ = plan_process(&bundle.spec, &wishes);
    // What engines write is read by others too.
    let text = serde_json::to_vec(&bundle.spec).unwrap();
    parse(&text).expect("what was read and written can be read");
    let path = bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    for manager in [Manager::Cgroupfs, Manager::Systemd, Manager::Disabled] {
        let placed = cgroup::plan(Request { id: &id, path: path.as_deref(), manager });
        for directory in placed.iter().flat_map(|cgroup| &cgroup.directories) {
            assert!(!directory.path.components().any(|part| part == Component::ParentDir), "{directory:?}");
        }
    }
    plan(&bundle.spec, &bundle.directory);
}

/// What the child would do.
fn plan(spec: &Spec, bundle: &Path) {
    let rootfs: PathBuf = bundle.join("rootfs");
    let around = Around { bundle, rootfs: &rootfs, cgroups: &[], pivot: Pivot::Pivot };
    let _ = rootfs::plan(spec, &around);
    if let Some(process) = spec.process()
        && let Ok(kernel) = Kernel::observe(process, UserNamespace::Own)
    {
        let _ = program::plan(process, spec.linux().as_ref(), Role::Init, &kernel, Given::default());
        let exec = Role::Exec { container: process };
        let _ = program::plan(process, spec.linux().as_ref(), exec, &kernel, Given::default());
    }
}
