//! What a container asks of a ring, by annotation or by flag. Pure.
//!
//! Annotations are written by whoever writes a pod; who *owns* a ring is therefore taken from what the engine says,
//! and how much they may ask for is limited by the administrator.

mod limit;
mod member;
mod template;

use std::collections::HashMap;
use std::path::PathBuf;

pub use limit::{initial_keep, initial_limits, parse_depth, parse_max_bytes};
use member::Member;
pub use template::{Need, TemplateRequest, choose_template};

use crate::bundle::volume::parse_places;
use crate::config::{self, Interval};
use crate::error::{Error, Kind, Result};
use crate::ids::{Name, RingName};
use crate::ring::Rebase;
use crate::ring::keep::KeepChange;
use crate::ring::selector::{Selector, Target};

/// Names a ring, with a selector or without, where the configuration says so.
const VARIABLE: &str = "REGEN_OCI_RING";
const PREFIX: &str = "run.regen.";
/// What is known behind [`PREFIX`]; a container of a pod that is called like one of these can't have a ring of another name.
const KNOWN: [&str; 13] = [
    "ring",
    "ring.at",
    "ring.depth",
    "ring.max-bytes",
    "ring.keep",
    "ring.create",
    "ring.mode",
    "ring.rebase",
    "ring.snapshot-every",
    "ring.volumes",
    "template",
    "template.required",
    "function",
];

/// Which ring, where to start in it, and how to treat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingRequest {
    /// The ring.
    pub ring: RingName,
    /// Where to start.
    pub selector: Selector,
    /// The depth it is to have; `None` leaves it as it is.
    pub depth: Option<usize>,
    /// The byte limit it is to have; `None` leaves it as it is.
    pub max_bytes: Option<u64>,
    /// The rules by which it is to keep entries; what is not said stays as it is.
    pub keep: KeepChange,
    /// Whether a ring that is not there is made.
    pub create: Create,
    /// Whether an entry that was made over another base is taken.
    pub rebase: Rebase,
    /// How often an entry is made of the container while it runs; `None` for never.
    pub snapshot_every: Option<Interval>,
    /// What the container has of the ring.
    pub mode: Mode,
    /// Where it has bind mounts that belong to the ring; sorted, none in another.
    pub volumes: Vec<PathBuf>,
}

/// What a container has of the ring from which it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The ring itself, and nobody else beside it.
    Exclusive,
    /// An entry of it, with which a ring of its own begins.
    Fork,
    /// An entry of it; what it changes is thrown away.
    Readonly,
}

/// What to do about a ring that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// Make it, empty.
    Always,
    /// Refuse: an empty start would look like a loss.
    Never,
}

impl RingRequest {
    /// Reads `--ring RING[@SEL]`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for name or selector.
    pub fn parse(text: &str, caller: &Name) -> Result<Self> {
        let target = Target::parse(text, caller)?;
        let (ring, selector) = target.named()?;
        // A ring of somebody else's is named only by who knows that it is there.
        let create = if ring.owner == *caller { Create::Always } else { Create::Never };
        Ok(Self {
            ring,
            selector,
            depth: None,
            max_bytes: None,
            keep: KeepChange::default(),
            create,
            rebase: Rebase::Refused,
            mode: Mode::Exclusive,
            snapshot_every: None,
            volumes: Vec::new(),
        })
    }
}

/// The ring that a container's annotations name; else, if the administrator allows that, a variable of its process;
/// else the one that its runtime was called with.
///
/// # Errors
/// As [`parse_annotations`].
pub fn choose(
    annotations: &HashMap<String, String>,
    environment: &[String],
    default: Option<RingRequest>,
    owner: &Name,
    limits: &config::Ring,
) -> Result<Option<RingRequest>> {
    let named = parse_annotations(annotations, owner, limits)?;
    if named.is_some() {
        return Ok(named);
    }
    if let Some(member) = Member::read(annotations)? {
        // Pods have annotations, and who owns a variable's ring is not said.
        return Ok(default.filter(|_| !member.is_sandbox()));
    }
    // The last one counts, as it does for the program.
    let value = environment.iter().rev().find_map(|pair| pair.strip_prefix(VARIABLE)?.strip_prefix('='));
    match value.filter(|_| limits.from_environment) {
        Some(value) => parse_variable(value, owner).map(Some),
        None => Ok(default),
    }
}

