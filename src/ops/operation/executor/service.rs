//! Tasks that change services. The manager of services claims what is changed; under that claim the fence is passed.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Executor, Settled, Task};
use crate::error::{Error, Kind as Fault, Result};
use crate::operation::Kind;
use crate::ops::service::{Downgrade, Key, Manager, Mandate, Past, Removal as Way, Report, Step, Until};
use crate::service::request::{Addition, Adoption, Removal, Restart, Upgrade, Which};

/// Who changes services.
#[derive(Debug)]
pub struct Service(Manager);

impl Service {
    /// The kinds that it is for.
    pub const KINDS: [Kind; 5] =
        [Kind::ServiceAdd, Kind::ServiceAdopt, Kind::ServiceRestart, Kind::ServiceUpgrade, Kind::ServiceRemove];

    /// One that has this manager do it.
    #[must_use]
    pub fn new(manager: Manager) -> Self {
        Self(manager)
    }

    fn remove(&self, Which { name, version }: &Which, way: Way, mandate: &Mandate<'_>) -> Result<Value> {
        let removed = self.0.remove((name, version.as_ref()), way, mandate)?;
        let removed = removed.into_iter().map(|key| Which { name: key.name, version: Some(key.version) });
        Ok(json!({"removed": removed.collect::<Vec<_>>()}))
    }
}

impl Executor for Service {
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let pass = || task.pass().map(drop);
        let mandate = Mandate::new(task.operation, &pass);
        let mut tell = |step: Step| tell(step_value(&step));
        let manager = &self.0;
        let report = match task.kind {
            Kind::ServiceAdd => manager.add(read::<Addition>(task)?.define(), &mandate, &mut tell)?,
            Kind::ServiceAdopt => {
                let Adoption { addition, pid } = read(task)?;
                manager.adopt((addition.define(), pid), &mandate, &mut tell)?
            }
            Kind::ServiceRestart => {
                let Restart { which: Which { name, version }, wait } = read(task)?;
                manager.restart((&name, version.as_ref()), until(wait), &mandate, &mut tell)?
            }
            Kind::ServiceUpgrade => {
                let Upgrade { which: Which { name, version }, to, settings, allow_downgrade, wait } = read(task)?;
                let downgrade = if allow_downgrade { Downgrade::Allowed } else { Downgrade::Refused };
                let to = (to, settings, downgrade);
                manager.upgrade((&name, version.as_ref(), until(wait)), to, &mandate, &mut tell)?
            }
            Kind::ServiceRemove => {
                let Removal { which, force } = read(task)?;
                return self.remove(&which, if force { Way::Kill } else { Way::Drain }, &mandate);
            }
            Kind::TemplateCreate
            | Kind::TemplateRemove
            | Kind::Clone
            | Kind::RingRollback
            | Kind::RingSnapshot
            | Kind::RingPin
            | Kind::RingUnpin
            | Kind::RingSet
            | Kind::RingRemove
            | Kind::RingPack
            | Kind::RingMove
            | Kind::NodeDrain
            | Kind::Probe => return Err(foreign(task)),
        };
        Ok(value(&report))
    }

    fn settle(&self, task: &Task) -> Settled {
        match task.kind {
            Kind::ServiceRemove => read::<Removal>(task).map_or_else(Settled::Failed, |Removal { which, .. }| {
                let left = self.0.left_of_removal(&which.name, which.version.as_ref());
                // What is still there was never told to go.
                if left.is_empty() { Settled::Succeeded(json!({"removed": [which]})) } else { Settled::Repeat }
            }),
            Kind::ServiceAdd | Kind::ServiceAdopt | Kind::ServiceRestart | Kind::ServiceUpgrade => {
                let found = goal(task).map(|key| key.map(|key| self.0.past(&task.operation, &key)));
                match found {
                    Ok(Some(Past::Done(report))) => Settled::Succeeded(value(&report)),
                    Ok(Some(Past::Undone | Past::Missing)) => Settled::Failed(undone(task)),
                    Ok(Some(Past::Unknown) | None) => Settled::Unknown,
                    Err(error) => Settled::Failed(error),
                }
            }
            Kind::TemplateCreate
            | Kind::TemplateRemove
            | Kind::Clone
            | Kind::RingRollback
            | Kind::RingSnapshot
            | Kind::RingPin
            | Kind::RingUnpin
            | Kind::RingSet
            | Kind::RingRemove
            | Kind::RingPack
            | Kind::RingMove
            | Kind::NodeDrain
            | Kind::Probe => Settled::Failed(foreign(task)),
        }
    }
}

/// The version that a task leads to, by what it was asked for, else by its target; none if neither says it.
fn goal(task: &Task) -> Result<Option<Key>> {
    let text = task.target.subject.strip_prefix("service/").unwrap_or_default();
    let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
    let to = task.parameters.get("to").and_then(Value::as_str).filter(|_| task.kind == Kind::ServiceUpgrade);
    let Some(version) = to.or(version) else { return Ok(None) };
    let version = version.parse().map_err(|error: semver::Error| {
        Error::new(Fault::Invalid, format!("read the target '{}'", task.target), error.to_string())
    })?;
    Ok(Some(Key { name: name.parse()?, version }))
}

fn value(report: &Report) -> Value {
    json!({"report": report})
}

fn until(wait: bool) -> Until {
    if wait { Until::Drained } else { Until::Serving }
}

fn step_value(step: &Step) -> Value {
    let (step, instance) = match step {
        Step::Starting(instance) => ("starting", instance),
        Step::Waiting(instance) => ("waiting", instance),
        Step::Serving(instance) => ("serving", instance),
        Step::Draining(instance) => ("draining", instance),
    };
    json!({"step": step, "instance": instance})
}

/// What a task was asked with.
pub(super) fn read<T: DeserializeOwned>(task: &Task) -> Result<T> {
    let operation = || format!("read what {} of '{}' was asked with", task.kind, task.target);
    T::deserialize(&*task.parameters).map_err(|error| Error::new(Fault::Invalid, operation(), error.to_string()))
}

/// It was begun, and did not come to its end.
pub(super) fn undone(task: &Task) -> Error {
    let operation = format!("{} of '{}'", task.kind, task.target);
    Error::new(Fault::State, operation, "the daemon ended while it was being done, and everything is as it was before")
}

/// The kinds that an executor is for are named with it.
pub(super) fn foreign(task: &Task) -> Error {
    Error::new(Fault::Unsupported, format!("carry out {}", task.kind), "this is not for who was asked")
}
