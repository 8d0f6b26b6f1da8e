//! `install`: an engine comes to know of regen, or forgets it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::cgroup::Manager;
use crate::cli::Global;
use crate::cli::install::{Engine as EngineName, Install};
use crate::command::World;
use crate::command::world::{absolute, ring_request};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Name;
use crate::registration::{CgroupDriver, Change, DEFAULT_NAME, Engine, Entry, Found};
use crate::sys::fs::{read_capped, replace_configuration, sync_directory};
use crate::sys::lock::{Lock, Sharing};

/// Configuration files are small; what is larger is something else.
const FILE_MAX: u64 = 4 << 20;

pub(super) fn run(world: &World, global: &Global, arguments: &Install) -> Result<()> {
    let engine = match arguments.engine {
        EngineName::Podman => Engine::Podman,
        EngineName::Containerd => Engine::Containerd,
        EngineName::Docker => Engine::Docker,
        EngineName::Crio => Engine::Crio,
    };
    let entry = entry(world, global, arguments)?;
    let root = absolute(&arguments.root_dir)?;
    let file = place(&root, engine, &engine.file(&entry.name));
    let main = engine.main_file().map(|main| place(&root, engine, main));
    let find = || Ok::<_, Error>(Found { file: read(&file)?, main: main.as_deref().map(read).transpose()?.flatten() });
    if arguments.print {
        return say(&engine.text(&entry, &find()?)?);
    }
    let directory = file.parent().unwrap_or(&root);
    if !arguments.undo {
        check_program(&root, &entry.binary)?;
        fs::create_dir_all(directory).context(|| format!("create {}", quote(directory)))?;
    } else if !directory.exists() {
        return say(&report(engine, &entry, &file, Done::Absent));
    }
    let _lock = Lock::wait_at(directory, Sharing::Exclusive)?;
    let found = find()?;
    let change = if arguments.undo { engine.remove(&entry, &found)? } else { engine.add(&entry, &found)? };
    let done = match (&change, arguments.undo) {
        (Change::Nothing, false) => Done::There,
        (Change::Nothing, true) => Done::Absent,
        (_, false) => Done::Added,
        (_, true) => Done::Removed,
    };
    match change {
        Change::Nothing => {}
        Change::Write(text) => replace_configuration(&file, text.as_bytes())?,
        Change::Remove => {
            fs::remove_file(&file).context(|| format!("remove {}", quote(&file)))?;
            sync_directory(directory)?;
        }
    }
    say(&report(engine, &entry, &file, done))
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Added,
    There,
    Removed,
    Absent,
}

fn report(engine: Engine, entry: &Entry, file: &Path, done: Done) -> String {
    let (name, shown) = (&entry.name, file.display());
    let mut text = match done {
        Done::Added => format!("{shown}: runtime '{name}' is {}\n", entry.binary.display()),
        Done::There => format!("{shown}: runtime '{name}' is {} already\n", entry.binary.display()),
        Done::Removed => format!("{shown}: runtime '{name}' is gone\n"),
        Done::Absent => format!("{shown}: no runtime '{name}' of regen's writing\n"),
    };
    if let (Done::Added | Done::Removed, Some(command)) = (done, engine.reload()) {
        text += &format!("next: {command}\n");
    }
    if matches!(done, Done::Added | Done::There) {
        text += &format!("undo: {}\n", engine.undo(name));
    }
    text
}

fn entry(world: &World, global: &Global, arguments: &Install) -> Result<Entry> {
    let mut words: Vec<OsString> = Vec::new();
    for (flag, path) in [("--store", &global.store), ("--config", &global.config)] {
        if let Some(path) = path {
            words.extend([flag.into(), absolute(path)?.into()]);
        }
    }
    let mut name = DEFAULT_NAME.to_owned();
    let request = ring_request(arguments.ring.as_deref(), arguments.depth.as_deref(), &world.place.owner)?;
    if let (Some(ring), Some(request)) = (&arguments.ring, request) {
        name = format!("{DEFAULT_NAME}-{}", request.ring.name);
        words.extend(["--ring".into(), ring.into()]);
        words.extend(request.depth.into_iter().flat_map(|depth| ["--depth".into(), depth.to_string().into()]));
    }
    let text = |word: OsString| {
        let cause = "it is not UTF-8";
        word.into_string().map_err(|word| Error::new(Kind::Invalid, format!("write down {}", quote(word)), cause))
    };
    let binary = match &arguments.binary {
        Some(binary) => absolute(binary)?,
        None => std::env::current_exe().context(|| "find the program that runs")?,
    };
    Ok(Entry {
        name: match &arguments.name {
            Some(name) => name.clone(),
            None => name.parse::<Name>()?,
        },
        binary,
        arguments: words.into_iter().map(text).collect::<Result<_>>()?,
        cgroups: match world.cgroups {
            Manager::Systemd => CgroupDriver::Systemd,
            Manager::Cgroupfs | Manager::Disabled => CgroupDriver::Cgroupfs,
        },
    })
}

/// An ordinary user has a directory of their own for podman's files, and nothing to say about other engines.
fn place(root: &Path, engine: Engine, file: &Path) -> PathBuf {
    let below = |base: &Path, prefix: &str| base.join(file.strip_prefix(prefix).unwrap_or(file));
    let own = || {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))
    };
    if engine == Engine::Podman
        && root == Path::new("/")
        && !nix::unistd::geteuid().is_root()
        && let Some(own) = own()
    {
        return below(&own, "/etc");
    }
    below(root, "/")
}

/// What an engine could not run would only be found out by its first container.
fn check_program(root: &Path, binary: &Path) -> Result<()> {
    let seen = root.join(binary.strip_prefix("/").unwrap_or(binary));
    let operation = || format!("name {} as the program", quote(binary));
    nix::unistd::access(&seen, nix::unistd::AccessFlags::X_OK).context(operation)
}

fn read(file: &Path) -> Result<Option<String>> {
    let bytes = match read_capped(file, FILE_MAX) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| Error::new(Kind::Invalid, format!("read {}", quote(file)), "it is not UTF-8"))
}

fn say(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).context(|| "write to standard output")
}
