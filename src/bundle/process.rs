//! The process of an exec: the container's own process, with what the caller wants differently.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec};

use crate::bundle::validate;
use crate::error::{Error, Kind, Result};

/// What an exec asks for. Everything that is not given is the container's.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`, over the container's environment.
    pub env: Vec<String>,
    /// The working directory.
    pub cwd: Option<PathBuf>,
    /// User and perhaps group.
    pub user: Option<(u32, Option<u32>)>,
    /// Further groups.
    pub additional_gids: Vec<u32>,
    /// Further capabilities, with or without `CAP_`.
    pub capabilities: Vec<String>,
    /// Sets no_new_privs even where the container does not.
    pub no_new_privileges: bool,
    /// Another AppArmor profile.
    pub apparmor: Option<String>,
    /// Another SELinux label.
    pub process_label: Option<String>,
    /// Whether it gets a terminal.
    pub terminal: bool,
}

/// The process that an exec runs in a container with this specification.
///
/// # Errors
/// [`Kind::Invalid`] for an unknown capability or a process that makes no sense.
pub fn plan(spec: &Spec, wishes: &Wishes) -> Result<Process> {
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(wishes.args.clone()));
    process.set_terminal(Some(wishes.terminal));
    process.set_env(Some(merge_env(process.env().clone().unwrap_or_default(), &wishes.env)));
    if let Some(cwd) = &wishes.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some((uid, gid)) = wishes.user {
        process.user_mut().set_uid(uid);
        if let Some(gid) = gid {
            process.user_mut().set_gid(gid);
        }
    }
    if !wishes.additional_gids.is_empty() {
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        gids.extend(&wishes.additional_gids);
        process.user_mut().set_additional_gids(Some(gids));
    }
    if wishes.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if wishes.apparmor.is_some() {
        process.set_apparmor_profile(wishes.apparmor.clone());
    }
    if wishes.process_label.is_some() {
        process.set_selinux_label(wishes.process_label.clone());
    }
    let added = wishes.capabilities.iter().map(|name| parse_capability(name)).collect::<Result<Capabilities>>()?;
    if !added.is_empty() {
        let sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
        process.set_capabilities(Some(add_capabilities(sets, &added)));
    }
    complete(process)
}

/// Checks a process that the caller wrote whole (`--process FILE`).
///
/// # Errors
/// [`Kind::Invalid`] for a process that makes no sense.
pub fn complete(process: Process) -> Result<Process> {
    validate::check_process(&process)?;
    Ok(process)
}

fn merge_env(base: Vec<String>, over: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let mut position: HashMap<String, usize> = HashMap::new();
    let mut merged: Vec<String> = Vec::new();
    for entry in base.iter().chain(over) {
        match position.get(&name(entry)) {
            Some(index) => merged[*index].clone_from(entry),
            None => {
                position.insert(name(entry), merged.len());
                merged.push(entry.clone());
            }
        }
    }
    merged
}

fn parse_capability(name: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    serde_json::from_value(serde_json::Value::String(full)).map_err(|_| {
        let operation = format!("read capability '{}'", name.escape_debug());
        Error::new(Kind::Invalid, operation, "there is none of that name")
    })
}

fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None).set_effective(None).set_inheritable(None).set_permitted(None).set_ambient(None);
    sets
}

/// Bounding, effective and permitted grow; ambient only where something is inheritable, as the kernel wants it.
fn add_capabilities(mut sets: LinuxCapabilities, added: &Capabilities) -> LinuxCapabilities {
    let union = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(added).copied().collect::<Capabilities>());
    let (bounding, effective, permitted) = (union(sets.bounding()), union(sets.effective()), union(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::template::{Privilege, starter};

    fn plan_with(wishes: &Wishes) -> Process {
        plan(&starter(Privilege::Root), wishes).unwrap()
    }

    fn wishes() -> Wishes {
        Wishes { args: vec!["ls".to_owned()], ..Wishes::default() }
    }

    #[test]
    fn variables_replace_the_containers_in_place() {
        let process = plan_with(&Wishes { env: vec!["TERM=dumb".to_owned(), "A=1".to_owned()], ..wishes() });
        let env = process.env().clone().unwrap();
        assert_eq!(env[1..], ["TERM=dumb", "A=1"]);
    }

    #[test]
    fn the_terminal_is_the_execs_own_choice() {
        assert_eq!(plan_with(&wishes()).terminal(), Some(false));
        assert_eq!(plan_with(&Wishes { terminal: true, ..wishes() }).terminal(), Some(true));
    }

    #[test]
    fn capabilities_are_added_in_any_spelling_and_unknown_ones_refused() {
        let process = plan_with(&Wishes { capabilities: vec!["net_raw".to_owned()], ..wishes() });
        let bounding = process.capabilities().clone().unwrap().bounding().clone().unwrap();
        assert!(bounding.contains(&Capability::NetRaw));
        let wrong = Wishes { capabilities: vec!["CAP_NOPE".to_owned()], ..wishes() };
        assert!(plan(&starter(Privilege::Root), &wrong).is_err());
    }

    #[test]
    fn no_new_privileges_is_inherited_and_can_be_added_not_taken() {
        assert_eq!(plan_with(&wishes()).no_new_privileges(), Some(true));
        let mut spec = starter(Privilege::Root);
        spec.process_mut().as_mut().unwrap().set_no_new_privileges(Some(false));
        assert_eq!(plan(&spec, &wishes()).unwrap().no_new_privileges(), Some(false));
        let process = plan(&spec, &Wishes { no_new_privileges: true, ..wishes() }).unwrap();
        assert_eq!(process.no_new_privileges(), Some(true));
    }

    #[test]
    fn nothing_to_run_is_refused() {
        assert!(plan(&starter(Privilege::Root), &Wishes::default()).is_err());
    }
}
