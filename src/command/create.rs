//! `create`: a bundle becomes a container whose program waits.

use crate::bundle::Bundle;
use crate::cli::{self, Making};
use crate::command::World;
use crate::command::world::absolute;
use crate::error::Result;
use crate::ids::ContainerId;
use crate::runtime::{self, CreateRequest};
use crate::sys::process::check_preserved_fds;

pub(super) fn run(world: &World, arguments: &cli::Create) -> Result<()> {
    check_preserved_fds(arguments.making.preserve_fds)?;
    let bundle = Bundle::load(&arguments.bundle)?;
    let request = request(world, &arguments.id, bundle, &arguments.making)?;
    runtime::create(&world.root, request).map(drop)
}

/// What `create` and `run` have in common.
pub(super) fn request(world: &World, id: &ContainerId, bundle: Bundle, making: &Making) -> Result<CreateRequest> {
    let mut request = CreateRequest::new(id.clone(), bundle.directory, bundle.spec);
    request.console_socket = making.console_socket.as_deref().map(absolute).transpose()?;
    request.pid_file = making.pid_file.as_deref().map(absolute).transpose()?;
    request.preserve_fds = making.preserve_fds;
    request.no_pivot = making.no_pivot;
    request.no_new_keyring = making.no_new_keyring;
    request.systemd_cgroup = world.systemd_cgroup;
    Ok(request)
}
