//! `clone`: a container from a template; in the foreground stays until its end.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::cli::ring::Output;
use crate::cli::template::Clone as Arguments;
use crate::command::op::{How, everywhere};
use crate::command::world::absolute;
use crate::command::{World, saved};
use crate::error::{Context, Error, Kind, Result};
use crate::operation;
use crate::ops::clone::{Answered, Wish, ask, connect, take};
use crate::ops::function;
use crate::ops::load::Supervised;
use crate::ops::warm::snapshot::{self, Snapshot, Streams};
use crate::runtime;
use crate::sys::signal::Blocked;
use crate::template::definition::directory;
use crate::template::message::Cleanup;

/// How long others may be served before.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// The clone's exit status, or 0 once it runs detached.
pub(super) fn run(world: &World, arguments: &Arguments) -> Result<u8> {
    if !arguments.elsewhere.on.is_empty() {
        return elsewhere(world, arguments).map(|()| 0);
    }
    let place = &world.place;
    if let Some(snapshot) = Snapshot::of_template(&directory(&place.store, &place.owner, &arguments.template))? {
        return restore(world, arguments, snapshot);
    }
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
    // While it is waited for its turn, a signal ends us as it would anybody: there is nothing yet to pass it on to. When
    // it is our turn, it is the clone's.
    let requester = connect(place, &arguments.template, PATIENCE)?;
    let signals = Blocked::all()?;
    match ask(place, requester, &wish, stdio)?.answer_or_signal(place, &signals)? {
        Answered::Taken(taken) => taken.attend(place, &signals).map(|end| end.code()),
        Answered::Interrupted(signal) => Ok(u8::try_from(128 + signal.number()).unwrap_or(u8::MAX)),
    }
}

/// A clone on other nodes, where there is nobody who could be at its streams.
fn elsewhere(world: &World, arguments: &Arguments) -> Result<()> {
    let Arguments { template, id, function, detach, env, workdir, memory, elsewhere, command } = arguments;
    if !detach {
        let cause = "nobody is at its streams on another node";
        return Err(Error::new(Kind::Usage, format!("clone container '{id}'"), cause).next("give --detach"));
    }
    let here = |path: &PathBuf| if path.to_string_lossy().contains(':') { Ok(path.clone()) } else { absolute(path) };
    let function = function.as_ref().map(here).transpose()?;
    let parameters = json!({"template": template, "id": id, "function": function, "command": command, "env": env,
        "workdir": workdir, "memory": memory});
    let output = Output { json: false };
    let how = How { on: &elsewhere.on, patience: elsewhere.patience(), output };
    everywhere(world, operation::Kind::Clone, parameters, how)
}

/// A clone of a template of mode 'snapshot' is nobody's affair but ours.
fn restore(world: &World, arguments: &Arguments, from: Snapshot) -> Result<u8> {
    let (place, id) = (&world.place, &arguments.id);
    let Arguments { template, command, env, workdir, .. } = arguments;
    snapshot::refuse_program(template.as_str(), command, env, workdir.as_deref())?;
    let function = arguments.function.as_deref().map(|path| function::open(place, path)).transpose()?;
    // A signal that comes from here on is the clone's.
    let signals = if arguments.detach { None } else { Some(Blocked::all()?) };
    let own = |stream: BorrowedFd<'_>| stream.try_clone_to_owned().context(|| "duplicate a standard stream");
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let (stdio, streams) = Streams::fit(own(stdin.as_fd())?, own(stdout.as_fd())?, own(stderr.as_fd())?)?;
    let wanted = snapshot::Clone {
        template: template.clone(),
        id: id.clone(),
        stdio,
        function,
        memory: arguments.memory,
        cgroups: world.cgroups,
        supervised: if arguments.detach { Supervised::Elsewhere } else { Supervised::Here },
        mask: signals.as_ref().map(Blocked::before),
    };
    let created = snapshot::clone(place, &from, wanted)?;
    drop(from);
    let ended = match signals {
        None => created.start(&place.root, id).map(|()| None),
        Some(signals) => {
            let begin = || created.start(&place.root, id);
            runtime::wait_foreground(&place.root, id, (&created, signals), begin).map(Some)
        }
    };
    let status = match ended {
        Ok(None) => return Ok(0),
        Ok(Some(status)) => status,
        Err(error) => {
            saved::discard(place, id);
            return Err(error);
        }
    };
    streams.finish()?;
    Ok(saved::finish(world, id, status.code(), false))
}
