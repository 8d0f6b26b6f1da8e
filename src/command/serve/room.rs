//! What the daemon looks after: services, templates, the operations that change them, and its place among other nodes.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cli::daemon::Serve;
use crate::command::World;
use crate::control::node::{Reached, Remote};
use crate::control::remote::{Certificates, Dialer, Timeouts};
use crate::control::{Nodes, Operations, PROTOCOL, Service, Template};
use crate::error::{Error, Kind, Result};
use crate::ids::NodeName;
use crate::ops::cluster::{Census, Cluster, identity, node_here};
use crate::ops::operation::executor::{
    CloneExecutor, Drain, Elsewhere, Ring, Service as ServiceExecutor, Template as TemplateExecutor, Travel,
};
use crate::ops::operation::{Engine, Executors, Limits};
use crate::ops::ownership::Ownership;
use crate::ops::service::{Bystander, Manager};
use crate::ops::{cluster, template};
use crate::registry::{Counted, Registry};

/// See the module.
#[derive(Debug)]
pub(super) struct Rooms {
    pub services: Service,
    pub templates: Template,
    pub operations: Operations,
    pub nodes: Nodes,
}

/// Where this node is among others.
#[derive(Debug)]
pub(super) struct Spot<'a> {
    /// What it is called.
    pub name: NodeName,
    /// Where others reach it, and by which certificates.
    pub remote: Option<(SocketAddr, Certificates)>,
    /// What else was said.
    pub arguments: &'a Serve,
}

impl Rooms {
    /// Services, templates and operations as they are written down. Where that cannot be read or written, instances that serve are
    /// still found by clients, and clones are made by keepers that are there; a registry that somebody else has is theirs.
    ///
    /// # Errors
    /// Those of the registry, if nobody would be helped without it; those of an etcd that refuses this node, and of a name that
    /// another one has.
    pub(super) fn open(world: &World, spot: &Spot<'_>) -> Result<Self> {
        let manager = match Manager::open(&world.place, world.cgroups) {
            Ok(manager) => manager,
            Err(error) if error.kind() == Kind::Busy => return Err(error),
            Err(error) => return Self::without(world, spot, error),
        };
        let templates = template::Manager::open(&world.place, world.cgroups, manager.registry());
        let census = Census::new(manager.roster(), templates.as_ref().ok().cloned(), world.place.store.clone());
        let (registry, nodes) = open_cluster((world, census), spot, &manager)?;
        let operations = open_engine(world, (registry, &nodes, spot), &manager, templates.as_ref().ok());
        if let (Nodes::Among(cluster, _), Operations::Managed(engine, ..)) = (&nodes, &operations) {
            cluster::mourn(cluster, engine)?;
        }
        let templates = match templates {
            Ok(templates) => Template::Managed(templates, operations.clone()),
            Err(error) => {
                tracing::error!("{error}");
                Template::Unmanaged(error)
            }
        };
        let services = Service::Managed(manager, operations.clone(), nodes.clone());
        Ok(Self { services, templates, operations, nodes })
    }

    fn without(world: &World, spot: &Spot<'_>, error: Error) -> Result<Self> {
        let bystander = Bystander::open(&world.place, error)?;
        let reason = bystander.reason();
        tracing::error!("{reason}");
        let services = Service::Watched(bystander);
        let nodes = Nodes::Alone(Box::new(spot.node(String::new())), None);
        let templates = Template::Unmanaged(reason.clone());
        Ok(Self { services, templates, operations: Operations::Unmanaged(reason), nodes })
    }
}

impl Spot<'_> {
    fn node(&self, identity: String) -> crate::node::Node {
        let address = self.remote.as_ref().map(|(address, _)| *address);
        node_here(self.name.clone(), identity, address, self.arguments.labels.clone(), PROTOCOL)
    }
}

