//! What the containers of a template are made of: its own, and those that wait for clones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::FUNCTION_INSIDE;
use super::home::{BASE, FUNCTION, MODULE};
use super::task::Part;
use crate::bundle::bind::show;
use crate::error::{Context, Result};
use crate::ids::ContainerId;
use crate::image::process::Overrides;
use crate::ops::Place;
use crate::ops::apart::{Apart, Pinned, Upon};
use crate::ops::load::{self, Network, Supervised, Wish};
use crate::ops::request::RingRequest;
use crate::runtime::Stdio;
use crate::sys::fs::{open_path, random_id};
use crate::sys::process::Identity;
use crate::template::definition::{Definition, MARK, Order, Source};
use crate::template::proxy;

/// Where a template's program and its clones find the zygote module.
const MODULE_INSIDE: &str = "/run/regen-zygote";

/// The wish for a container of a template.
pub(super) fn wish(order: &Order, container: &ContainerId) -> Result<Wish> {
    let Definition { source, command, env, workdir, user, .. } = &order.definition;
    Ok(Wish {
        id: container.clone(),
        source: match source {
            Source::Bundle(directory) => load::Source::Bundle(directory.clone()),
            Source::Rootfs(directory) => load::Source::Rootfs(directory.clone()),
            Source::Image(image) => load::Source::Image(image.parse()?),
        },
        ring: None,
        default_ring: None,
        follows: None,
        process: Overrides { command: command.clone(), env: env.clone(), workdir: workdir.clone(), user: user.clone() },
        terminal: false,
        network: Network::Own,
        notify: None,
        supervised: Supervised::Elsewhere,
    })
}

/// What a container of a template stands on.
///
/// Its source is looked at for the first container, the template's own; all others are made from what was found then.
///
/// # Errors
/// What is wrong with the source.
pub(super) fn apart(order: &Order, place: &Place, wish: &Wish, part: Part) -> Result<Apart> {
    let Definition { ring, owner, .. } = &order.definition;
    let upon = match (part, ring) {
        (Part::Template, None) => Upon::Base,
        (Part::Template, Some(ring)) => Upon::Entry(RingRequest::parse(ring, owner)?),
        // A ring may lead elsewhere by now.
        (Part::Sandbox, _) => Upon::Like(order.container()?),
    };
    let (home, name) = (order.directory(), format!("{BASE}{}", order.generation));
    let (pinned, images) = match part {
        Part::Template => {
            let (pinned, images) = Pinned::look(place, wish.clone())?;
            pinned.write(&home, &name)?;
            (pinned, images)
        }
        Part::Sandbox => (Pinned::read(&home.join(name))?, None),
    };
    Ok(Apart { upon, pinned: Some(pinned), images, ..Apart::default() })
}

/// Makes a specification that of a container of a template.
///
/// # Errors
/// [`crate::error::Kind::Unsupported`] if no clone can be in such a container.
pub(super) fn adapt(spec: &mut Spec, order: &Order, part: Part) -> Result<()> {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.insert(MARK.to_owned(), order.mark());
    spec.set_annotations(Some(annotations));
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(false));
    }
    let home = order.directory();
    show(spec, &home.join(MODULE), MODULE_INSIDE, &[]);
    match part {
        Part::Template => {
            // The sandboxes are like it.
            proxy::plan(spec)?;
            let mut root = spec.root().clone().unwrap_or_default();
            root.set_readonly(Some(true));
            spec.set_root(Some(root));
        }
        Part::Sandbox => {
            show(spec, &home.join(FUNCTION), FUNCTION_INSIDE, &[]);
            if has_own_name(spec) && names_nobody(spec, order) {
                spec.set_hostname(Some(random_name()?));
            }
        }
    }
    Ok(())
}

fn has_own_name(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    namespaces.iter().any(|space| space.typ() == LinuxNamespaceType::Uts && space.path().is_none())
}

/// Whether nobody has said what the container is called: without a bundle it would be the id.
fn names_nobody(spec: &Spec, order: &Order) -> bool {
    match order.definition.source {
        Source::Bundle(_) => spec.hostname().is_none(),
        Source::Rootfs(_) | Source::Image(_) => true,
    }
}