fn parse_variable(value: &str, owner: &Name) -> Result<RingRequest> {
    let operation =
        || format!("read variable {VARIABLE}='{}'", value.chars().take(60).collect::<String>().escape_debug());
    if value.contains('/') {
        return Err(Error::new(Kind::Invalid, operation(), "a ring is named without its owner here"));
    }
    RingRequest::parse(value, owner).map_err(|error| error.during(operation()))
}

/// Reads the `run.regen.*` annotations of a container; `None` if it asks for no ring.
///
/// # Errors
/// [`Kind::Invalid`] for one that is empty, malformed, unknown, or over what the administrator allows.
pub fn parse_annotations(
    annotations: &HashMap<String, String>,
    owner: &Name,
    limits: &config::Ring,
) -> Result<Option<RingRequest>> {
    if !annotations.keys().any(|key| key.starts_with(PREFIX)) {
        return Ok(None);
    }
    let member = Member::read(annotations)?;
    if member.as_ref().is_some_and(Member::is_sandbox) {
        return Ok(None);
    }
    let container = member.as_ref().and_then(|member| member.container);
    // Pods own rings by their Kubernetes namespace; everybody else is who calls.
    let owner = match &member {
        Some(member) => member.owner()?,
        None => owner.clone(),
    };
    let Some(ring) = ring_name(annotations, container, owner)? else {
        // A misspelt name must not silently mean "not saved".
        check_known(annotations, container)?;
        return check_stray(annotations, container).map(|()| None);
    };
    check_known(annotations, container)?;
    let mut request = RingRequest {
        ring,
        selector: Selector::Unsaid,
        depth: None,
        max_bytes: None,
        keep: KeepChange::default(),
        create: Create::Always,
        rebase: Rebase::Refused,
        mode: Mode::Exclusive,
        snapshot_every: None,
        volumes: Vec::new(),
    };
    for (key, value) in annotations {
        if let Some(name) = key.strip_prefix("run.regen.ring.") {
            apply(&mut request, name, value, limits).map_err(|error| error.during(shown(key, value)))?;
        }
    }
    Ok(Some(request))
}

fn shown(key: &str, value: &str) -> String {
    let value: String = value.chars().take(60).collect();
    format!("read annotation {key}='{}'", value.escape_debug())
}

fn ring_name(annotations: &HashMap<String, String>, container: Option<&str>, owner: Name) -> Result<Option<RingName>> {
    let own = container.map(|container| format!("ring.{container}")).filter(|name| !KNOWN.contains(&name.as_str()));
    let chosen = own.and_then(|name| annotations.get_key_value(&format!("{PREFIX}{name}")));
    let Some((key, value)) = chosen.or_else(|| annotations.get_key_value("run.regen.ring")) else { return Ok(None) };
    let operation = || shown(key, value);
    if value.contains('/') {
        return Err(Error::new(Kind::Invalid, operation(), "a ring is named without its owner here"));
    }
    let text = match (chosen, container) {
        // One annotation for a whole pod gives each of its containers a ring of its own.
        (None, Some(container)) => format!("{value}-{container}"),
        _ => value.clone(),
    };
    let check = || value.parse::<Name>().and_then(|_| text.parse());
    let name = check().map_err(|error| error.during(operation()))?;
    Ok(Some(RingName { owner, name }))
}

