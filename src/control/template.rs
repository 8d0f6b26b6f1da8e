//! `run.regen.Template`: templates, by the daemon's socket. Clones are not asked for here: keepers make them.

use serde::{Deserialize, Serialize};

pub use crate::template::request::{Creation, Removal};

use super::{Access, Answer, Call, Fault, Interface};
use crate::error::{Error, Kind, Result};
use crate::ids::Name;
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
    /// Templates are looked after.
    Managed(Manager),
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
            Self::Managed(manager) => answer(manager, call),
            Self::Unmanaged(reason) => Err(reason.clone().during("manage templates").into()),
        }
    }
}

fn last(method: &str) -> &str {
    method.rsplit('.').next().unwrap_or(method)
}

fn answer(manager: &Manager, call: &Call<'_>) -> Result<Answer, Fault> {
    let is = |method: &str| call.method() == last(method);
    if is(method::LIST) {
        Answer::new(&List { templates: manager.list() })
    } else if is(method::SHOW) {
        let Which { name } = call.parameters()?;
        Answer::new(&manager.show(&name)?)
    } else if is(method::CREATE) {
        create(manager, call)
    } else if is(method::REMOVE) {
        let Removal { name, force } = call.parameters()?;
        manager.remove(&name, if force { Clones::Killed } else { Clones::Spared })?;
        Answer::new(&Which { name })
    } else {
        Err(Fault::MethodNotFound(call.method().to_owned()))
    }
}

/// A caller who goes away changes nothing: it is done to the end.
fn create(manager: &Manager, call: &Call<'_>) -> Result<Answer, Fault> {
    let creation: Creation = call.parameters()?;
    let operation = format!("create template '{}'", creation.name);
    let source = match (&creation.source, &creation.ring) {
        (Some(source), _) => source.clone(),
        (None, Some(ring)) => manager.base_of(ring).map_err(|error| error.during(operation))?,
        (None, None) => {
            let cause = "nothing says what it is made from";
            return Err(Error::new(Kind::Usage, operation, cause)
                .next("give --rootfs, --image, --bundle or --ring")
                .into());
        }
    };
    let definition = creation.define(manager.owner().clone(), source);
    let mut tell = |step: &str| drop(call.send(&Progress { step: Some(step.to_owned()), template: None }));
    let template = manager.create(definition, &mut tell)?;
    Answer::new(&Progress { step: None, template: Some(template) })
}
