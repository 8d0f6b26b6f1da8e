//! `template create`

use crate::cli::template::{self, Create};
use crate::command::World;
use crate::command::answer::print;
use crate::command::argument::{absolute_image, milliseconds};
use crate::command::op::{How, change};
use crate::command::world::absolute;
use crate::config::human_bytes;
use crate::control::template::{Creation, Progress, method};
use crate::error::{Error, Kind, Result};
use crate::operation;
use crate::ops::template::Summary;
use crate::template::definition::{Mode, Source};

pub(super) fn run(world: &World, mut arguments: Create) -> Result<()> {
    let (output, waiting, on) = (arguments.output, arguments.waiting, std::mem::take(&mut arguments.on));
    let creation = read(arguments)?;
    let how = How { on: &on.on, patience: waiting.patience, output };
    change(world, (operation::Kind::TemplateCreate, method::CREATE), &creation, how, |progress: Progress| {
        let template: Summary = progress.template.ok_or_else(|| {
            let cause = "the daemon does not say what came of it";
            Error::new(Kind::Damaged, format!("call {}", method::CREATE), cause)
        })?;
        print(output, &template, || text(&template))
    })
}

/// The daemon works in another directory, so paths become absolute.
fn read(arguments: Create) -> Result<Creation> {
    let mode = match arguments.mode {
        template::Mode::Zygote => Mode::Zygote,
        template::Mode::Snapshot => Mode::Snapshot,
    };
    let source = match (arguments.bundle, arguments.rootfs, arguments.image) {
        (Some(bundle), _, _) => Some(Source::Bundle(absolute(&bundle)?)),
        (None, Some(rootfs), _) => Some(Source::Rootfs(absolute(&rootfs)?)),
        (None, None, Some(image)) => Some(Source::Image(absolute_image(&image)?)),
        (None, None, None) => None,
    };
    Ok(Creation {
        name: arguments.name,
        source,
        ring: arguments.ring,
        mode,
        command: arguments.command,
        env: arguments.env,
        workdir: arguments.workdir,
        user: arguments.user,
        pool: Some(arguments.pool),
        pool_memory: Some(arguments.pool_memory),
        ready_timeout_ms: Some(milliseconds(arguments.ready_timeout)),
    })
}

fn text(template: &Summary) -> String {
    let memory = template.memory.process.map(human_bytes);
    let known: Vec<String> = template.language.clone().into_iter().chain(memory).collect();
    let known = if known.is_empty() { String::new() } else { format!(": {}", known.join(", ")) };
    format!("{} is ready{known}\n", template.name)
}
