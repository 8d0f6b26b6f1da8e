//! How services are, as they are shown. The names of the fields are what scripts rely on.

use chrono::{DateTime, Utc};
use semver::Version;
use serde::{Deserialize, Serialize};

use super::book::{Book, Drained, Seen, Service};
use super::record::{Change, ChangeKind, Key, Wanted};
use crate::ids::{ContainerId, Name};
use crate::service::definition::Definition;
use crate::service::message::{Outcome, Phase};

/// How a version of a service is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Clients are sent to its instance.
    Serving,
    /// Its instance comes up.
    Starting,
    /// Its instance has ended, and another one is started in a while.
    Waiting,
    /// Its instance has ended, and nothing follows.
    Ended,
    /// It goes.
    Removing,
    /// Its keeper has not said how it is.
    Unknown,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Serving, Self::Starting, Self::Waiting, Self::Ended, Self::Removing, Self::Unknown];

    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Ended => "ended",
            Self::Removing => "removing",
            Self::Unknown => "unknown",
        }
    }
}

/// A version of a service, in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// How it is.
    pub state: State,
    /// Its addresses, with ports that were chosen.
    pub addresses: Vec<String>,
    /// The instance that serves, or served last.
    pub instance: Option<ContainerId>,
    /// That one's first process, while it lives.
    pub pid: Option<i32>,
    /// Whether clients can be sent there.
    pub ready: bool,
    /// Since when it serves (RFC 3339).
    pub since: Option<DateTime<Utc>>,
    /// How often an instance that had ended got a successor.
    pub restarts: u64,
    /// What is being done to it.
    pub change: Option<Change>,
    /// Why nobody serves.
    pub error: Option<String>,
}

/// All that is known of a version of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// As in the list.
    #[serde(flatten)]
    pub summary: Summary,
    /// What it is.
    pub definition: Definition,
    /// When it was added.
    pub added: DateTime<Utc>,
    /// Its instances, the one that serves first.
    pub instances: Vec<InstanceView>,
    /// How the last old instance went.
    pub drained: Option<Drained>,
    /// How its instance ended, if nothing follows.
    pub outcome: Option<Outcome>,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its container.
    pub id: ContainerId,
    /// Where it is in its life; unknown without a keeper.
    pub phase: Option<Phase>,
    /// Its first process, while it lives.
    pub pid: Option<i32>,
    /// Its keeper's process.
    pub keeper: Option<i32>,
    /// When it was started.
    pub started: Option<DateTime<Utc>>,
    /// What it says of itself.
    pub text: Option<String>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

impl Book {
    /// A line for each version of each service, in the order of names and versions.
    pub(super) fn summaries(&self) -> Vec<Summary> {
        self.services.iter().map(|(key, service)| self.summary(key, service)).collect()
    }

    fn summary(&self, key: &Key, service: &Service) -> Summary {
        let record = &service.record;
        let current = self.current(key);
        let status = current.and_then(|seen| seen.status.as_ref());
        let state = state(service, current);
        Summary {
            name: key.name.clone(),
            version: key.version.clone(),
            state,
            addresses: record.listen.iter().map(|listen| listen.address.to_string()).collect(),
            instance: record.instance.clone(),
            pid: current.and_then(pid),
            ready: state == State::Serving,
            since: status.filter(|_| state == State::Serving).and_then(|status| status.serving_since),
            restarts: record.restarts,
            change: service.running.as_ref().map(|running| running.change.clone()),
            error: service.failure.clone().filter(|_| state != State::Serving || current.is_some_and(is_orphan)),
        }
    }

    /// All that is known of one.
    pub(super) fn details(&self, key: &Key) -> Option<Details> {
        let service = self.services.get(key)?;
        let outcome = match &service.record.wanted {
            Wanted::Rest(outcome) => Some(Outcome::clone(outcome)),
            Wanted::Running | Wanted::Removed => None,
        };
        Some(Details {
            summary: self.summary(key, service),
            definition: service.record.definition.clone(),
            added: service.record.added,
            instances: service.record.instances().map(|id| self.instance(id)).collect(),
            drained: service.drained.clone(),
            outcome,
        })
    }

    fn instance(&self, id: &ContainerId) -> InstanceView {
        let seen = self.instances.get(id);
        let status = seen.and_then(|seen| seen.status.as_ref());
        InstanceView {
            id: id.clone(),
            phase: seen.and_then(Seen::phase),
            pid: seen.and_then(pid),
            keeper: seen.filter(|seen| !seen.gone).and(status).map(|status| status.keeper.pid),
            started: status.map(|status| status.started),
            text: status.and_then(|status| status.text.clone()),
            notes: notes(seen),
        }
    }
}

fn is_orphan(seen: &Seen) -> bool {
    seen.orphan.is_some()
}

