//! What the administrator of a machine says, in `/etc/regen/config.toml`.
//!
//! Every key has a default, so the file may be absent. A key that regen does not know is an error: a limit that is
//! silently not in force is worse than a command that does not start.

mod interval;
mod size;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use self::interval::{Interval, parse_duration};
use crate::error::{Context, Error, Kind, Result, quote};

pub use size::{Floor, Size, human_bytes, parse_bytes};

/// The file that is read unless another is named.
pub const DEFAULT_FILE: &str = "/etc/regen/config.toml";
const FILE_MAX: u64 = 1 << 20;

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[store]`
    pub store: Store,
    /// `[ring]`
    pub ring: Ring,
    /// `[image]`
    pub image: Image,
    /// `[template]`
    pub template: Template,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[metrics]`
    pub metrics: Metrics,
}

/// `[store]`: the directory that holds layers and rings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Store {
    /// Free space that packing and snapshots leave alone.
    pub min_free: Floor,
    /// Bytes on disk that layers and packs of all rings may take together; unlimited if not set.
    pub max_bytes: Option<Size>,
    /// Whether entries leave so that `min_free` stays free.
    pub make_room: bool,
}

/// `[ring]`: what holds for rings that say nothing else, and what they may say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Ring {
    /// Entries of a new ring.
    pub depth: u32,
    /// Bytes on disk of a new ring, unlimited if not set.
    pub max_bytes: Option<Size>,
    /// How many of the newest entries a new ring keeps whatever the depth.
    pub keep_last: u32,
    /// The same for the newest of each of so many hours.
    pub keep_hourly: u32,
    /// Of each of so many days.
    pub keep_daily: u32,
    /// Of each of so many weeks.
    pub keep_weekly: u32,
    /// The highest depth that an annotation may ask for.
    pub max_depth: u32,
    /// The highest byte limit that an annotation may ask for, unlimited if not set.
    pub highest_max_bytes: Option<Size>,
    /// The least interval at which an annotation may ask for snapshots.
    pub snapshot_every_least: Interval,
    /// Whether a variable of the container's process may name its ring: whoever writes an image may set it.
    pub from_environment: bool,
    /// Where each new entry is sent to in the background, `docker://HOST[:PORT]/PREFIX`; nowhere if not set.
    pub auto_push: Option<String>,
    /// Whether that registry has to prove who it is.
    pub auto_push_tls_verify: bool,
}

/// `[image]`: images that are unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Image {
    /// Bytes that one layer may unpack to.
    pub max_layer_bytes: Size,
}

/// `[template]`: containers that are kept warm.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Template {
    /// Bytes that a function's tar file may unpack to.
    pub max_function_bytes: Size,
    /// The names of root's templates that everybody's containers may use, where their owner has none of that name.
    pub shared: Vec<String>,
    /// The directories below which an annotation may name a function.
    pub function_directories: Vec<PathBuf>,
}

/// `[cluster]`: the etcd that several machines share, and how this one is known there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Cluster {
    /// Its members, `etcd://HOST:PORT[,HOST:PORT…]`; none if this machine is alone.
    pub registry: Option<String>,
    /// What every key there begins with.
    pub prefix: String,
    /// Who this machine is to etcd, where it asks for users.
    pub user: Option<String>,
    /// The file whose first line is the user's password.
    pub password_file: Option<PathBuf>,
    /// The certificates (PEM) of those who vouch for the members; with it, connections are encrypted.
    pub ca: Option<PathBuf>,
    /// This machine's certificate (PEM), where etcd asks for one.
    pub certificate: Option<PathBuf>,
    /// The key (PEM) of that certificate.
    pub key: Option<PathBuf>,
    /// Seconds until a request is given up.
    pub timeout: u32,
}

/// `[metrics]`: the daemon's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Metrics {
    /// Where they are told: `tcp://HOST:PORT` or `unix:/PATH`; nowhere if not set.
    pub listen: Option<String>,
}

impl Default for Store {
    fn default() -> Self {
        Self { min_free: Floor::Percent(5), max_bytes: None, make_room: false }
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            depth: 8,
            max_bytes: None,
            keep_last: 0,
            keep_hourly: 0,
            keep_daily: 0,
            keep_weekly: 0,
            max_depth: 1000,
            highest_max_bytes: None,
            snapshot_every_least: Interval::LEAST,
            from_environment: false,
            auto_push: None,
            auto_push_tls_verify: true,
        }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self { max_layer_bytes: Size(10 << 30) }
    }
}

