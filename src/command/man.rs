//! `man`: a manual page for the program and one for each verb, from the same types that parse the command line.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::{self, Cli};
use crate::error::{Context, Result, quote};

/// Commands for administrators, as runc's.
const SECTION: &str = "8";

pub(super) fn run(arguments: &cli::Man) -> Result<()> {
    let directory = &arguments.directory;
    fs::create_dir_all(directory).context(|| format!("create {}", quote(directory)))?;
    let mut program = Cli::command();
    program.build();
    write(program, directory)
}

fn write(command: clap::Command, directory: &Path) -> Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write(verb.clone(), directory)?;
    }
    let source = concat!("regen ", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command).section(SECTION).source(source).manual("regen");
    let written = page.generate_to(directory);
    written.map(drop).context(|| format!("write {}", quote(directory.join(page.get_filename()))))
}
