//! From flags to what the daemon is told: it works in another directory, so paths become absolute.

use std::time::Duration;

use crate::cli::Origin;
use crate::cli::service::{Handover, Program, RestartPolicy};
use crate::command::world::absolute;
use crate::error::Result;
use crate::image::ImageSource;
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
        (None, None, Some(image)) => Some(Source::Image(absolute_image(image.parse()?)?.to_string())),
        (None, None, None) => None,
    })
}

fn absolute_image(image: ImageSource) -> Result<ImageSource> {
    Ok(match image {
        ImageSource::Layout { directory, tag } => ImageSource::Layout { directory: absolute(&directory)?, tag },
        ImageSource::Archive { file, tag } => ImageSource::Archive { file: absolute(&file)?, tag },
    })
}

/// Rounded up: a time that was given is not none.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