/// The registry that operations are kept in, and who else is there: this node's own and nobody, or that of a cluster.
fn open_cluster(
    (world, census): (&World, Census),
    spot: &Spot<'_>,
    services: &Manager,
) -> Result<(Arc<dyn Registry>, Nodes)> {
    let config = &world.place.config.cluster;
    let Some(url) = spot.arguments.cluster.as_ref().or(config.registry.as_ref()) else {
        let registry = Arc::new(Counted::new(services.registry()));
        return Ok((registry, Nodes::Alone(Box::new(spot.node(String::new())), Some(census))));
    };
    let registry: Arc<dyn Registry> = Arc::new(Counted::new(open_etcd(url, config)?));
    let node = spot.node(identity(&world.place.store)?);
    let cluster = Arc::new(Cluster::open(Arc::clone(&registry), node, services.roster())?);
    cluster.count_by(census);
    let dialer = spot.remote.as_ref().map(|(_, certificates)| Dialer::new(certificates.clone(), Timeouts::default()));
    let reached = dialer.map(|dialer| Reached::new(dialer, Arc::clone(&cluster)));
    Ok((registry, Nodes::Among(cluster, reached)))
}

#[cfg(feature = "etcd")]
fn open_etcd(url: &str, config: &crate::config::Cluster) -> Result<Arc<dyn Registry>> {
    use crate::registry::etcd::{Etcd, Settings};

    Ok(Arc::new(Etcd::open(Settings::new(url, config)?)?))
}

#[cfg(not(feature = "etcd"))]
fn open_etcd(url: &str, _config: &crate::config::Cluster) -> Result<Arc<dyn Registry>> {
    let cause = "this regen was built without it";
    Err(Error::new(Kind::Unsupported, format!("open '{url}'"), cause).next("build it with '--features etcd'"))
}

/// Operations, and who carries them out.
fn open_engine(
    world: &World,
    (registry, nodes, spot): (Arc<dyn Registry>, &Nodes, &Spot<'_>),
    services: &Manager,
    templates: Option<&template::Manager>,
) -> Operations {
    let store = &world.place.store;
    let mut executors = Executors::new()
        .with(&ServiceExecutor::KINDS, Arc::new(ServiceExecutor::new(services.clone())))
        .with(&Ring::KINDS, Arc::new(Ring::new(world.place.clone())))
        .with(&[crate::operation::Kind::RingMove], Arc::new(Ring::new(world.place.clone())))
        .with(&CloneExecutor::KINDS, Arc::new(CloneExecutor::new(world.place.clone(), world.cgroups)));
    if let Some(templates) = templates {
        executors = executors.with(&TemplateExecutor::KINDS, Arc::new(TemplateExecutor::new(templates.clone())));
    }
    if let Nodes::Among(cluster, reached) = nodes {
        executors = among((world, spot), &registry, (cluster, reached.as_ref()), executors);
    }
    let opened = Engine::open(registry, spot.name.clone(), store, executors, Limits::default());
    opened.map_or_else(
        |error| {
            tracing::error!("{error}");
            Operations::Unmanaged(error)
        },
        |engine| Operations::Managed(engine, world.place.owner.clone(), nodes.clone()),
    )
}

/// What only nodes of a cluster do.
fn among(
    (world, spot): (&World, &Spot<'_>),
    registry: &Arc<dyn Registry>,
    (cluster, reached): (&Arc<Cluster>, Option<&Reached>),
    executors: Executors,
) -> Executors {
    let remote = reached.map(|reached| Arc::new(Remote::new(reached.clone())) as Arc<dyn Elsewhere>);
    let ownership = Ownership::new(world.place.clone(), Arc::clone(registry), spot.name.clone());
    if let Err(error) = ownership.watch() {
        tracing::error!("{error}");
    }
    let drain = Drain::new(Arc::clone(cluster), world.place.store.clone());
    let travel = Travel::new(ownership, Arc::clone(cluster), remote.clone());
    let executors = executors
        .with(&[crate::operation::Kind::NodeDrain], Arc::new(drain))
        .with(&[crate::operation::Kind::RingMove], Arc::new(travel));
    match remote {
        Some(remote) => executors.elsewhere(remote),
        None => executors,
    }
}
