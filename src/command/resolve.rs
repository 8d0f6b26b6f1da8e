//! `resolve`: where a version of a service is, or a program with a socket that is connected to it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use semver::Version;
use serde::Serialize;

use crate::cli::resolve::Resolve;
use crate::command::World;
use crate::control::Mode;
use crate::control::client::Client;
use crate::control::version::{Change, Connected, Copy, Member, News, Question, What, method};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{Name, NodeName};
use crate::service::address::Address;
use crate::sys::clone::{close_on_exec_from, lift, place_from};

/// The number that a program expects its first socket at (`SD_LISTEN_FDS_START`).
const FIRST: u32 = 3;
/// A daemon that is being restarted is waited for so long.
const ABSENCE: Duration = Duration::from_secs(30);

pub(super) fn run(world: &World, arguments: &Resolve) -> Result<()> {
    let root = world.place.root.path();
    let mut client = Client::connect(root)?;
    let question = Question::new(arguments.wanted.clone(), arguments.listen.clone());
    if arguments.watch {
        return follow(root, client, &question, arguments);
    }
    if arguments.connect {
        let (connected, files) = client.call::<Connected>(method::CONNECT, &question)?;
        let count = files.len();
        let socket = files.into_iter().nth(connected.fd_index).ok_or_else(|| {
            let cause = format!("socket {} is to come with it, {count} did", connected.fd_index);
            Error::new(Kind::Damaged, "read the daemon's answer", cause)
        })?;
        drop(client);
        return Err(become_command(&socket, connected.member.name.as_str(), &arguments.command)?);
    }
    let (member, _) = client.call::<Member>(method::RESOLVE, &question)?;
    if arguments.json { print(&json(&member)?) } else { print(&member.address.to_string()) }.map(|_| ())
}

/// Becomes the command, which finds the socket as sd_listen_fds(3) says, and nothing else open beyond the standard
/// streams. Returns only if that fails, with the reason.
///
/// # Errors
/// Those of placing the socket.
fn become_command(socket: &OwnedFd, service: &str, command: &[String]) -> Result<Error> {
    let lifted = lift(socket, FIRST.cast_signed() + 1)?;
    place_from(FIRST, &[lifted.as_fd()])?;
    close_on_exec_from(FIRST + 1)?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::new(Kind::Usage, "execute a command", "none is given"));
    };
    let error = Command::new(program)
        .args(arguments)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", service)
        .env("LISTEN_PID", std::process::id().to_string())
        // Of whoever gave sockets to us.
        .env_remove("LISTEN_PIDFDID")
        .exec();
    let operation = format!("execute '{}'", program.escape_debug());
    Ok(match error.kind() {
        ErrorKind::NotFound if program.contains('/') => {
            Error::new(Kind::CommandNotFound, operation, "no such file or directory")
        }
        ErrorKind::NotFound => Error::new(Kind::CommandNotFound, operation, "executable file not found in $PATH"),
        _ => {
            let cause = error
                .raw_os_error()
                .map_or_else(|| error.to_string(), |number| nix::errno::Errno::from_raw(number).desc().to_lowercase());
            Error::new(Kind::CommandNotExecutable, operation, cause)
        }
    })
}

/// Prints what changes, over restarts of the daemon. For people that is what a line would say otherwise than before: not
/// another instance of a version at its old address.
fn follow(root: &Path, mut client: Client, question: &Question, arguments: &Resolve) -> Result<()> {
    let (mut copy, mut shown) = (Copy::default(), Shown::new());
    loop {
        client.send(method::WATCH, question, Mode::More)?;
        // No answer at all: the daemon has gone, and so far nothing is known to have changed.
        while let Ok(reply) = client.receive() {
            let (news, _, _) = reply.parse::<News>(method::WATCH)?;
            for change in copy.hear(news) {
                let line = if arguments.json { Some(json(&change)?) } else { line(&change, &mut shown) };
                if let Some(line) = line
                    && !print(&line)?
                {
                    return Ok(());
                }
            }
        }
        client = connect_again(root)?;
    }
}

/// The address that was printed last of a version that is there.
type Shown = BTreeMap<(Name, Version, Option<NodeName>), Address>;

/// `+ orders 1.3.0 tcp://127.0.0.1:8080`; `None` if that is what was printed.
fn line(Change { change, member }: &Change, shown: &mut Shown) -> Option<String> {
    let key = (member.name.clone(), member.version.clone(), member.node.clone());
    let sign = match change {
        What::Added => {
            let before = shown.insert(key, member.address.clone());
            (before.as_ref() != Some(&member.address)).then_some('+')?
        }
        What::Withdrawn => {
            shown.remove(&key);
            '-'
        }
    };
    let place = member.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    Some(format!("{sign} {} {} {}{place}", member.name, member.version, member.address))
}

fn connect_again(root: &Path) -> Result<Client> {
    let deadline = Instant::now() + ABSENCE;
    loop {
        match Client::connect(root) {
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(client) => return Ok(client),
        }
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).context(|| "write JSON")
}

/// Prints a line at once; `false` if nobody reads any more.
fn print(line: &str) -> Result<bool> {
    let mut output = std::io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.context(|| "print the answer").map(|()| true),
    }
}
