//! What an operator says about a template: what to load, how long that may take, how many sandboxes wait; and what a
//! keeper is told.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ids::{ContainerId, Name};

/// The version of what a keeper is ordered; both sides have to be of one version.
pub const ORDER: u32 = 1;
/// How long a program may take to load.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How many sandboxes wait for clones.
pub const POOL: u32 = 4;
/// The most sandboxes that may be asked for.
pub const POOL_MAX: u32 = 64;
/// What the waiting sandboxes may have of memory, in bytes.
pub const POOL_MEMORY: u64 = 256 << 20;
/// The annotation of the containers that belong to a template itself, [`Order::mark`]: its own and the sandboxes.
pub const MARK: &str = "run.regen.template.part";
/// The longest name of a template with its owner's, in bytes: containers are called after it.
const NAME_MAX: usize = 120;

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Whose it is.
    pub owner: Name,
    /// The owner's name for it.
    pub name: Name,
    /// What it is made from, and every clone.
    pub source: Source,
    /// The entry of a ring that lies over the source, as typed: `RING[@SEL]`. It is only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<String>,
    /// How a clone gets what was loaded.
    #[serde(default)]
    pub mode: Mode,
    /// What loads it, in place of the source's command.
    #[serde(default)]
    pub command: Vec<String>,
    /// `NAME=VALUE`, for the template and its clones.
    #[serde(default)]
    pub env: Vec<String>,
    /// The working directory inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The user inside, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How many sandboxes wait for clones; with 0 each is made when it is asked for.
    #[serde(default = "pool")]
    pub pool: u32,
    /// What they may have of memory together, in bytes; fewer wait if they need more.
    #[serde(default = "pool_memory")]
    pub pool_memory: u64,
    /// How long loading may take, in milliseconds.
    #[serde(default = "ready_timeout_ms")]
    pub ready_timeout_ms: u64,
}

/// What a template is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A directory with a config.json, absolute.
    Bundle(PathBuf),
    /// A directory that is its root file system, absolute.
    Rootfs(PathBuf),
    /// An OCI image, as typed, with an absolute path.
    Image(String),
}

/// How a clone gets what was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The program says that it is loaded, and forks when it is told to.
    #[default]
    Zygote,
    /// A program that knows nothing of it, restored from a checkpoint.
    Snapshot,
}

fn pool() -> u32 {
    POOL
}

fn pool_memory() -> u64 {
    POOL_MEMORY
}

fn ready_timeout_ms() -> u64 {
    u64::try_from(READY_TIMEOUT.as_millis()).unwrap_or(u64::MAX)
}

impl Definition {
    /// A template with all that may be left out left out.
    #[must_use]
    pub fn new(owner: Name, name: Name, source: Source) -> Self {
        Self {
            owner,
            name,
            source,
            ring: None,
            mode: Mode::default(),
            command: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            pool: POOL,
            pool_memory: POOL_MEMORY,
            ready_timeout_ms: ready_timeout_ms(),
        }
    }

    /// How long loading may take.
    #[must_use]
    pub fn ready_timeout(&self) -> Duration {
        Duration::from_millis(self.ready_timeout_ms)
    }

    /// Checks what its parts cannot check alone.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming what is wrong.
    pub fn check(&self) -> Result<()> {
        let refuse = |cause: String| Err(Error::new(Kind::Usage, format!("define template '{self}'"), cause));
        let length = self.owner.as_str().len() + self.name.as_str().len();
        if length > NAME_MAX {
            return refuse(format!("owner and name have {length} bytes, at most {NAME_MAX} are possible"));
        }
        if names_sandbox(self.name.as_str()) {
            return refuse("'-NUMBER-box' at the end of a name is kept for the sandboxes of others".to_owned());
        }
        if self.pool > POOL_MAX {
            return refuse(format!("a pool of {}, at most {POOL_MAX} are possible", self.pool));
        }
        if self.ready_timeout_ms == 0 {
            return refuse("it has no time to load".to_owned());
        }
        match self.env.iter().find(|entry| !entry.contains('=') || entry.starts_with('=') || entry.contains('\0')) {
            Some(entry) => refuse(format!("variable '{}' is not NAME=VALUE", entry.escape_debug())),
            None => Ok(()),
        }
    }

    /// What its containers are called, but for the number: root's `template-NAME`, another owner's `template-OWNER+NAME`.
    fn stem(&self) -> String {
        match self.owner.as_str() {
            "root" => format!("template-{}", self.name),
            owner => format!("template-{owner}+{}", self.name),
        }
    }
}

/// Whether a container of a template with this name could be called as a sandbox of another.
fn names_sandbox(name: &str) -> bool {
    let number = name.strip_suffix("-box").and_then(|rest| rest.rsplit_once('-')).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `OWNER/NAME`.
impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// What makes a keeper: the first message on its descriptor 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// [`ORDER`]
    pub order: u32,
    /// What to keep.
    pub definition: Definition,
    /// Which attempt at it this is: counted up with every keeper of this name, never used twice.
    pub generation: u64,
    /// The state root.
    pub root: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// The configuration file, if one was named.
    pub config: Option<PathBuf>,
    /// `cgroupfs`, `systemd` or `disabled`.
    pub cgroup_manager: String,
}

