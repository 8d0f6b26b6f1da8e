//! What the daemon opens before it serves, as it was told on its command line and in the configuration.

use std::net::TcpListener;
use std::time::SystemTime;

use super::room::Spot;
use crate::cli::daemon::Serve;
use crate::command::World;
use crate::command::world::absolute;
use crate::control::door::Door;
use crate::control::metrics::{self, Sources, Window};
use crate::control::remote::{self as doors, Certificates};
use crate::control::{Gauge, Operations, Service, Template};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::NodeName;
use crate::sys::supervisor::Passed;

/// Where other nodes come in, and by which certificates.
pub(super) fn remote(arguments: &Serve) -> Result<Option<(TcpListener, Certificates)>> {
    let (Some(address), Some(directory)) = (&arguments.address, &arguments.certs) else { return Ok(None) };
    let address = doors::parse_address(address)?;
    let certificates = Certificates::open(&absolute(directory)?)?;
    let listener = doors::bind(address)?;
    tracing::info!(node = %certificates.name(), %address, "other nodes are let in");
    Ok(Some((listener, certificates)))
}

/// Where this node is among others.
pub(super) fn spot<'a>(arguments: &'a Serve, remote: Option<&(TcpListener, Certificates)>) -> Result<Spot<'a>> {
    let name = own_name(arguments, remote.map(|(_, certificates)| certificates))?;
    let remote = match remote {
        // With the port that was chosen.
        Some((listener, certificates)) => {
            let address = listener.local_addr().context(|| "ask where other nodes come in")?;
            Some((address, certificates.clone()))
        }
        None => None,
    };
    Ok(Spot { name, remote, arguments })
}

/// What this node is called: as its certificate says, or as it was told, or as the host is.
fn own_name(arguments: &Serve, certificates: Option<&Certificates>) -> Result<NodeName> {
    match (&arguments.node, certificates) {
        (Some(told), Some(certificates)) if told != certificates.name() => {
            let cause = format!("its certificate is that of node '{}'", certificates.name());
            Err(Error::new(Kind::Invalid, format!("be node '{told}'"), cause)
                .next("leave --node out, or give that node's certificate"))
        }
        (_, Some(certificates)) => Ok(certificates.name().clone()),
        (Some(told), None) => Ok(told.clone()),
        (None, None) => Ok(NodeName::of_host(&rustix::system::uname().nodename().to_string_lossy())),
    }
}

/// Where numbers are told, if that is wanted. A daemon that takes another one's place goes on without.
pub(super) fn window(world: &World, arguments: &Serve, passed: &mut Vec<Passed>) -> Result<Option<Window>> {
    let socket = metrics::take_passed(passed);
    let Some(address) = arguments.metrics.as_ref().or(world.place.config.metrics.listen.as_ref()) else {
        return Ok(None);
    };
    let opened = address.parse().and_then(|address| Window::open(&address, socket));
    match opened {
        Ok(window) => {
            tracing::info!(address = window.place(), "metrics are told");
            Ok(Some(window))
        }
        Err(error) if Door::was_passed(passed) => {
            tracing::error!("{error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What is looked up for those who fetch numbers.
pub(super) fn sources(
    world: &World,
    gauge: &Gauge,
    (services, templates, operations): (&Service, &Template, &Operations),
) -> Sources {
    let services = match services {
        Service::Managed(manager, ..) => Some(manager.clone()),
        Service::Watched(_) => None,
    };
    let templates = match templates {
        Template::Managed(manager, _) => Some(manager.clone()),
        Template::Unmanaged(_) => None,
    };
    let engine = match operations {
        Operations::Managed(engine, ..) => Some(engine.clone()),
        Operations::Unmanaged(_) => None,
    };
    let store = world.place.store.clone();
    Sources::new(store, gauge.clone(), SystemTime::now()).with(services, templates).with_engine(engine)
}
