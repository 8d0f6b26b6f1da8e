//! `regen exec`

use std::path::PathBuf;

use clap::Args;

use crate::ids::ContainerId;

/// Run one more process in a container
#[derive(Debug, Args)]
pub struct Exec {
    /// A socket that gets the other end of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// The working directory inside
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set a variable (may be given again)
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// The user, as numbers
    #[arg(long, short, value_name = "UID[:GID]", value_parser = parse_user)]
    pub user: Option<(u32, Option<u32>)>,
    /// A further group (may be given again)
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// A file that describes the process, in the form of config.json's "process"
    #[arg(long, short, value_name = "FILE", conflicts_with = "command")]
    pub process: Option<PathBuf>,
    /// Return once the process runs
    #[arg(long, short)]
    pub detach: bool,
    /// A file that gets the pid of the process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// The SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// The AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Keep the process from gaining privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability (may be given again)
    #[arg(long, short, value_name = "CAPABILITY")]
    pub cap: Vec<String>,
    /// Pass N more file descriptors to the process (from 3 on)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Run it in this cgroup below the container's
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Let it wait in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    pub id: ContainerId,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND", required_unless_present = "process")]
    pub command: Vec<String>,
}

fn parse_user(text: &str) -> Result<(u32, Option<u32>), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("'{text}' is not a number"));
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}
