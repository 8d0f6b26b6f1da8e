//! Tasks that make and remove templates. The fence is passed under the lock of what is known of them.

use serde_json::{Value, json};

use super::service::{foreign, read, undone};
use super::{Executor, Settled, Task};
use crate::error::{Error, Kind as Fault, Result};
use crate::operation::Kind;
use crate::ops::template::{Clones, Manager, Past};
use crate::template::request::{Creation, Removal};

/// Who makes and removes templates.
#[derive(Debug)]
pub struct Template(Manager);

impl Template {
    /// The kinds that it is for.
    pub const KINDS: [Kind; 2] = [Kind::TemplateCreate, Kind::TemplateRemove];

    /// One that has this manager do it.
    #[must_use]
    pub fn new(manager: Manager) -> Self {
        Self(manager)
    }

    fn create(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        let creation: Creation = read(task)?;
        let operation = format!("create template '{}'", creation.name);
        let source = match (&creation.source, &creation.ring) {
            (Some(source), _) => source.clone(),
            (None, Some(ring)) => self.0.base_of(ring).map_err(|error| error.during(operation))?,
            (None, None) => {
                let cause = "nothing says what it is made from";
                return Err(
                    Error::new(Fault::Usage, operation, cause).next("give --rootfs, --image, --bundle or --ring")
                );
            }
        };
        let definition = creation.define(self.0.owner().clone(), source);
        let pass = || task.pass().map(drop);
        let template = self.0.create(definition, &pass, &mut |step| tell(json!({"step": step})))?;
        Ok(json!({"template": template}))
    }

    fn remove(&self, task: &Task) -> Result<Value> {
        let Removal { name, force } = read(task)?;
        let pass = || task.pass().map(drop);
        self.0.remove(&name, if force { Clones::Killed } else { Clones::Spared }, &pass)?;
        Ok(json!({"name": name}))
    }
}

impl Executor for Template {
    fn execute(&self, task: &Task, tell: &mut dyn FnMut(Value)) -> Result<Value> {
        match task.kind {
            Kind::TemplateCreate => self.create(task, tell),
            Kind::TemplateRemove => self.remove(task),
            Kind::ServiceAdd
            | Kind::ServiceAdopt
            | Kind::ServiceRestart
            | Kind::ServiceUpgrade
            | Kind::ServiceRemove
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
            | Kind::Probe => Err(foreign(task)),
        }
    }

    fn settle(&self, task: &Task) -> Settled {
        let name = task.target.subject.strip_prefix("template/").map(str::parse);
        let Some(Ok(name)) = name else { return Settled::Unknown };
        match (task.kind == Kind::TemplateRemove, self.0.past(&name)) {
            (false, Past::Kept(template)) => Settled::Succeeded(json!({"template": template})),
            (false, Past::Gone) => Settled::Failed(undone(task)),
            // Whoever removes it once more waits for the same end.
            (true, Past::Kept(_) | Past::Going) => Settled::Repeat,
            (true, Past::Gone) => Settled::Succeeded(json!({"name": name})),
            (false, Past::Going) => Settled::Unknown,
        }
    }
}