fn check_known(annotations: &HashMap<String, String>, container: Option<&str>) -> Result<()> {
    let mut names = annotations.iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, key, value)));
    // In a pod, `ring.NAME` may be meant for any container of it.
    let unknown = names.find(|(name, _, _)| {
        let of_container = container.is_some() && name.strip_prefix("ring.").is_some_and(|rest| !rest.contains('.'));
        // podman hands on what an image says of itself: that it was exported from a ring is no wish.
        !KNOWN.contains(name) && !of_container && !name.starts_with("entry.")
    });
    match unknown {
        Some((_, key, value)) => {
            let cause = "this regen knows no such annotation";
            let known = KNOWN.map(|name| format!("{PREFIX}{name}")).join(", ");
            Err(Error::new(Kind::Invalid, shown(key, value), cause).next(format!("known are {known}")))
        }
        None => Ok(()),
    }
}

/// Settings of a ring that nobody named must not silently mean "not saved" either. In a pod they may be meant for another
/// container.
fn check_stray(annotations: &HashMap<String, String>, container: Option<&str>) -> Result<()> {
    match annotations.iter().find(|(key, _)| key.starts_with("run.regen.ring.")) {
        Some((key, value)) if container.is_none() => {
            Err(Error::new(Kind::Invalid, shown(key, value), "no ring is named").next("add run.regen.ring=NAME"))
        }
        Some(_) | None => Ok(()),
    }
}

