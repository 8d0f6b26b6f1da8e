//! What a specification must say before anything is done with it.

use oci_spec::runtime::{Hooks, Linux, Process, Spec};

use crate::error::{Error, Kind, Result};

/// Checks what the engine would stumble over late, or not at all.
pub(super) fn check(spec: &Spec) -> Result<()> {
    if !spec.version().starts_with("1.") {
        let cause = format!("'{}' is not supported, only 1.x.y is", spec.version().escape_debug());
        return Err(refuse("ociVersion", &cause));
    }
    match spec.root() {
        None => return Err(refuse("root", "it is missing")),
        Some(root) if root.path().as_os_str().is_empty() => return Err(refuse("root.path", "it is empty")),
        Some(_) => {}
    }
    if let Some(linux) = spec.linux() {
        check_supported(linux)?;
    }
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
    match spec.process() {
        None => Err(refuse("process", "it is missing")),
        Some(process) => check_process(process),
    }
}

/// What we cannot do would be left out silently; whoever asks for it relies on it. The features document says the same.
fn check_supported(linux: &Linux) -> Result<()> {
    let unsupported = |what: &str| Err(Error::new(Kind::Unsupported, format!("check {what}"), "regen cannot do this"));
    if linux.intel_rdt().is_some() {
        return unsupported("linux.intelRdt");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return unsupported("linux.netDevices");
    }
    if linux.memory_policy().is_some() {
        return unsupported("linux.memoryPolicy");
    }
    Ok(())
}

/// A relative path would be looked for along a `PATH`, or below a directory, that nobody chose for it.
fn check_hooks(hooks: &Hooks) -> Result<()> {
    // The first kind is out of use, not out of the world.
    #[allow(deprecated, reason = "see above")]
    let prestart = hooks.prestart();
    let kinds = [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        if let Some(index) = list.iter().flatten().position(|hook| !hook.path().is_absolute()) {
            return Err(refuse(&format!("hooks.{kind}[{index}].path"), "it is not an absolute path"));
        }
    }
    Ok(())
}

/// Checks a process, the container's or one of exec.
pub(super) fn check_process(process: &Process) -> Result<()> {
    match process.args().as_deref() {
        None | Some([]) => return Err(refuse("process.args", "it is empty: there is nothing to run")),
        Some([first, ..]) if first.is_empty() => return Err(refuse("process.args[0]", "it is an empty string")),
        Some(_) => {}
    }
    if !process.cwd().is_absolute() {
        return Err(refuse("process.cwd", "it is not an absolute path"));
    }
    let strings = process.args().iter().chain(process.env()).flatten();
    if strings.into_iter().any(|text| text.contains('\0')) {
        return Err(refuse("process", "a NUL in an argument or variable"));
    }
    Ok(())
}

fn refuse(what: &str, cause: &str) -> Error {
    Error::new(Kind::Invalid, format!("check {what}"), cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::template::starter;

    type Change = fn(&mut serde_json::Value);

    fn spec_with(change: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
        let mut value = serde_json::to_value(starter(crate::bundle::template::Privilege::Root)).unwrap();
        change(&mut value);
        check(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn each_missing_piece_is_named() {
        let cases: [(&str, Change); 8] = [
            ("ociVersion", |v| v["ociVersion"] = "2.0.0".into()),
            ("ociVersion", |v| drop(v.as_object_mut().unwrap().remove("ociVersion"))),
            ("root", |v| drop(v.as_object_mut().unwrap().remove("root"))),
            ("process", |v| drop(v.as_object_mut().unwrap().remove("process"))),
            ("process.args", |v| v["process"]["args"] = serde_json::json!([])),
            ("process.args[0]", |v| v["process"]["args"] = serde_json::json!([""])),
            ("process.cwd", |v| v["process"]["cwd"] = "relative".into()),
            ("process", |v| v["process"]["env"] = serde_json::json!(["A=\u{0}"])),
        ];
        for (name, change) in cases {
            let error = spec_with(change).unwrap_err();
            assert!(error.to_string().starts_with(&format!("check {name}:")), "{error}");
        }
        spec_with(|v| v["ociVersion"] = "1.3.0".into()).unwrap();
    }
}
