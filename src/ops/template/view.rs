//! What is told of templates.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::book::{Seen, Template};
use super::record::Wanted;
use crate::ids::{ContainerId, Name};
use crate::metrics::Clones;
use crate::ops::Place;
use crate::template::client::Controller;
use crate::template::definition::{Definition, Mode, directory};
use crate::template::message::{Memory, Status};

/// What a template does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its program loads.
    Starting,
    /// It can be cloned.
    Ready,
    /// Its program did not load, or has ended; it is started again.
    Failed,
    /// It is being removed.
    Removing,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Failed, Self::Removing];

    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Removing => "removing",
        }
    }
}

/// A template, in numbers.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// Its name.
    pub name: Name,
    /// What it does.
    pub state: State,
    /// Which keeper.
    pub generation: u64,
    /// Sandboxes that wait for clones.
    pub sandboxes: u32,
    /// How many are to wait.
    pub wanted: u32,
    /// Requests that wait for a sandbox.
    pub waiting: u32,
    /// How often a keeper that had ended got a successor.
    pub restarts: u64,
    /// Clones of this keeper; nothing while none is ready.
    pub clones: Option<Clones>,
}

/// A template, in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its name.
    pub name: Name,
    /// Whose it is.
    pub owner: Name,
    /// What it does.
    pub state: State,
    /// How it is kept.
    pub mode: Mode,
    /// Which keeper: counted up each time that its program is loaded.
    pub generation: u64,
    /// Its container.
    pub container: Option<ContainerId>,
    /// The loaded program.
    pub pid: Option<i32>,
    /// Its keeper.
    pub keeper: Option<i32>,
    /// What its program says it is: `python 3.11.2`.
    pub language: Option<String>,
    /// Since when it can be cloned.
    pub since: Option<DateTime<Utc>>,
    /// Sandboxes that wait for clones.
    pub sandboxes: u32,
    /// How many are to wait.
    pub wanted: u32,
    /// Requests that wait for a sandbox.
    pub waiting: u32,
    /// Clones that were made by this keeper.
    pub clones: u64,
    /// Clones that could not be made by this keeper.
    pub failed: u64,
    /// Memory in bytes.
    pub memory: Memory,
    /// How often a keeper that had ended got a successor.
    pub restarts: u64,
    /// Why it cannot be cloned, or was not made anew.
    pub error: Option<String>,
    /// When that is tried again.
    pub retry: Option<DateTime<Utc>>,
}

/// All that is known of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// How it is.
    #[serde(flatten)]
    pub summary: Summary,
    /// What it was made to be.
    pub definition: Definition,
    /// When it was added.
    pub added: DateTime<Utc>,
    /// What its source was when its program was loaded: the digest of an image, the entry of a ring.
    pub source: Option<String>,
    /// What it does, while it is starting.
    pub step: Option<String>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

impl Template {
    /// How it is, with the numbers of now: its keeper is asked.
    pub(super) fn summary(&self, place: &Place) -> Summary {
        let now = self.now(place);
        let seen = self.lock();
        summarize(&seen, latest(&seen, now.as_ref()))
    }

    /// The numbers of now: its keeper is asked.
    pub(super) fn numbers(&self, place: &Place) -> Numbers {
        let now = self.now(place);
        let seen = self.lock();
        let Summary { name, state, generation, sandboxes, wanted, waiting, restarts, .. } =
            summarize(&seen, latest(&seen, now.as_ref()));
        // What it said before is not what it has made since.
        let now = now.filter(|now| now.generation == generation);
        let clones = now.map(|now| Clones { durations: now.durations, failed: now.failed });
        Numbers { name, state, generation, sandboxes, wanted, waiting, restarts, clones }
    }

    /// How the keeper is that clones are asked of; nothing if it does not say.
    fn now(&self, place: &Place) -> Option<Status> {
        let ready = self.lock().ready.as_ref().map(|status| status.generation);
        ready.and_then(|generation| self.ask(place, generation))
    }

