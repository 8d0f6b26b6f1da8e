//! `serve`: the daemon.

mod open;
mod room;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::Utc;

use room::Rooms;

use super::world::absolute;
use crate::cli::daemon::Serve;
use crate::command::World;
use crate::control::door::{Door, Opened};
use crate::control::metrics::Window;
use crate::control::remote::{Bounds, Gate};
use crate::control::{Catalog, Control, Gauge, Limits, Neighbourhood, Operations, Server, Service};
use crate::error::{Error, Result};
use crate::sys::signal::{Blocked, Signal};
use crate::sys::supervisor::{notify, replace_process, take_passed};
use crate::sys::{exe, open_files};

/// Calls that are being answered have so much time before the daemon ends.
const END: Duration = Duration::from_millis(250);
/// … and before another program takes its place; new calls wait so long.
const REPLACE: Duration = Duration::from_secs(5);

/// What a signal wants of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// To end.
    End,
    /// To execute its file anew.
    Replace,
}

pub(super) fn run(world: &World, arguments: &Serve) -> Result<()> {
    let mut passed = take_passed()?;
    let program = program()?;
    open_files::raise();
    // Before there is any thread: all of them leave signals to this one.
    let signals = Blocked::all()?;
    let window = open::window(world, arguments, &mut passed)?;
    let root = world.place.root.path();
    // Before anything is taken over from a daemon that serves.
    let remote = open::remote(arguments)?;
    let Opened { door, listener, connections } = Door::open(root, passed)?;
    let gauge = Gauge::new(Limits::default());
    let status =
        Control { started: Utc::now(), root: root.to_owned(), store: world.place.store.clone(), gauge: gauge.clone() };
    let spot = open::spot(arguments, remote.as_ref())?;
    let Rooms { services, templates, operations, nodes } = match Rooms::open(world, &spot) {
        Ok(rooms) => rooms,
        Err(error) => {
            // Nobody will listen.
            window.iter().for_each(Window::close);
            door.close()?;
            return Err(error);
        }
    };
    let state = match &services {
        Service::Managed(..) => "READY=1\nSTATUS=Serving",
        Service::Watched(_) => "READY=1\nSTATUS=Serving without the registry of services, see the log",
    };
    if let Some(window) = &window {
        window.serve(open::sources(world, &gauge, (&services, &templates, &operations)))?;
    }
    let neighbourhood = Neighbourhood::new(nodes, operations.clone());
    let catalog = Catalog::new(vec![
        Box::new(status),
        Box::new(services),
        Box::new(templates),
        Box::new(operations.clone()),
        Box::new(neighbourhood),
    ]);
    let mut server = Server::new(listener, catalog, &gauge)?;
    tracing::info!(pid = std::process::id(), root = %root.display(), kept = connections.len(), "serving");
    connections.into_iter().for_each(|connection| server.admit(connection));
    let open = |(listener, certificates)| Gate::open(listener, certificates, server.entrance(), Bounds::default());
    let _gate = remote.map(open).transpose()?;
    tell(state);
    // What starting took is of no use to a process that then mostly waits.
    exe::forget_code();
    loop {
        server.serve(&signals)?;
        match next_wish(&signals)? {
            None => {}
            Some(Wish::End) => {
                end(&mut server, &operations)?;
                window.iter().for_each(Window::close);
                return door.close();
            }
            Some(Wish::Replace) => {
                let error = replace(&mut server, (&door, window.as_ref()), (&program, &operations))?;
                tracing::error!("the daemon goes on as it is: {error}");
                tell(state);
            }
        }
    }
}

/// Comes to an end with what is being done; instances go on.
fn end(server: &mut Server, operations: &Operations) -> Result<()> {
    tracing::info!("ending: instances go on");
    tell("STOPPING=1");
    let until = Instant::now() + END;
    operations.close(END / 2);
    let connections = server.stop(until.saturating_duration_since(Instant::now()))?;
    if let Err(error) = Door::leave(&connections) {
        tracing::warn!("{error}");
    }
    Ok(())
}

/// The last wish that arrived; an end is final.
fn next_wish(signals: &Blocked) -> Result<Option<Wish>> {
    let mut wish = None;
    while let Some(arrived) = signals.take()? {
        wish = match arrived.signal {
            Signal::TERM | Signal::INT | Signal::QUIT => Some(Wish::End),
            Signal::HUP => wish.or(Some(Wish::Replace)),
            _ => wish,
        };
    }
    Ok(wish)
}

/// Executes the program in this process, which keeps the socket, the lock, and the connections on which nothing is half
/// said. Comes back only if that fails, with the reason, and then all of them are served as before.
fn replace(
    server: &mut Server,
    (door, window): (&Door, Option<&Window>),
    (program, operations): (&Path, &Operations),
) -> Result<Error> {
    tracing::info!("executing '{}' anew", program.display());
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
    let until = Instant::now() + REPLACE;
    operations.close(REPLACE);
    let connections = server.stop(until.saturating_duration_since(Instant::now()))?;
    let arguments: Vec<_> = std::env::args_os().collect();
    let mut passed = door.pass(server.listener(), &connections);
    passed.extend(window.map(Window::pass));
    let error = replace_process(program, &arguments, &passed);
    operations.open();
    connections.into_iter().for_each(|connection| server.admit(connection));
    Ok(error)
}

/// The path that this program was started by: after an upgrade another file has it.
fn program() -> Result<PathBuf> {
    let path = PathBuf::from(OsStr::from_bytes(rustix::param::linux_execfn().to_bytes()));
    // Sealed binaries are executed by descriptor.
    let nameless = path.starts_with("/dev/fd") || path.starts_with("/proc") || path.as_os_str().is_empty();
    absolute(if nameless { Path::new(exe::SELF) } else { &path })
}

/// A supervisor that is not there, or not any more, changes nothing.
fn tell(state: &str) {
    if let Err(error) = notify(state, &[]) {
        tracing::warn!("{error}");
    }
}