fn notes(seen: Option<&Seen>) -> Vec<String> {
    let mut notes = seen.and_then(|seen| seen.status.as_ref()).map(|status| status.notes.clone()).unwrap_or_default();
    if seen.is_some_and(is_orphan) {
        notes.push("its keeper is gone".to_owned());
    }
    notes
}

fn pid(seen: &Seen) -> Option<i32> {
    if let Some(orphan) = &seen.orphan {
        return Some(orphan.pid);
    }
    let status = seen.status.as_ref().filter(|_| seen.lives())?;
    status.init.as_ref().map(|init| init.pid)
}

fn state(service: &Service, current: Option<&Seen>) -> State {
    let kind = service.running.as_ref().map(|running| running.change.kind);
    let leaving =
        service.record.wanted == Wanted::Removed && !matches!(kind, Some(ChangeKind::Add | ChangeKind::Adopt));
    if leaving {
        return State::Removing;
    }
    match (current.filter(|seen| !seen.gone).and_then(Seen::phase), current) {
        (_, Some(seen)) if seen.orphan.is_some() => State::Serving,
        (Some(Phase::Serving), _) => State::Serving,
        (Some(Phase::Starting | Phase::Ready), _) => State::Starting,
        (None, Some(seen)) if !seen.gone => State::Unknown,
        (Some(Phase::Draining | Phase::Stopping | Phase::Ended) | None, _) => match (kind, service.retry) {
            (Some(_), _) => State::Starting,
            (None, Some(_)) => State::Waiting,
            (None, None) if matches!(service.record.wanted, Wanted::Rest(_)) => State::Ended,
            (None, None) => State::Waiting,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::book::Running;
    use super::super::record::tests::{instance, record};
    use super::*;

    fn service() -> Service {
        Service::new(record(), 1)
    }

    fn seen(phase: Option<&str>) -> Seen {
        let key = Key::of(&record().definition);
        let status = phase.map(|phase| {
            serde_json::from_value(serde_json::json!({
                "protocol": 1, "instance": instance(1), "definition": record().definition, "phase": phase,
                "listen": [], "keeper": {"pid": 7, "start_time": 1, "boot_id": "b"},
                "init": {"pid": 8, "start_time": 1, "boot_id": "b"}, "started": "2026-11-22T15:24:48Z",
                "serving_since": null, "text": null, "notes": [], "outcome": null,
            }))
            .unwrap()
        });
        Seen { key, keeper: None, status, gone: false, orphan: None, clearing: false }
    }

    fn running(kind: ChangeKind) -> Option<Running> {
        Some(Running { change: Change::begin(kind).unwrap(), to: None })
    }

    #[test]
    fn a_service_is_in_one_of_six_states() {
        assert_eq!(state(&service(), Some(&seen(Some("serving")))), State::Serving);
        assert_eq!(state(&service(), Some(&seen(None))), State::Unknown);
        let waiting = Service { retry: Some(Instant::now()), ..service() };
        assert_eq!(state(&waiting, Some(&seen(Some("ended")))), State::Waiting);
        assert_eq!(state(&waiting, Some(&Seen { gone: true, ..seen(Some("serving")) })), State::Waiting);
        let orphan = Seen {
            gone: true,
            orphan: Some(serde_json::from_str(r#"{"pid": 9, "start_time": 1, "boot_id": "b"}"#).unwrap()),
            ..seen(Some("serving"))
        };
        assert_eq!((state(&waiting, Some(&orphan)), pid(&orphan)), (State::Serving, Some(9)));
        let started = Service { running: running(ChangeKind::Recover), ..service() };
        assert_eq!(state(&started, None), State::Starting);
        let restarted = Service { running: running(ChangeKind::Restart), ..service() };
        assert_eq!(state(&restarted, Some(&seen(Some("serving")))), State::Serving);
        let mut removed = service();
        removed.record.wanted = Wanted::Removed;
        assert_eq!(state(&removed, Some(&seen(Some("draining")))), State::Removing);
        removed.running = running(ChangeKind::Add);
        assert_eq!(state(&removed, None), State::Starting);
    }

    #[test]
    fn a_list_has_the_fields_that_scripts_rely_on() {
        let mut book = Book::default();
        let key = Key::of(&record().definition);
        book.services.insert(key.clone(), service());
        book.instances.insert(instance(1), seen(Some("serving")));
        let list = serde_json::to_value(book.summaries()).unwrap();
        let fields: Vec<_> = list[0].as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "addresses",
            "change",
            "error",
            "instance",
            "name",
            "pid",
            "ready",
            "restarts",
            "since",
            "state",
            "version",
        ];
        assert_eq!(fields, expected);
        assert_eq!((&list[0]["pid"], &list[0]["state"]), (&8.into(), &"serving".into()));
        let details = book.details(&key).unwrap();
        assert_eq!(details.instances[0].keeper, Some(7));
        let text = serde_json::to_string(&details).unwrap();
        assert_eq!(serde_json::from_str::<Details>(&text).unwrap(), details);
    }
}
