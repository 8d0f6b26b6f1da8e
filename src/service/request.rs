//! What can be asked of services that changes them, as it is sent and written down.

use semver::Version;
use serde::{Deserialize, Serialize};

use super::definition::Definition;
use super::settings::{Place, Settings};
use crate::ids::Name;

/// Which service is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// Its name.
    pub name: Name,
    /// Its version; not needed where there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

/// What Add is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    /// The name.
    pub name: Name,
    /// The version.
    pub version: Version,
    /// Where it listens.
    pub listen: Vec<Place>,
    /// The rest.
    #[serde(default)]
    pub settings: Settings,
}

impl Addition {
    /// What the service is to be.
    #[must_use]
    pub fn define(self) -> Definition {
        self.settings.define(self.name, self.version, self.listen)
    }
}

/// What Adopt is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The service.
    #[serde(flatten)]
    pub addition: Addition,
    /// The running process.
    pub pid: i32,
}

/// What Restart is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Which.
    #[serde(flatten)]
    pub which: Which,
    /// Whether to wait until the old instance is gone.
    #[serde(default)]
    pub wait: bool,
}

/// What Upgrade is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// Which.
    #[serde(flatten)]
    pub which: Which,
    /// The new version.
    pub to: Version,
    /// What is different about it.
    #[serde(default)]
    pub settings: Settings,
    /// Whether it may be older.
    #[serde(default)]
    pub allow_downgrade: bool,
    /// Whether to wait until the old instance is gone.
    #[serde(default)]
    pub wait: bool,
}

/// What Remove is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Which; without a version all of them.
    #[serde(flatten)]
    pub which: Which,
    /// Whether to kill its instances.
    #[serde(default)]
    pub force: bool,
}
