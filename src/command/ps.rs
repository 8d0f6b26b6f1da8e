//! `ps`: the processes of a container, as ps(1) of the host shows them.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::cli::ps::{Format, Ps};
use crate::command::World;
use crate::error::{Context, Error, Kind, Result};
use crate::runtime;

pub(super) fn run(world: &World, arguments: &Ps) -> Result<()> {
    let pids = runtime::processes(&world.place.root, &arguments.id)?;
    let format = if arguments.json { Format::Json } else { arguments.format };
    let text = match format {
        Format::Json => serde_json::to_string(&pids).context(|| "write the list of processes")? + "\n",
        Format::Table => table(&list(&arguments.options)?, &pids)?,
    };
    write!(std::io::stdout(), "{text}").context(|| "print the list of processes")
}

fn list(options: &[String]) -> Result<String> {
    let mut command = Command::new("ps");
    if options.is_empty() {
        command.arg("-ef");
    }
    let output = command.args(options).stdin(Stdio::null()).output().context(|| "run ps")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let cause = words.lines().map(str::trim).find(|line| !line.is_empty() && *line != "error:");
        return Err(Error::new(
            Kind::Invalid,
            "run ps",
            cause.map_or_else(|| output.status.to_string(), str::to_owned),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The heading, and the lines of these processes.
fn table(listed: &str, pids: &[i32]) -> Result<String> {
    let mut lines = listed.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|name| name == "PID");
    let Some(column) = column else {
        let error = Error::new(Kind::Invalid, "read the list of ps", "couldn't find PID field in ps output");
        return Err(error.next("choose options that show a column PID"));
    };
    let ours = lines.filter(|line| {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse().ok());
        pid.is_some_and(|pid: i32| pids.binary_search(&pid).is_ok())
    });
    Ok(std::iter::once(heading).chain(ours).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_containers_processes_are_shown() {
        let listed = "UID   PID  CMD\nroot    1  init\nroot   12  sleep 1\nroot  112  sleep 12\n";
        assert_eq!(table(listed, &[12, 99]).unwrap(), "UID   PID  CMD\nroot   12  sleep 1\n");
        assert!(table("CMD\ninit\n", &[1]).unwrap_err().to_string().contains("PID field"));
    }
}