impl Order {
    /// Checks that it can be understood.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another version; else those of [`Definition::check`].
    pub fn check(&self) -> Result<()> {
        if self.order != ORDER {
            let operation = format!("read the order for template '{}'", self.definition);
            let cause = format!("it is of version {}, this is version {ORDER}", self.order);
            return Err(Error::new(Kind::Unsupported, operation, cause));
        }
        self.definition.check()
    }

    /// The container of the template's own process.
    ///
    /// # Errors
    /// As [`ContainerId::from_str`](std::str::FromStr); a checked definition has none.
    pub fn container(&self) -> Result<ContainerId> {
        format!("{}-{}", self.definition.stem(), self.generation).parse()
    }

    /// The container of a sandbox, until a clone takes it.
    ///
    /// # Errors
    /// As [`Order::container`].
    pub fn sandbox(&self, number: u64) -> Result<ContainerId> {
        format!("{}-{}-box-{number}", self.definition.stem(), self.generation).parse()
    }

    /// Which generation of the template's keepers made a container, by what it is called.
    #[must_use]
    pub fn generation_of(&self, container: &ContainerId) -> Option<u64> {
        let rest = container.as_str().strip_prefix(&self.definition.stem())?.strip_prefix('-')?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        match rest.split_once("-box-") {
            Some((generation, sandbox)) => number(sandbox).and_then(|_: u64| number(generation)),
            None => number(rest),
        }
    }

    /// The value of [`MARK`] for its containers: `OWNER/NAME/GENERATION`.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("{}/{}", self.definition, self.generation)
    }

    /// The directory of the template.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        directory(&self.store, &self.definition.owner, &self.definition.name)
    }
}

/// Where a template's sockets and files are: `STORE/templates/OWNER/NAME`.
#[must_use]
pub fn directory(store: &Path, owner: &Name, name: &Name) -> PathBuf {
    store.join("templates").join(owner.as_str()).join(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(owner: &str, name: &str) -> Definition {
        let source = Source::Rootfs("/srv/root".into());
        Definition {
            command: vec!["load".into()],
            ..Definition::new(owner.parse().unwrap(), name.parse().unwrap(), source)
        }
    }

    fn order(definition: Definition) -> Order {
        Order {
            order: ORDER,
            definition,
            generation: 3,
            root: "/run/regen".into(),
            store: "/var/lib/regen".into(),
            config: None,
            cgroup_manager: "cgroupfs".into(),
        }
    }

    #[test]
    fn an_order_survives_being_written_down() {
        let order = order(definition("root", "web"));
        order.check().unwrap();
        let text = serde_json::to_string(&order).unwrap();
        assert!(text.contains(r#""source":{"rootfs":"/srv/root"}"#) && text.contains(r#""mode":"zygote""#), "{text}");
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
    }

    #[test]
    fn what_may_be_left_out_has_its_value() {
        let text = r#"{"owner":"root","name":"web","source":{"image":"oci:/img"}}"#;
        let read: Definition = serde_json::from_str(text).unwrap();
        assert_eq!(
            read,
            Definition::new("root".parse().unwrap(), "web".parse().unwrap(), Source::Image("oci:/img".into()))
        );
        assert_eq!((read.pool, read.ready_timeout()), (POOL, READY_TIMEOUT));
    }

    #[test]
    fn containers_of_different_templates_are_called_differently() {
        let names = |owner, name| {
            let order = order(definition(owner, name));
            [order.container().unwrap().to_string(), order.sandbox(7).unwrap().to_string()]
        };
        assert_eq!(names("root", "web"), ["template-web-3", "template-web-3-box-7"]);
        assert_eq!(names("alice", "web"), ["template-alice+web-3", "template-alice+web-3-box-7"]);
    }

    #[test]
    fn containers_lead_back_to_their_generation() {
        let order = order(definition("root", "web"));
        let of = |name: &str| order.generation_of(&name.parse().unwrap());
        assert_eq!((of("template-web-3"), of("template-web-12-box-7")), (Some(3), Some(12)));
        for other in [
            "template-web",
            "template-web-",
            "template-web-x",
            "template-web-3-box-",
            "template-web-3-box-x",
            "template-webs-3",
            "template-web-3-4",
            "web-3",
            "template-root+web-3",
            "template-web--3",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cause = |change: fn(&mut Definition)| {
            let mut definition = definition("root", "web");
            change(&mut definition);
            definition.check().unwrap_err().to_string()
        };
        assert!(cause(|it| it.name = "web-12-box".parse().unwrap()).contains("kept for the sandboxes"));
        assert!(cause(|it| it.name = "a".repeat(150).parse().unwrap()).contains("at most 120"));
        assert!(cause(|it| it.pool = 1000).contains("at most 64"));
        assert!(cause(|it| it.env = vec!["A".into()]).contains("NAME=VALUE"));
        assert!(cause(|it| it.ready_timeout_ms = 0).contains("no time"));
        for fine in ["a-box", "box", "1-box", "a--box", "a-x-box"] {
            definition("root", fine).check().unwrap();
        }
    }
}
