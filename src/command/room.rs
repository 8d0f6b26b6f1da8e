//! What the daemon looks after: services, templates, and the operations that change them.

use std::sync::Arc;

use crate::command::World;
use crate::control::{Operations, Service, Template};
use crate::error::{Error, Kind, Result};
use crate::ids::NodeName;
use crate::ops::operation::executor::{Service as ServiceExecutor, Template as TemplateExecutor};
use crate::ops::operation::{Engine, Executors, Limits};
use crate::ops::service::{Bystander, Manager};
use crate::ops::template;

/// See the module.
#[derive(Debug)]
pub(super) struct Rooms {
    pub services: Service,
    pub templates: Template,
    pub operations: Operations,
}

impl Rooms {
    /// Services, templates and operations as they are written down. Where that cannot be read or written, instances that serve are
    /// still found by clients, and clones are made by keepers that are there; a registry that somebody else has is theirs.
    ///
    /// # Errors
    /// Those of the registry, if nobody would be helped without it.
    pub(super) fn open(world: &World, node: NodeName) -> Result<Self> {
        let manager = match Manager::open(&world.place, world.cgroups) {
            Ok(manager) => manager,
            Err(error) if error.kind() == Kind::Busy => return Err(error),
            Err(error) => return Self::without(world, error),
        };
        let templates = template::Manager::open(&world.place, world.cgroups, manager.registry());
        let operations = open_engine(world, node, &manager, templates.as_ref().ok());
        let templates = match templates {
            Ok(templates) => Template::Managed(templates, operations.clone()),
            Err(error) => {
                tracing::error!("{error}");
                Template::Unmanaged(error)
            }
        };
        Ok(Self { services: Service::Managed(manager, operations.clone()), templates, operations })
    }

    fn without(world: &World, error: Error) -> Result<Self> {
        let bystander = Bystander::open(&world.place, error)?;
        let reason = bystander.reason();
        tracing::error!("{reason}");
        let services = Service::Watched(bystander);
        Ok(Self { services, templates: Template::Unmanaged(reason.clone()), operations: Operations::Unmanaged(reason) })
    }
}

/// Operations of this node, and who carries them out.
fn open_engine(world: &World, node: NodeName, services: &Manager, templates: Option<&template::Manager>) -> Operations {
    let mut executors =
        Executors::new().with(&ServiceExecutor::KINDS, Arc::new(ServiceExecutor::new(services.clone())));
    if let Some(templates) = templates {
        executors = executors.with(&TemplateExecutor::KINDS, Arc::new(TemplateExecutor::new(templates.clone())));
    }
    let opened = Engine::open(services.registry(), node, &world.place.store, executors, Limits::default());
    opened.map_or_else(
        |error| {
            tracing::error!("{error}");
            Operations::Unmanaged(error)
        },
        |engine| Operations::Managed(engine, world.place.owner.clone()),
    )
}
