//! `regen checkpoint`, `regen restore`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::ids::ContainerId;

/// What both take.
#[derive(Debug, Args)]
pub struct Images {
    /// Where the image files are [default: ./checkpoint]
    #[arg(long, value_name = "DIR")]
    pub image_path: Option<PathBuf>,
    /// Where criu's log goes [default: where the image files are]
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Allow established TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow unix sockets whose other end is outside
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Allow a session that began outside, as under a shell's job control
    #[arg(long)]
    pub shell_job: bool,
    /// Save and restore file locks
    #[arg(long)]
    pub file_locks: bool,
    /// What is done with cgroups
    #[arg(long, value_enum, default_value_t = CgroupsMode::Soft, value_name = "MODE")]
    pub manage_cgroups_mode: CgroupsMode,
    /// A namespace that is made anew and left empty for others to fill
    #[arg(long, value_enum, value_name = "NAMESPACE")]
    pub empty_ns: Vec<EmptyNamespace>,
    /// Keep each page of memory in one image only
    #[arg(long)]
    pub auto_dedup: bool,
}

/// Modes of criu.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupsMode {
    /// Restore the properties of cgroups that criu made.
    Soft,
    /// Restore those of all.
    Full,
    /// Fail if a cgroup is there already.
    Strict,
    /// Leave cgroups alone.
    Ignore,
}

/// Namespaces that can be left empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EmptyNamespace {
    /// The network's.
    Network,
}

/// Save the processes of a container to files, and stop it
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Checkpoint {
    /// Where, and what is allowed.
    #[command(flatten)]
    pub images: Images,
    /// The images of the pre-dump before, relative to the new ones
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Let the processes go on afterwards
    #[arg(long)]
    pub leave_running: bool,
    /// Save memory only, and let the processes go on: the next checkpoint has less to do
    #[arg(long)]
    pub pre_dump: bool,
    /// Leave memory with the processes until those that are restored ask for it
    #[arg(long)]
    pub lazy_pages: bool,
    /// A descriptor that is told when memory can be asked for
    #[arg(long, value_name = "FD", default_value_t = -1)]
    pub status_fd: i32,
    /// Send memory to a server
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}

/// Create a container from processes that were saved
#[derive(Debug, Args)]
pub struct Restore {
    /// Where, and what is allowed.
    #[command(flatten)]
    pub images: Images,
    /// The bundle's directory
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Return once the container runs
    #[arg(long, short)]
    pub detach: bool,
    /// A file that gets the pid of the container's first process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Ask for memory when it is needed: 'criu lazy-pages' has to run
    #[arg(long)]
    pub lazy_pages: bool,
    /// A security profile that takes the place of the saved one
    #[arg(long, value_name = "TYPE:NAME")]
    pub lsm_profile: Option<String>,
    /// A security context for the mounts
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
    /// For compatibility: a container with a terminal cannot be saved
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// For compatibility: regen is no subreaper
    #[arg(long)]
    pub no_subreaper: bool,
    /// For compatibility: criu enters the root file system in its own way
    #[arg(long)]
    pub no_pivot: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
}