impl Default for Template {
    fn default() -> Self {
        Self { max_function_bytes: Size(1 << 30), shared: Vec::new(), function_directories: Vec::new() }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            registry: None,
            prefix: "regen/".to_owned(),
            user: None,
            password_file: None,
            ca: None,
            certificate: None,
            key: None,
            timeout: 5,
        }
    }
}

impl Config {
    /// Reads the named file, or the default one if there is one.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if a named file is absent, [`Kind::Invalid`] with line and key if one says nothing valid.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let named = path.unwrap_or(Path::new(DEFAULT_FILE));
        let operation = || format!("read configuration {}", quote(named));
        let file = match File::open(named) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => return Ok(Self::default()),
            other => other.context(operation)?,
        };
        let mut text = String::new();
        file.take(FILE_MAX + 1).read_to_string(&mut text).context(operation)?;
        if text.len() as u64 > FILE_MAX {
            return Err(Error::new(Kind::Invalid, operation(), format!("larger than {FILE_MAX} bytes")));
        }
        Self::parse(&text).context(operation)
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with line and key.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let place = match error.span() {
                Some(span) => format!("line {}", text[..span.start].matches('\n').count() + 1),
                None => "the file as a whole".to_owned(),
            };
            Error::new(Kind::Invalid, place, error.message())
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let refuse = |key: &str, cause: String| Err(Error::new(Kind::Invalid, format!("key '{key}'"), cause));
        if self.ring.depth == 0 || self.ring.depth > self.ring.max_depth {
            let cause = format!("{} is not between 1 and ring.max-depth, {}", self.ring.depth, self.ring.max_depth);
            return refuse("ring.depth", cause);
        }
        if let (Some(own), Some(highest)) = (self.ring.max_bytes, self.ring.highest_max_bytes)
            && own.0 > highest.0
        {
            return refuse("ring.max-bytes", "it is over ring.highest-max-bytes".to_owned());
        }
        let prefix = self.ring.auto_push.as_deref().map(|text| text.strip_prefix("docker://").unwrap_or_default());
        if prefix.is_some_and(|prefix| !prefix.contains('/') || prefix.ends_with('/')) {
            return refuse("ring.auto-push", "it is not of the form docker://HOST[:PORT]/PREFIX".to_owned());
        }
        self.cluster.check().or_else(|(key, cause)| refuse(key, cause.to_owned()))
    }
}

