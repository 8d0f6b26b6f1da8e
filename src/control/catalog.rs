//! The interfaces of a service, and the one that tells of them.

use super::interface::{Answer, Call, Interface, Reach};
use super::message::{Fault, STANDARD};
use super::peer::{Access, Origin};

/// The interfaces behind one socket.
#[derive(Debug)]
pub struct Catalog {
    interfaces: Vec<Box<dyn Interface>>,
}

/// The description of the interface that every service has.
const DESCRIPTION: &str = include_str!("org.varlink.service.varlink");

impl Catalog {
    /// These, beside the one that every service has.
    #[must_use]
    pub fn new(interfaces: Vec<Box<dyn Interface>>) -> Self {
        Self { interfaces }
    }

    fn find(&self, name: &str) -> Option<&dyn Interface> {
        self.interfaces.iter().map(AsRef::as_ref).find(|interface| interface.name() == name)
    }

    /// Whether there is such a method.
    pub(super) fn knows(&self, interface: &str, method: &str) -> bool {
        let own = interface == STANDARD && standard_access(method).is_some();
        own || self.find(interface).is_some_and(|interface| interface.access(method).is_some())
    }

    /// Answers a call, if the caller may.
    pub(super) fn call(&self, interface: &str, call: &Call<'_>) -> Result<Answer, Fault> {
        let found = self.find(interface);
        let access = match found {
            Some(interface) => interface.access(call.method),
            None if interface == STANDARD => standard_access(call.method),
            None => return Err(Fault::InterfaceNotFound(interface.to_owned())),
        };
        let Some(access) = access else { return Err(Fault::MethodNotFound(format!("{interface}.{}", call.method))) };
        if call.peer.access < access {
            let who = &call.peer.origin;
            let message = format!("{who} may only look and resolve, not call {interface}.{}", call.method);
            return Err(Fault::PermissionDenied(message));
        }
        let reach = found.map_or(Reach::Everywhere, |interface| interface.reach(call.method));
        if let (Origin::Node(_), Reach::Local) = (&call.peer.origin, reach) {
            let who = &call.peer.origin;
            let message = format!("{who} may not call {interface}.{}: callers of this machine may", call.method);
            return Err(Fault::PermissionDenied(message));
        }
        if !call.parameters.starts_with('{') {
            let message = "the parameters are no object".to_owned();
            return Err(Fault::InvalidParameter { parameter: String::new(), message });
        }
        match found {
            Some(interface) => interface.call(call),
            None => self.describe(call),
        }
    }

    fn describe(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        #[derive(serde::Deserialize)]
        struct Which {
            interface: String,
        }
        if call.method == "GetInfo" {
            let names = std::iter::once(STANDARD).chain(self.interfaces.iter().map(|interface| interface.name()));
            return Answer::new(&serde_json::json!({
                "vendor": "regen",
                "product": "regen",
                "version": env!("CARGO_PKG_VERSION"),
                "url": env!("CARGO_PKG_REPOSITORY"),
                "interfaces": names.collect::<Vec<_>>(),
            }));
        }
        let Which { interface: name } = call.parameters()?;
        let description = match self.find(&name) {
            Some(interface) => interface.description(),
            None if name == STANDARD => DESCRIPTION,
            None => return Err(Fault::InterfaceNotFound(name)),
        };
        Answer::new(&serde_json::json!({"description": description}))
    }
}

fn standard_access(method: &str) -> Option<Access> {
    matches!(method, "GetInfo" | "GetInterfaceDescription").then_some(Access::Read)
}
