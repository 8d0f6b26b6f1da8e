//! Bundles: `config.json` read and checked, and what is made of it.
//!
//! ```text
//! load        DIR/config.json  ──parse, validate──>  Bundle { directory, spec }
//! process     exec's wishes    ──pure────────────>   a process of its own for a running container
//! bind        a spec           ──pure────────────>   the same with something of the host's in it
//! volume      a spec           ──pure────────────>   where its bind mounts come from
//! template    nothing          ──pure────────────>   the spec of `spec`, and of runs without a bundle
//! ```
//!
//! Only [`Bundle::load`] reads a file; everything else is a function from values to values.

pub mod bind;
pub mod process;
pub mod template;
mod validate;
pub mod volume;

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::error::{Context, Error, Kind, Result, quote};
use crate::sys::fs::read_capped;

/// The file that makes a directory a bundle.
pub const CONFIG: &str = "config.json";

/// The largest config.json that is read: what engines write is some ten kilobytes.
const CONFIG_CAP: u64 = 16 << 20;

/// A bundle that was read and makes sense so far.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its directory, absolute, without symlinks.
    pub directory: PathBuf,
    /// What its config.json says, unchanged.
    pub spec: Spec,
}

impl Bundle {
    /// Reads and checks the bundle in a directory, and that its root file system is a directory.
    ///
    /// # Errors
    /// [`Kind::Invalid`] or [`Kind::NotFound`], naming what is wrong with which file.
    pub fn load(directory: &Path) -> Result<Self> {
        let operation = || format!("open bundle {}", quote(directory));
        let canonical = fs::canonicalize(directory).context(operation)?;
        if !canonical.is_dir() {
            return Err(Error::new(Kind::Invalid, operation(), "it is not a directory"));
        }
        let path = canonical.join(CONFIG);
        let bytes = read_capped(&path, CONFIG_CAP).context(operation)?;
        let spec = parse(&bytes).context(|| format!("read {}", quote(&path)))?;
        validate::check(&spec).context(|| format!("check {}", quote(&path)))?;
        let bundle = Self { directory: canonical, spec };
        let rootfs = bundle.rootfs();
        match fs::metadata(&rootfs) {
            Ok(metadata) if metadata.is_dir() => Ok(bundle),
            Ok(_) => {
                let cause = format!("root.path {} is not a directory", quote(&rootfs));
                Err(Error::new(Kind::Invalid, operation(), cause))
            }
            Err(error) => Err(error).context(|| format!("open root.path {}", quote(&rootfs))).context(operation),
        }
    }

    /// The absolute path of the root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        let path = self.spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path().as_path());
        self.directory.join(path)
    }
}

/// Reads a specification. Capabilities that are newer than this build are left out with a warning, as the
/// specification of the format asks.
///
/// # Errors
/// [`Kind::Invalid`] with line and column.
pub fn parse(json: &[u8]) -> Result<Spec> {
    let operation = || "parse JSON";
    match serde_json::from_slice(json) {
        Ok(spec) => Ok(spec),
        Err(first) => {
            let mut value: serde_json::Value = serde_json::from_slice(json).context(operation)?;
            if !value
                .get_mut("process")
                .is_some_and(|process| drop_unknown_capabilities(process) | rename_flags(process))
            {
                return Err(first).context(operation);
            }
            serde_json::from_value(value).context(operation)
        }
    }
}

/// Reads a process, the content of exec's `--process` file; unknown capabilities are treated as by [`parse`].
///
/// # Errors
/// [`Kind::Invalid`] with line and column.
pub fn parse_process(json: &[u8]) -> Result<oci_spec::runtime::Process> {
    let operation = || "parse JSON";
    let mut value: serde_json::Value = serde_json::from_slice(json).context(operation)?;
    drop_unknown_capabilities(&mut value);
    rename_flags(&mut value);
    serde_json::from_value(value).context(operation)
}

/// Whether anything was dropped.
fn drop_unknown_capabilities(process: &mut serde_json::Value) -> bool {
    let Some(sets) = process.get_mut("capabilities").and_then(serde_json::Value::as_object_mut) else { return false };
    let mut dropped = false;
    for set in sets.values_mut().filter_map(serde_json::Value::as_array_mut) {
        set.retain(|name| {
            let known = serde_json::from_value::<oci_spec::runtime::Capability>(name.clone()).is_ok();
            if !known && name.is_string() {
                tracing::warn!(%name, "unknown capability is ignored");
            }
            dropped |= !known;
            known
        });
    }
    dropped
}

/// The specification says `SCHED_FLAG_DL_OVERRUN`; its types in Rust know the flag by a misspelled name only. Whether
/// anything was renamed.
fn rename_flags(process: &mut serde_json::Value) -> bool {
    let flags = process.pointer_mut("/scheduler/flags").and_then(serde_json::Value::as_array_mut);
    let mut renamed = false;
    for flag in flags.into_iter().flatten().filter(|flag| *flag == "SCHED_FLAG_DL_OVERRUN") {
        *flag = "SCHED_FLAG_D_L_OVERRUN".into();
        renamed = true;
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_the_scheduler_is_read() {
        let process = r#"{"user":{},"cwd":"/","args":["a"],"scheduler":{"policy":"SCHED_DEADLINE","flags":
            ["SCHED_RESET_ON_FORK","SCHED_FLAG_RECLAIM","SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS","SCHED_FLAG_UTIL_CLAMP_MIN","SCHED_FLAG_UTIL_CLAMP_MAX"]}}"#;
        let count = |process: &oci_spec::runtime::Process| {
            process.scheduler().as_ref().and_then(|scheduler| scheduler.flags().as_ref().map(Vec::len))
        };
        assert_eq!(count(&parse_process(process.as_bytes()).unwrap()), Some(7));
        let spec = format!("{{\"ociVersion\":\"1.3.0\",\"process\":{process}}}");
        assert_eq!(count(parse(spec.as_bytes()).unwrap().process().as_ref().unwrap()), Some(7));
    }

    #[test]
    fn json_that_is_no_object_is_refused() {
        for json in ["[1]", "7", "null", "\"x\"", ""] {
            assert!(parse(json.as_bytes()).is_err() && parse_process(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn an_unknown_capability_is_left_out() {
        let json = br#"{"ociVersion":"1.3.0","process":{"user":{},"cwd":"/","args":["a"],
            "capabilities":{"bounding":["CAP_KILL","CAP_FROM_THE_FUTURE"]}}}"#;
        let spec = parse(json).unwrap();
        let bounding = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert_eq!(bounding.len(), 1);
    }

    #[test]
    fn what_is_no_json_says_where() {
        let error = parse(b"{\"ociVersion\": ").unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
