//! `exec`: one more process in a running container.

use crate::bundle;
use crate::bundle::process::{Wishes, complete, plan};
use crate::cli;
use crate::command::World;
use crate::command::world::absolute;
use crate::error::{Context, Result, quote};
use crate::runtime::{self, ExecOutcome, ExecRequest};
use crate::sys::fs::read_capped;

/// The process's exit status, or 0 once it runs detached.
pub(super) fn run(world: &World, arguments: &cli::exec::Exec) -> Result<u8> {
    let request = ExecRequest {
        process: process(world, arguments)?,
        detach: arguments.detach,
        console_socket: arguments.console_socket.as_deref().map(absolute).transpose()?,
        pid_file: arguments.pid_file.as_deref().map(absolute).transpose()?,
        preserve_fds: arguments.preserve_fds,
        ignore_paused: arguments.ignore_paused,
        sub_cgroup: arguments.cgroup.clone(),
    };
    match runtime::exec(&world.place.root, &arguments.id, request)? {
        ExecOutcome::Detached => Ok(0),
        ExecOutcome::Exited(status) => Ok(status.code()),
    }
}

fn process(world: &World, arguments: &cli::exec::Exec) -> Result<oci_spec::runtime::Process> {
    if let Some(path) = &arguments.process {
        let operation = || format!("read {}", quote(path));
        let mut process = bundle::parse_process(&read_capped(path, 16 << 20)?).context(operation)?;
        if arguments.tty {
            process.set_terminal(Some(true));
        }
        return complete(process).context(operation);
    }
    let wishes = Wishes {
        args: arguments.command.clone(),
        env: arguments.env.clone(),
        cwd: arguments.cwd.clone(),
        user: arguments.user,
        additional_gids: arguments.additional_gids.clone(),
        capabilities: arguments.cap.clone(),
        no_new_privileges: arguments.no_new_privs,
        apparmor: arguments.apparmor.clone(),
        process_label: arguments.process_label.clone(),
        terminal: arguments.tty,
    };
    plan(&runtime::spec(&world.place.root, &arguments.id)?, &wishes)
}