impl Cluster {
    /// The key that is wrong, and what is wrong with it.
    fn check(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        let Self { registry: _, prefix, user, password_file, ca, certificate, key, timeout } = self;
        if prefix.is_empty() {
            return Err(("cluster.prefix", "without one, keys of others would be taken for regen's"));
        }
        if user.is_some() != password_file.is_some() {
            return Err(("cluster.user", "a user needs cluster.password-file, and that needs a user"));
        }
        if certificate.is_some() != key.is_some() {
            return Err(("cluster.certificate", "a certificate needs cluster.key, and that needs a certificate"));
        }
        if certificate.is_some() && ca.is_none() {
            return Err(("cluster.certificate", "without cluster.ca nothing is encrypted"));
        }
        if !(1..=60).contains(timeout) {
            return Err(("cluster.timeout", "it is between 1 and 60 seconds"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.ring.depth, 8);
        assert_eq!(config.store.min_free.bytes(1000), 50);
    }

    #[test]
    fn every_key_is_read() {
        let text = "[store]\nmin-free = '10GiB'\n[ring]\ndepth = 3\nmax-bytes = '2G'\nmax-depth = 20\n\
                    keep-last = 1\nkeep-hourly = 2\nkeep-daily = 3\nkeep-weekly = 4\n\
                    highest-max-bytes = 4294967296\nfrom-environment = true\n\
                    snapshot-every-least = '1m30s'\n\
                    auto-push = 'docker://r.example/rings'\nauto-push-tls-verify = false\n[image]\nmax-layer-bytes = '1 GiB'\n\
                    [metrics]\nlisten = 'tcp://[::1]:9464'\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.store.min_free, Floor::Bytes(10 << 30));
        assert_eq!(
            config.ring,
            Ring {
                depth: 3,
                max_bytes: Some(Size(2 << 30)),
                keep_last: 1,
                keep_hourly: 2,
                keep_daily: 3,
                keep_weekly: 4,
                max_depth: 20,
                highest_max_bytes: Some(Size(4 << 30)),
                snapshot_every_least: "90s".parse().unwrap(),
                from_environment: true,
                auto_push: Some("docker://r.example/rings".to_owned()),
                auto_push_tls_verify: false,
            }
        );
        assert_eq!(config.image.max_layer_bytes, Size(1 << 30));
        assert_eq!(config.metrics.listen.as_deref(), Some("tcp://[::1]:9464"));
    }

    #[test]
    fn every_key_of_a_cluster_is_read() {
        let text = "[cluster]\nregistry = 'etcd://a:2379,b:2379'\nprefix = 'site/'\nuser = 'regen'\n\
                    password-file = '/p'\nca = '/ca.pem'\ncertificate = '/cert.pem'\nkey = '/key.pem'\ntimeout = 9\n";
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(
            Config::parse(text).unwrap().cluster,
            Cluster {
                registry: Some("etcd://a:2379,b:2379".to_owned()),
                prefix: "site/".to_owned(),
                user: Some("regen".to_owned()),
                password_file: path("/p"),
                ca: path("/ca.pem"),
                certificate: path("/cert.pem"),
                key: path("/key.pem"),
                timeout: 9,
            }
        );
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, words) in [
            ("[ring]\ndepht = 3\n", ["line 2", "depht"]),
            ("\n[rings]\n", ["line 2", "rings"]),
            ("[ring]\n\ndepth = 'many'\n", ["line 3", "many"]),
            ("[ring]\nsnapshot-every-least = '0s'\n", ["line 2", "a second is the least"]),
            ("[ring]\ndepth = 0\n", ["ring.depth", "between 1"]),
            ("[ring]\ndepth = 9\nmax-depth = 8\n", ["ring.depth", "8"]),
            ("[ring]\nmax-bytes = '2G'\nhighest-max-bytes = '1G'", ["ring.max-bytes", "highest"]),
            ("[ring]\nauto-push = 'r.example/rings'", ["ring.auto-push", "docker://HOST"]),
            ("[ring]\nauto-push = 'docker://r.example'", ["ring.auto-push", "PREFIX"]),
            ("[ring]\nmax-bytes = '2 furlongs'", ["line 2", "furlongs"]),
            ("[store]\nmin-free = '101%'\n", ["line 2", "101%"]),
            ("[store]\nmin-free = true\n", ["line 2", "512MiB"]),
            ("[cluster]\nprefix = ''\n", ["cluster.prefix", "others"]),
            ("[cluster]\nuser = 'regen'\n", ["cluster.user", "password-file"]),
            ("[cluster]\nca = '/ca.pem'\nkey = '/key.pem'\n", ["cluster.certificate", "cluster.key"]),
            ("[cluster]\ncertificate = '/cert.pem'\nkey = '/key.pem'\n", ["cluster.certificate", "cluster.ca"]),
            ("[cluster]\ntimeout = 0\n", ["cluster.timeout", "between 1 and 60"]),
            ("[ring\n", ["line 1", ""]),
        ] {
            let line = Config::parse(text).unwrap_err().to_string();
            assert!(words.iter().all(|word| line.contains(word)), "{text:?} gives {line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn a_named_file_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        assert_eq!(Config::load(Some(&path)).unwrap_err().kind(), Kind::NotFound);
        std::fs::write(&path, "[ring]\ndepth = 5\n").unwrap();
        assert_eq!(Config::load(Some(&path)).unwrap().ring.depth, 5);
        std::fs::write(&path, "[ring]\ndepth = \n").unwrap();
        let line = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(line.contains("config.toml': line 2"), "{line}");
        std::fs::File::create(&path).unwrap().set_len(FILE_MAX + 1).unwrap();
        assert!(Config::load(Some(&path)).unwrap_err().to_string().contains("larger"));
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("12 B", 12),
            ("512MiB", 512 << 20),
            ("2G", 2 << 30),
            ("2gb", 2 << 30),
            ("1.5 KiB", 1536),
            ("0.5t", 512 << 30),
            (" 7k ", 7 << 10),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "G", "-1", "1.2.3M", "1e9", "5%", "1.5", "99999999999T", ".5G", "1.G", "1 G i B", "１"] {
            assert_eq!(parse_bytes(bad).unwrap_err().kind(), Kind::Invalid, "{bad} was taken");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536 << 10, "1.5 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
