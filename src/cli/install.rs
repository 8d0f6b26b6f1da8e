//! `regen install …`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::ids::Name;

/// Make this runtime known to an engine
#[derive(Debug, Args)]
pub struct Install {
    /// The engine
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub engine: Engine,
    /// Print what would be added, and change nothing
    #[arg(long, conflicts_with = "undo")]
    pub print: bool,
    /// Take away what an earlier call added
    #[arg(long)]
    pub undo: bool,
    /// What the engine's users call it [default: regen, with --ring regen-RING]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// The program [default: this one]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Every container of this entry starts from a ring, and saves to it (docker)
    #[arg(long, id = "install_ring", value_name = "RING[@SEL]")]
    pub ring: Option<String>,
    /// The most entries of that ring (docker)
    #[arg(long, id = "install_depth", value_name = "N", requires = "install_ring")]
    pub depth: Option<String>,
    /// Where the system whose files are changed has its root directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root_dir: PathBuf,
}

/// The engines that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// podman, also that of an ordinary user.
    Podman,
    /// containerd's CRI plugin: Kubernetes.
    Containerd,
    /// Docker.
    Docker,
    /// CRI-O.
    Crio,
}