fn apply(request: &mut RingRequest, name: &str, value: &str, limits: &config::Ring) -> Result<()> {
    let invalid = |cause: String| Err(Error::new(Kind::Invalid, "check the value", cause));
    match name {
        "at" => request.selector = value.trim_start_matches('@').parse()?,
        "depth" => {
            let depth = parse_depth(value)?;
            if depth > limits.max_depth as usize {
                return invalid(format!("the administrator allows {} at most", limits.max_depth));
            }
            request.depth = Some(depth);
        }
        "max-bytes" => {
            let bytes = parse_max_bytes(value)?;
            if let Some(highest) = limits.highest_max_bytes.filter(|highest| bytes > highest.0) {
                return invalid(format!("the administrator allows {} at most", highest.0));
            }
            request.max_bytes = Some(bytes);
        }
        "keep" => {
            request.keep = value.parse()?;
            if request.keep.most() > limits.max_depth {
                return invalid(format!("the administrator allows {} of a kind at most", limits.max_depth));
            }
        }
        "create" => {
            request.create = match value {
                "always" => Create::Always,
                "never" => Create::Never,
                _ => return invalid("it is neither 'always' nor 'never'".into()),
            }
        }
        "snapshot-every" => {
            let every: Interval = value.parse()?;
            if every < limits.snapshot_every_least {
                let least = limits.snapshot_every_least.duration().as_secs();
                return invalid(format!("the administrator allows one every {least}s at most"));
            }
            request.snapshot_every = Some(every);
        }
        "rebase" => {
            request.rebase = match value {
                "always" => Rebase::Allowed,
                "never" => Rebase::Refused,
                _ => return invalid("it is neither 'always' nor 'never'".into()),
            }
        }
        "volumes" => request.volumes = parse_places(value.split(','))?,
        "mode" => {
            request.mode = match value {
                "exclusive" => Mode::Exclusive,
                "fork" => Mode::Fork,
                "readonly" => Mode::Readonly,
                _ => return invalid("it is neither 'exclusive' nor 'fork' nor 'readonly'".into()),
            }
        }
        // The ring of one container of a pod: read before.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::member::{CONTAINERD, CRIO};
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<RingRequest>> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        parse_annotations(&annotations, &"root".parse().unwrap(), &config::Config::default().ring)
    }

    fn ring(pairs: &[(&str, &str)]) -> String {
        read(pairs).unwrap().unwrap().ring.to_string()
    }

    #[test]
    fn a_container_without_annotations_is_plain() {
        assert_eq!(read(&[("org.example.x", "1")]).unwrap(), None);
    }

    #[test]
    fn a_ring_that_an_annotation_names_goes_before_the_callers() {
        let limits = config::Config::default().ring;
        let owner = "root".parse().unwrap();
        let chosen = |key: &str, value: &str| {
            let annotations = HashMap::from([(key.to_owned(), value.to_owned())]);
            let default = RingRequest::parse("mine", &owner).unwrap();
            let chosen = choose(&annotations, &[], Some(default), &owner, &limits).unwrap();
            chosen.map(|request| request.ring.to_string())
        };
        assert_eq!(chosen("org.example.x", "1").as_deref(), Some("root/mine"));
        assert_eq!(chosen("run.regen.ring", "theirs").as_deref(), Some("root/theirs"));
        assert_eq!(chosen(CONTAINERD[0], "container").as_deref(), Some("root/mine"));
    }

    #[test]
    fn a_variable_names_a_ring_only_where_the_administrator_allows_it() {
        let mut limits = config::Config::default().ring;
        let owner = "root".parse().unwrap();
        let environment = ["PATH=/bin", "REGEN_OCI_RING=image", "REGEN_OCI_RING=user@-1", "REGEN_OCI_RINGS=x"];
        let environment = environment.map(str::to_owned);
        let none = HashMap::new();
        assert_eq!(choose(&none, &environment, None, &owner, &limits).unwrap(), None);
        limits.from_environment = true;
        let default = RingRequest::parse("mine", &owner).unwrap();
        let request = choose(&none, &environment, Some(default.clone()), &owner, &limits).unwrap().unwrap();
        assert_eq!((request.ring.to_string().as_str(), &request.selector), ("root/user", &Selector::Back(1)));
        assert_eq!(choose(&none, &[], Some(default.clone()), &owner, &limits).unwrap(), Some(default));
        let annotated = HashMap::from([("run.regen.ring".to_owned(), "theirs".to_owned())]);
        let request = choose(&annotated, &environment, None, &owner, &limits).unwrap().unwrap();
        assert_eq!(request.ring.to_string(), "root/theirs");
        let [kind, _, namespace] = CONTAINERD.map(str::to_owned);
        let pod = HashMap::from([(kind, "container".to_owned()), (namespace, "team".to_owned())]);
        assert_eq!(choose(&pod, &environment, None, &owner, &limits).unwrap(), None);
        for bad in ["", "other/user", "../x"] {
            let line = choose(&none, &[format!("{VARIABLE}={bad}")], None, &owner, &limits).unwrap_err().to_string();
            assert!(line.contains(VARIABLE), "{line}");
        }
    }

    #[test]
    fn all_values_are_read() {
        let request = read(&[
            ("run.regen.ring", "alice"),
            ("run.regen.ring.at", "@-1"),
            ("run.regen.ring.depth", "3"),
            ("run.regen.ring.keep", "daily=7,hourly=24"),
            ("run.regen.ring.max-bytes", "1GiB"),
            ("run.regen.ring.create", "never"),
            ("run.regen.ring.rebase", "always"),
            ("run.regen.ring.mode", "readonly"),
            ("run.regen.ring.snapshot-every", "90s"),
            ("run.regen.entry.seq", "7"),
        ]);
        let request = request.unwrap().unwrap();
        assert_eq!(request.ring.to_string(), "root/alice");
        assert_eq!(request.selector, Selector::Back(1));
        assert_eq!((request.depth, request.max_bytes), (Some(3), Some(1 << 30)));
        assert_eq!(request.keep, KeepChange { hourly: Some(24), daily: Some(7), ..KeepChange::default() });
        assert_eq!((request.create, request.rebase), (Create::Never, Rebase::Allowed));
        assert_eq!(request.snapshot_every, Some("1m30s".parse().unwrap()));
        assert_eq!(request.mode, Mode::Readonly);
    }

    #[test]
    fn empty_malformed_unknown_and_too_large_values_are_refused() {
        let ring = ("run.regen.ring", "alice");
        for bad in [
            vec![("run.regen.ring", "")],
            vec![("run.regen.ring", "../x")],
            vec![("run.regen.ring", "other/alice")],
            vec![("run.regen.rign", "alice")],
            vec![ring, ("run.regen.ring.depth", "0")],
            vec![ring, ("run.regen.ring.depth", "")],
            vec![ring, ("run.regen.ring.depth", "1000000")],
            vec![ring, ("run.regen.ring.keep", "hourly=1000000")],
            vec![ring, ("run.regen.ring.keep", "yearly=1")],
            vec![ring, ("run.regen.ring.max-bytes", "many")],
            vec![ring, ("run.regen.ring.max-bytes", "0")],
            vec![("run.regen.ring.depth", "3")],
            vec![("run.regen.ring.at", "1")],
            vec![ring, ("run.regen.ring.at", "")],
            vec![ring, ("run.regen.ring.create", "maybe")],
            vec![ring, ("run.regen.ring.rebase", "maybe")],
            vec![ring, ("run.regen.ring.snapshot-every", "")],
            vec![ring, ("run.regen.ring.snapshot-every", "0s")],
            vec![ring, ("run.regen.ring.snapshot-every", "5")],
            vec![("run.regen.ring.snapshot-every", "5m")],
            vec![ring, ("run.regen.ring.mode", "forks")],
            vec![ring, ("run.regen.ring.depht", "3")],
        ] {
            let error = read(&bad).expect_err(&format!("{bad:?} was taken"));
            assert!(error.to_string().contains("run.regen."), "{error}");
        }
    }

    #[test]
    fn snapshots_more_often_than_the_administrator_allows_are_refused() {
        let read = |every: &str| {
            let least = "30s".parse().unwrap();
            let limits = config::Ring { snapshot_every_least: least, ..config::Config::default().ring };
            let annotations = [("run.regen.ring", "alice"), ("run.regen.ring.snapshot-every", every)];
            let annotations = annotations.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            parse_annotations(&annotations, &"root".parse().unwrap(), &limits)
        };
        let error = read("29s").unwrap_err();
        assert_eq!(
            error.to_string(),
            "read annotation run.regen.ring.snapshot-every='29s': check the value: the administrator allows one every 30s at most"
        );
        assert!(read("30s").unwrap().unwrap().snapshot_every.is_some());
    }

    fn of_pod<'a>(engine: [&'a str; 3], kind: &'a str, container: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![(engine[0], kind), (engine[1], container), (engine[2], "team"), ("run.regen.ring", "app")]
    }

    #[test]
    fn each_container_of_a_pod_has_a_ring_of_its_own_that_its_namespace_owns() {
        for engine in [CONTAINERD, CRIO] {
            let with =
                |container| [&of_pod(engine, "container", container)[..], &[("run.regen.ring.db", "data")]].concat();
            assert_eq!(ring(&with("web")), "k8s.team/app-web");
            assert_eq!(ring(&with("db")), "k8s.team/data");
            let create = [&with("create")[..], &[("run.regen.ring.create", "never")]].concat();
            assert_eq!(ring(&create), "k8s.team/app-create", "the setting is not a ring's name");
            let only: Vec<_> = with("web").into_iter().filter(|(key, _)| *key != "run.regen.ring").collect();
            assert_eq!(read(&only).unwrap(), None, "only the other container has one");
        }
    }

    #[test]
    fn what_holds_the_namespaces_of_a_pod_has_no_ring() {
        let owner = "root".parse().unwrap();
        let default = RingRequest::parse("mine", &owner).unwrap();
        for engine in [CONTAINERD, CRIO] {
            let pairs = of_pod(engine, "sandbox", "POD");
            let annotations = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            let limits = config::Config::default().ring;
            assert_eq!(choose(&annotations, &[], Some(default.clone()), &owner, &limits).unwrap(), None);
        }
    }

    #[test]
    fn a_pod_that_speaks_for_another_engine_is_refused() {
        let forged = [&of_pod(CRIO, "container", "web")[..], &of_pod(CONTAINERD, "container", "web")].concat();
        assert!(read(&forged).unwrap_err().to_string().contains("contradict"));
        let podman = [(CRIO[0], "container"), ("run.regen.ring", "app")];
        assert_eq!(ring(&podman), "root/app", "podman says that much of its pods");
    }
}
