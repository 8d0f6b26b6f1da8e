//! `run.regen.Template`: templates, by the daemon's socket. Clones are not asked for here: keepers make them.

use serde::{Deserialize, Serialize};

pub use crate::template::request::{Creation, Removal};

use super::operation::{Asked, run};
use super::{Access, Answer, Call, Fault, Interface, Operations};
use crate::error::{Error, Result};
use crate::ids::Name;
use crate::operation::Kind;
use crate::ops::template::{Clones, Manager, Summary};

/// The interface's name.
pub const TEMPLATE: &str = "run.regen.Template";

/// The interface's methods, as callers spell them.
pub mod method {
    /// All templates.
    pub const LIST: &str = "run.regen.Template.List";
    /// All that is known of one.
    pub const SHOW: &str = "run.regen.Template.Show";
    /// A new template.
    pub const CREATE: &str = "run.regen.Template.Create";
    /// The end of one.
    pub const REMOVE: &str = "run.regen.Template.Remove";
}

/// What a caller has to be allowed. Definitions have passwords in their environment.
const METHODS: [(&str, Access); 4] = [
    (method::LIST, Access::Read),
    (method::SHOW, Access::All),
    (method::CREATE, Access::All),
    (method::REMOVE, Access::All),
];

/// The interface, and who does what it says.
#[derive(Debug)]
pub enum Template {
    /// Templates are looked after, and made and removed by operations.
    Managed(Manager, Operations),
    /// The registry cannot be used: why. Keepers that are there go on.
    Unmanaged(Error),
}

/// One answer to Create: what is being done, or in the last one what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The template that is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Summary>,
}

/// Which template is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// Its name.
    pub name: Name,
}

/// The answer to List.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// In the order of names.
    pub templates: Vec<Summary>,
}

impl Interface for Template {
    fn name(&self) -> &'static str {
        TEMPLATE
    }

    fn description(&self) -> &'static str {
        include_str!("run.regen.Template.varlink")
    }

    fn access(&self, name: &str) -> Option<Access> {
        METHODS.iter().find(|(known, _)| last(known) == name).map(|(_, access)| *access)
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        match self {
            Self::Managed(manager, operations) => answer(manager, operations, call),
            Self::Unmanaged(reason) => Err(reason.clone().during("manage templates").into()),
        }
    }
}

fn last(method: &str) -> &str {
    method.rsplit('.').next().unwrap_or(method)
}

fn answer(manager: &Manager, operations: &Operations, call: &Call<'_>) -> Result<Answer, Fault> {
    let is = |method: &str| call.method() == last(method);
    if is(method::LIST) {
        Answer::new(&List { templates: manager.list() })
    } else if is(method::SHOW) {
        let Which { name } = call.parameters()?;
        Answer::new(&manager.show(&name)?)
    } else if is(method::CREATE) {
        let Creation { name, .. } = call.parameters()?;
        change(operations, call, Kind::TemplateCreate, &name)
    } else if is(method::REMOVE) {
        let Removal { name, force } = call.parameters()?;
        if !manager.is_being_made(&name) {
            return change(operations, call, Kind::TemplateRemove, &name);
        }
        // Who removes what is still being made ends that: it is no contradiction, and not another operation.
        manager.remove(&name, if force { Clones::Killed } else { Clones::Spared }, &|| Ok(()))?;
        Answer::new(&Which { name })
    } else {
        Err(Fault::MethodNotFound(call.method().to_owned()))
    }
}

fn change(operations: &Operations, call: &Call<'_>, kind: Kind, name: &Name) -> Result<Answer, Fault> {
    run(operations.engine()?, call, Asked { kind, subject: format!("template/{name}") })
}
