//! `clone`: a container from a template; in the foreground stays until its end.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::cli::template::Clone as Arguments;
use crate::command::World;
use crate::error::Result;
use crate::ops::clone::{Wish, take};
use crate::sys::signal::Blocked;
use crate::template::message::Cleanup;

/// How long others may be served before.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// The clone's exit status, or 0 once it runs detached.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<u8> {
    let wish = Wish {
        template: arguments.template.clone(),
        id: Some(arguments.id.clone()),
        function: arguments.function.clone(),
        command: arguments.command.clone(),
        call: None,
        env: arguments.env.clone(),
        workdir: arguments.workdir.clone(),
        memory: arguments.memory,
        cleanup: if arguments.detach { Cleanup::Keep } else { Cleanup::WithConnection },
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if arguments.detach {
        return take(&world.place, &wish, stdio, PATIENCE).map(|_| 0);
    }
    // While it is waited for its turn, a signal may end us: there is nothing to be passed on to.
    let taken = take(&world.place, &wish, stdio, PATIENCE)?;
    let signals = Blocked::all()?;
    taken.attend(&world.place, &signals).map(|end| end.code())
}
