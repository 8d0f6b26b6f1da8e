//! `checkpoint`: the processes of a container become files.

use crate::cli::checkpoint::{CgroupsMode, Checkpoint, EmptyNamespace, Images};
use crate::command::world::absolute;
use crate::command::{World, saved};
use crate::criu::{Afterwards, Allowed, CgroupMode, PageServer};
use crate::error::{Error, Kind, Result};
use crate::ops::save;
use crate::runtime::{self, CheckpointRequest};

pub(super) fn run(world: &World, arguments: &Checkpoint) -> Result<()> {
    let afterwards = match (arguments.pre_dump, arguments.leave_running) {
        (true, _) => Afterwards::MemoryOnly,
        (false, true) => Afterwards::Running,
        (false, false) => Afterwards::Killed,
    };
    if let Some(parent) = arguments.parent_path.as_ref().filter(|parent| parent.is_absolute()) {
        let cause = format!("'{}' is absolute", parent.display());
        return Err(Error::new(Kind::Usage, "read --parent-path", cause)
            .next("name it relative to --image-path, as in '../before'"));
    }
    let request = CheckpointRequest {
        images: images(&arguments.images)?,
        parent: arguments.parent_path.clone(),
        afterwards,
        page_server: arguments.page_server.as_deref().map(parse_page_server).transpose()?,
        lazy_pages: arguments.lazy_pages.then_some(arguments.status_fd),
    };
    runtime::checkpoint(&world.place.root, &arguments.id, &request)?;
    match afterwards {
        // As with runc, what is left of it goes too.
        Afterwards::Killed => {
            let saved = save::delete(&world.place, &arguments.id, true, None)?;
            saved::warn(&arguments.id, &saved);
        }
        Afterwards::Running | Afterwards::MemoryOnly => {}
    }
    Ok(())
}

/// What both verbs say about images.
pub(super) fn images(arguments: &Images) -> Result<runtime::Images> {
    let path = arguments.image_path.clone().unwrap_or_else(|| "checkpoint".into());
    let cgroups = match arguments.manage_cgroups_mode {
        CgroupsMode::Soft => CgroupMode::Soft,
        CgroupsMode::Full => CgroupMode::Full,
        CgroupsMode::Strict => CgroupMode::Strict,
        CgroupsMode::Ignore => CgroupMode::Ignore,
    };
    Ok(runtime::Images {
        path: absolute(&path)?,
        work: arguments.work_path.as_deref().map(absolute).transpose()?,
        allowed: Allowed {
            tcp_established: arguments.tcp_established,
            external_unix_sockets: arguments.ext_unix_sk,
            shell_job: arguments.shell_job,
            file_locks: arguments.file_locks,
        },
        cgroups,
        empty_network: arguments.empty_ns.contains(&EmptyNamespace::Network),
        deduplicate: arguments.auto_dedup,
    })
}

/// `ADDRESS:PORT`, where an address of version 6 is in brackets.
fn parse_page_server(text: &str) -> Result<PageServer> {
    let parts = text.rsplit_once(':').and_then(|(address, port)| Some((address, port.parse::<u16>().ok()?)));
    let Some((address, port)) = parts.filter(|(address, _)| !address.is_empty()) else {
        let cause = format!("'{text}' is not ADDRESS:PORT");
        return Err(Error::new(Kind::Usage, "read --page-server", cause).next("say for example 127.0.0.1:9876"));
    };
    Ok(PageServer { address: address.trim_start_matches('[').trim_end_matches(']').to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_is_an_address_and_a_port() {
        let server = |address: &str, port| PageServer { address: address.to_owned(), port };
        assert_eq!(parse_page_server("10.0.0.1:99").unwrap(), server("10.0.0.1", 99));
        assert_eq!(parse_page_server("[::1]:99").unwrap(), server("::1", 99));
        for text in ["", "99", ":99", "host:", "host:x", "host:70000"] {
            assert_eq!(parse_page_server(text).unwrap_err().kind(), Kind::Usage, "{text}");
        }
    }
}
