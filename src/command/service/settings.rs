//! From flags to what the daemon is told: it works in another directory, so paths become absolute.

use crate::cli::Origin;
use crate::cli::service::{Handover, Program, RestartPolicy};
use crate::command::argument::{absolute_image, milliseconds};
use crate::command::world::absolute;
use crate::error::Result;
use crate::service::definition::{self, Restart, Source};
use crate::service::settings::{Settings, StopSignal};

pub(super) fn read(program: Program) -> Result<Settings> {
    let Program { origin, settings: flags, command } = program;
    Ok(Settings {
        source: source(origin)?,
        ring: flags.ring,
        rebase: flags.rebase,
        command,
        env: flags.env,
        workdir: flags.workdir,
        user: flags.user,
        handover: flags.handover.map(|handover| match handover {
            Handover::ListenFds => definition::Handover::ListenFds,
            Handover::Intercept => definition::Handover::Intercept,
        }),
        ready: flags.ready,
        ready_timeout_ms: flags.ready_timeout.map(milliseconds),
        drain_timeout_ms: flags.drain_timeout.map(milliseconds),
        stop_signal: flags.stop_signal.map(StopSignal),
        restart: flags.restart.map(|restart| match restart {
            RestartPolicy::No => Restart::No,
            RestartPolicy::OnFailure => Restart::OnFailure,
            RestartPolicy::Always => Restart::Always,
        }),
    })
}

fn source(origin: Origin) -> Result<Option<Source>> {
    let Origin { bundle, rootfs, image } = origin;
    Ok(match (bundle, rootfs, image) {
        (Some(bundle), _, _) => Some(Source::Bundle(absolute(&bundle)?)),
        (None, Some(rootfs), _) => Some(Source::Rootfs(absolute(&rootfs)?)),
        (None, None, Some(image)) => Some(Source::Image(absolute_image(&image)?)),
        (None, None, None) => None,
    })
}