    /// All that is known.
    pub(super) fn details(&self, place: &Place) -> Details {
        let summary = self.summary(place);
        let seen = self.lock();
        Details {
            summary,
            definition: seen.record.definition.clone(),
            added: seen.record.added,
            source: seen.record.mark.clone(),
            step: seen.loading.map(|_| seen.step.clone()).filter(|step| !step.is_empty()),
            notes: seen.ready.as_ref().map(|status| status.notes.clone()).unwrap_or_default(),
        }
    }

    fn ask(&self, place: &Place, generation: u64) -> Option<Status> {
        let directory = directory(&place.store, &self.key.owner, &self.key.name);
        let asked = Controller::connect(&directory, generation)
            .and_then(|keeper| keeper.map(|keeper| keeper.status()).transpose());
        asked.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        })
    }
}

/// How the keeper is or was that is ready. One that has ended meanwhile is not told.
fn latest<'a>(seen: &'a Seen, now: Option<&'a Status>) -> Option<&'a Status> {
    let last = seen.ready.as_ref()?;
    Some(now.filter(|now| now.generation == last.generation).unwrap_or(last))
}

fn summarize(seen: &Seen, status: Option<&Status>) -> Summary {
    let definition = &seen.record.definition;
    Summary {
        name: definition.name.clone(),
        owner: definition.owner.clone(),
        state: state(seen),
        mode: definition.mode,
        generation: status.map_or(seen.record.generation, |status| status.generation),
        container: status.map(|status| status.container.clone()),
        pid: status.and_then(|status| status.process.as_ref()).map(|process| process.pid),
        keeper: status.map(|status| status.keeper.pid),
        language: status.and_then(|status| status.language.clone()),
        since: status.and_then(|status| status.ready),
        sandboxes: status.map_or(0, |status| status.sandboxes),
        wanted: status.map_or(definition.pool, |status| status.wanted),
        waiting: status.map_or(0, |status| status.waiting),
        clones: status.map_or(0, |status| status.clones),
        failed: status.map_or(0, |status| status.failed),
        memory: status.map(|status| status.memory).unwrap_or_default(),
        restarts: seen.record.restarts,
        error: seen.failure.clone(),
        retry: seen.retry,
    }
}

fn state(seen: &Seen) -> State {
    // One that is being made is to go until it has come.
    let comes = seen.record.wanted == Wanted::Removed && !seen.removed;
    match (&seen.ready, seen.loading) {
        _ if seen.removed => State::Removing,
        (Some(_), _) => State::Ready,
        (None, Some(_)) => State::Starting,
        (None, None) if seen.failure.is_some() && !comes => State::Failed,
        (None, None) => State::Starting,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn a_template_is_in_one_of_four_states() {
        let template = Template::new(record(), 1).unwrap();
        let state_after = |change: fn(&mut Seen)| {
            change(&mut template.lock());
            state(&template.lock())
        };
        assert_eq!(state_after(|_| {}), State::Starting);
        assert_eq!(state_after(|seen| seen.failure = Some("it ended".into())), State::Starting);
        assert_eq!(state_after(|seen| seen.record.wanted = Wanted::Kept), State::Failed);
        assert_eq!(state_after(|seen| seen.loading = Some(2)), State::Starting);
        assert_eq!(state_after(|seen| seen.removed = true), State::Removing);
    }

    #[test]
    fn a_list_has_the_fields_that_scripts_rely_on() {
        let template = Template::new(record(), 1).unwrap();
        let summary = serde_json::to_value(summarize(&template.lock(), None)).unwrap();
        let fields: Vec<_> = summary.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "clones",
            "container",
            "error",
            "failed",
            "generation",
            "keeper",
            "language",
            "memory",
            "mode",
            "name",
            "owner",
            "pid",
            "restarts",
            "retry",
            "sandboxes",
            "since",
            "state",
            "waiting",
            "wanted",
        ];
        assert_eq!(fields, expected);
    }
}
