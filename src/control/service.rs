//! `run.regen.Service`: services, by the daemon's socket.

use super::{Access, Answer, Call, Fault, Interface, life, version};
use crate::ops::service::Manager;

/// The interface's name.
pub const SERVICE: &str = "run.regen.Service";

/// The interface.
#[derive(Debug)]
pub struct Service {
    /// Who does it.
    pub manager: Manager,
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
        match version::access(call.method()) {
            Some(_) => version::call(&self.manager.roster(), call),
            None => life::call(&self.manager, call),
        }
    }
}
