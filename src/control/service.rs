//! `run.regen.Service`: services, by the daemon's socket.

use super::{Access, Answer, Call, Fault, Interface, Nodes, Operations, life, version};
use crate::ops::service::{Bystander, Manager};

/// The interface's name.
pub const SERVICE: &str = "run.regen.Service";

/// The interface, and who does what it says.
#[derive(Debug)]
pub enum Service {
    /// Services are looked after, and changed by operations.
    Managed(Manager, Operations, Nodes),
    /// The registry cannot be used.
    Watched(Bystander),
}

impl Interface for Service {
    fn name(&self) -> &'static str {
        SERVICE
    }

    fn description(&self) -> &'static str {
        include_str!("run.regen.Service.varlink")
    }

    fn access(&self, method: &str) -> Option<Access> {
        life::access(method).or_else(|| version::access(method))
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        match (self, version::access(call.method())) {
            (Self::Managed(manager, _, nodes), Some(_)) => version::call((&manager.roster(), nodes.cluster()), call),
            (Self::Watched(bystander), Some(_)) => version::call((&bystander.roster(), None), call),
            (Self::Managed(manager, operations, _), None) => life::call(manager, operations, call),
            (Self::Watched(bystander), None) => Err(bystander.reason().into()),
        }
    }
}