fn random_name() -> Result<String> {
    Ok(random_id()?.iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// Gives a sandbox an `/etc/machine-id` of its own (machine-id(5)), if its image has one: clones are not one machine. Nothing
/// has run in it yet. What is read-only stays as it is.
pub(super) fn identify(init: &Identity) {
    let write = || -> Option<()> {
        let root = open_path(Path::new(&format!("/proc/{}/root", init.pid))).ok()?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(openat2(root, "etc/machine-id", flags, Mode::empty(), resolve).ok()?);
        let metadata = file.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() > 1)?;
        let text: String =
            random_id().ok()?.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect();
        file.write_all_at(text.as_bytes(), 0).ok()?;
        (metadata.len() > 33).then(|| file.set_len(33).ok()).flatten()
    };
    // Most images have none.
    let _ = write();
}

/// Variables that the template's own program has beside those of its clones.
pub(super) fn loading_variables(env: &[String]) -> Vec<String> {
    let given = env.iter().rev().find_map(|entry| entry.strip_prefix("PYTHONPATH="));
    let path = match given {
        Some(given) if !given.is_empty() => format!("PYTHONPATH={MODULE_INSIDE}:{given}"),
        Some(_) | None => format!("PYTHONPATH={MODULE_INSIDE}"),
    };
    env.iter().filter(|entry| !entry.starts_with("PYTHONPATH=")).cloned().chain([path]).collect()
}

/// The part of `linux` that says who the program is.
pub(super) fn filter_alone(seccomp: Option<oci_spec::runtime::LinuxSeccomp>) -> Linux {
    let mut linux = Linux::default();
    linux.set_seccomp(seccomp);
    linux
}

/// Nothing to read, and nowhere to write: a clone brings its own.
pub(super) fn no_streams() -> Result<Stdio> {
    let null = || File::options().read(true).write(true).open("/dev/null").context(|| "open '/dev/null'");
    Ok(Stdio::Files { stdin: null()?.into(), stdout: null()?.into(), stderr: null()?.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::definition::ORDER;
    use serde_json::json;

    fn order(source: Source) -> Order {
        Order {
            order: ORDER,
            definition: Definition::new("root".parse().unwrap(), "py".parse().unwrap(), source),
            generation: 2,
            root: "/run/regen".into(),
            store: "/var/lib/regen".into(),
            config: None,
            cgroup_manager: "cgroupfs".into(),
        }
    }

    fn spec(hostname: Option<&str>) -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.2.0", "hostname": hostname, "root": {"path": "/x"},
            "process": {"terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["x"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "uts"}, {"type": "pid"}, {"type": "mount"}]}}))
        .unwrap()
    }

    #[test]
    fn the_templates_own_root_is_read_only_and_a_sandboxs_is_not() {
        let order = order(Source::Bundle("/b".into()));
        let adapted = |part| {
            let mut spec = spec(Some("mine"));
            adapt(&mut spec, &order, part).unwrap();
            spec
        };
        let (template, sandbox) = (adapted(Part::Template), adapted(Part::Sandbox));
        let readonly = |spec: &Spec| spec.root().as_ref().unwrap().readonly().unwrap_or(false);
        assert!(readonly(&template) && !readonly(&sandbox));
        assert_eq!(sandbox.process().as_ref().unwrap().terminal(), Some(false));
        assert_eq!(template.annotations().as_ref().unwrap()[MARK], "root/py/2");
        let mounts: Vec<_> = sandbox.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect();
        assert_eq!(mounts, [Path::new(MODULE_INSIDE), Path::new(FUNCTION_INSIDE)]);
    }

    #[test]
    fn a_sandbox_has_a_name_of_its_own_unless_its_bundle_has_one() {
        let name = |source, given| {
            let mut spec = spec(given);
            adapt(&mut spec, &order(source), Part::Sandbox).unwrap();
            spec.hostname().clone().unwrap()
        };
        assert_eq!(name(Source::Bundle("/b".into()), Some("mine")), "mine");
        let drawn = [name(Source::Bundle("/b".into()), None), name(Source::Rootfs("/r".into()), Some("template-py-2"))];
        for name in &drawn {
            assert!(name.len() == 12 && name.chars().all(|c| c.is_ascii_hexdigit()), "{name}");
        }
        assert_ne!(drawn[0], drawn[1]);
    }

    #[test]
    fn the_module_is_found_before_what_the_image_has() {
        let of = |env: &[&str]| loading_variables(&env.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["A=b"]), ["A=b", "PYTHONPATH=/run/regen-zygote"]);
        assert_eq!(of(&["PYTHONPATH=/app", "A=b"]), ["A=b", "PYTHONPATH=/run/regen-zygote:/app"]);
    }
}
