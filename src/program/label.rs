//! Labels of Linux security modules: the AppArmor profile and the SELinux label that the program gets.
//!
//! A label is written to a file of /proc, and a bundle or an image may mount something else over /proc, so that the
//! label would go nowhere (CVE-2019-16884, CVE-2019-19921, CVE-2025-52881). So it is written through a private handle
//! on procfs, which no mount is on top of and which is checked to be procfs.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use oci_spec::runtime::Process;
use pathrs::error::ErrorKind;
use pathrs::flags::OpenFlags;
use pathrs::procfs::{ProcfsBase, ProcfsHandle};
use rustix::fs::statfs;

use crate::error::{Context, Error, Kind, Result};

/// What selinuxfs says in statfs(2).
const SELINUX_MAGIC: u32 = 0xf97c_ff8c;

/// Which modules this kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Modules {
    pub apparmor: bool,
    pub selinux: bool,
}

impl Modules {
    /// Looks for those that the process asks for.
    pub(super) fn observe(process: &Process) -> Self {
        let asked = |label: &Option<String>| label.as_ref().is_some_and(|label| !label.is_empty());
        Self {
            apparmor: asked(process.apparmor_profile()) && has_apparmor(),
            selinux: asked(process.selinux_label()) && has_selinux(),
        }
    }
}

fn has_apparmor() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

fn has_selinux() -> bool {
    statfs("/sys/fs/selinux").is_ok_and(|stat| u32::try_from(stat.f_type) == Ok(SELINUX_MAGIC))
}

/// What the program is labelled with when it is executed.
#[derive(Debug, Default)]
pub(super) struct Labels {
    apparmor: Option<String>,
    selinux: Option<String>,
}

/// Decides the labels. As with runc, one that this kernel cannot give is an error: it was asked for as a protection.
pub(super) fn plan(process: &Process, modules: Modules) -> Result<Labels> {
    let asked = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    let (apparmor, selinux) = (asked(process.apparmor_profile()), asked(process.selinux_label()));
    if let Some(profile) = apparmor.as_ref().filter(|_| !modules.apparmor) {
        let operation = format!("apply apparmor profile '{}'", profile.escape_debug());
        return Err(Error::new(Kind::Unsupported, operation, "apparmor is disabled or not supported")
            .next("remove process.apparmorProfile"));
    }
    if let Some(label) = selinux.as_ref().filter(|_| !modules.selinux) {
        let operation = format!("apply selinux label '{}'", label.escape_debug());
        return Err(Error::new(Kind::Unsupported, operation, "selinux is disabled or not supported")
            .next("remove process.selinuxLabel"));
    }
    Ok(Labels { apparmor, selinux })
}

impl Labels {
    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.apparmor.is_none() && self.selinux.is_none()
    }

    /// Gives them to what the calling process executes next. With its first rights: the kernel wants the writer to be
    /// the one that opened the file.
    pub(super) fn apply(&self) -> Result<()> {
        if let Some(profile) = &self.apparmor {
            let operation = || format!("apply apparmor profile '{}'", profile.escape_debug());
            let text = format!("exec {profile}");
            // The file of its own exists since Linux 5.8; the older one is shared by all modules.
            match write("attr/apparmor/exec", &text) {
                Err(error) if error.kind() == Kind::NotFound => write("attr/exec", &text),
                result => result,
            }
            .context(operation)?;
        }
        if let Some(label) = &self.selinux {
            let operation = || format!("apply selinux label '{}'", label.escape_debug());
            write("attr/exec", label).context(operation)?;
            // Keys that the program makes are its own; a kernel without keyrings has no such file.
            match write("attr/keycreate", label) {
                Err(error) if error.kind() == Kind::NotFound => {}
                result => result.context(operation)?,
            }
        }
        Ok(())
    }
}

fn write(name: &str, text: &str) -> Result<()> {
    let operation = || format!("write /proc/thread-self/{name}");
    let opened = ProcfsHandle::new()
        .and_then(|proc| proc.open(ProcfsBase::ProcThreadSelf, Path::new(name), OpenFlags::O_WRONLY));
    let mut file = match opened {
        Ok(file) => file,
        Err(error) => match error.kind() {
            ErrorKind::OsError(Some(errno)) => return Err(io::Error::from_raw_os_error(errno)).context(operation),
            _ => return Err(Error::new(Kind::System, operation(), error.to_string())),
        },
    };
    // One write: the kernel takes the whole label at once.
    file.write_all(text.as_bytes()).context(operation)
}

/// The mount option that gives a file system the SELinux label `linux.mountLabel`:
/// `context="system_u:object_r:container_file_t:s0:c1,c2"`; `None` where the label is empty or this kernel has no
/// SELinux, which runc passes over too.
#[must_use]
pub fn mount_label(label: &str) -> Option<String> {
    (!label.is_empty() && has_selinux()).then(|| context_option(label))
}

/// In quotes, because a category list has commas, which would end the option.
fn context_option(label: &str) -> String {
    format!("context=\"{}\"", label.replace('"', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(value: &serde_json::Value) -> Process {
        let mut process = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["a"]});
        process.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(process).unwrap()
    }

    #[test]
    fn a_label_that_the_kernel_cannot_give_is_an_error() {
        let none = Modules { apparmor: false, selinux: false };
        let profile = plan(&process(&serde_json::json!({"apparmorProfile": "p"})), none).unwrap_err();
        assert!(profile.to_string().contains("apparmor is disabled"), "{profile}");
        let label = plan(&process(&serde_json::json!({"selinuxLabel": "l"})), none).unwrap_err();
        assert!(label.to_string().contains("selinux is disabled"), "{label}");
        let empty = serde_json::json!({"apparmorProfile": "", "selinuxLabel": ""});
        assert!(plan(&process(&empty), none).is_ok());
    }

    #[test]
    fn a_label_with_commas_is_one_option() {
        assert_eq!(context_option("u:r:t:s0:c1,c2"), "context=\"u:r:t:s0:c1,c2\"");
    }

    #[test]
    fn labels_are_written_to_the_real_procfs() {
        // No module here takes this text; what counts is that the file of this very thread was reached.
        let error = write("attr/exec", "regen-test").unwrap_err();
        assert_eq!(error.kind(), Kind::System, "{error}");
        assert_eq!(write("attr/nobody-has-this", "x").unwrap_err().kind(), Kind::NotFound);
    }
}
