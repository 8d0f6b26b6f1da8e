//! All numbers as OpenMetrics text: what was counted here, and a [`Snapshot`] of what is looked up when somebody asks.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{
    CALLS, CONNECTIONS_REFUSED, Clones, Durations, LEASES_LOST, OPERATION_CONFLICTS, OPERATION_DURATIONS,
    OPERATIONS_ACCEPTED, OPERATIONS_REFUSED, REGISTRY_DURATIONS, REGISTRY_FAILURES, Resolved, SERVICE_CHANGES,
    SERVICE_CUT, Tally,
};

/// What the text is, for those who fetch it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is so at the moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The program that tells this.
    pub process: Process,
    /// Connections of the control socket.
    pub connections: usize,
    /// How many versions of services are in a state, for every state.
    pub services: Vec<(&'static str, u64)>,
    /// How many templates are in a state, for every state.
    pub templates_by_state: Vec<(&'static str, u64)>,
    /// The templates, by name.
    pub templates: Vec<(String, Template)>,
    /// Rings, by owner.
    pub rings: Vec<(String, Rings)>,
    /// Whether all rings were looked at.
    pub rings_complete: bool,
    /// What other processes have counted.
    pub tally: Tally,
    /// Operations that are not at their end.
    pub work: Work,
}

/// The program that tells.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// Its version.
    pub version: String,
    /// When it began to count, in seconds since 1970.
    pub started: f64,
    /// Bytes in memory; nothing where that cannot be read.
    pub resident: Option<u64>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
}

/// A template at the moment.
#[derive(Debug, Clone, Default)]
pub struct Template {
    /// Sandboxes that wait for clones.
    pub sandboxes: u64,
    /// How many are to wait.
    pub wanted: u64,
    /// Requests that wait for a sandbox.
    pub waiting: u64,
    /// How often a keeper that had ended got a successor.
    pub restarts: u64,
    /// Its clones, of all keepers.
    pub clones: Clones,
}

/// The rings of an owner.
#[derive(Debug, Clone, Default)]
pub struct Rings {
    /// How many.
    pub rings: u64,
    /// Entries of all.
    pub entries: u64,
    /// Bytes on disk of what is packed.
    pub bytes: u64,
}

/// Operations that are not at their end.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Those that wait to be begun.
    pub queued: u64,
    /// Those that are carried out.
    pub running: u64,
    /// How long the oldest of those that wait has waited.
    pub oldest: Duration,
}

/// All numbers.
///
/// # Errors
/// Those of formatting, of which there are none in memory.
pub fn page(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut page = String::with_capacity(16 << 10);
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// A metric: its name without `regen_`, unit and suffix; the unit; the help; the labels.
struct Metric<'a, const LABELS: usize>(&'a str, Option<Unit>, &'a str, [&'static str; LABELS]);

/// Where metrics are written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page(encoder);
        self.tell_process(&mut page)?;
        self.tell_control(&mut page)?;
        self.tell_services(&mut page)?;
        self.tell_operations(&mut page)?;
        self.tell_rings(&mut page)?;
        self.tell_templates(&mut page)?;
        tell_registry(&mut page)
    }
}

impl Snapshot {
    fn tell_process(&self, page: &mut Page<'_>) -> fmt::Result {
        let Process { version, started, resident, open_fds } = &self.process;
        page.info("build", "The program that counts.", &[("version", version.as_str())])?;
        let metric =
            Metric("process_start_time", Some(Unit::Seconds), "When the daemon began to count, since 1970.", []);
        page.gauges(metric, [([], *started)])?;
        let metric = Metric("process_resident_memory", Some(Unit::Bytes), "Memory of the daemon.", []);
        page.numbers(metric, resident.map(|bytes| ([], bytes)))?;
        let metric = Metric("process_open_fds", None, "Open file descriptors of the daemon.", []);
        page.numbers(metric, open_fds.map(|number| ([], number)))
    }

    fn tell_control(&self, page: &mut Page<'_>) -> fmt::Result {
        let metric = Metric("connections", None, "Connections of the control socket.", []);
        page.numbers(metric, [([], u64::try_from(self.connections).unwrap_or(u64::MAX))])?;
        let metric =
            Metric("connections_refused", None, "Connections of the control socket that were refused.", ["reason"]);
        page.counters(metric, CONNECTIONS_REFUSED.read())?;
        page.counters(Metric("calls", None, "Calls of the control socket.", ["method", "outcome"]), CALLS.read())
    }

    fn tell_services(&self, page: &mut Page<'_>) -> fmt::Result {
        let states = self.services.iter().map(|(state, number)| ([(*state).to_owned()], *number));
        page.numbers(Metric("services", None, "Versions of services.", ["state"]), states)?;
        let metric = Metric("service_changes", None, "Changes of services.", ["service", "change", "outcome"]);
        page.counters(metric, SERVICE_CHANGES.read())?;
        let help = "Connections that old instances had when they were ended.";
        page.counters(Metric("service_cut_connections", None, help, ["service"]), SERVICE_CUT.read())?;
        let resolves = Resolved::ALL.map(|how| ([how.word().to_owned()], how.counter().load(Ordering::Relaxed)));
        page.counters(Metric("resolves", None, "Questions who serves a version.", ["outcome"]), resolves)
    }

    fn tell_operations(&self, page: &mut Page<'_>) -> fmt::Result {
        let states = [("queued", self.work.queued), ("running", self.work.running)];
        let states = states.map(|(state, number)| ([state.to_owned()], number));
        page.numbers(Metric("operations", None, "Operations that are not at their end.", ["state"]), states)?;
        let help = "How long the oldest operation has waited that waits to be begun.";
        let oldest = self.work.oldest.as_secs_f64();
        page.gauges(Metric("operation_oldest", Some(Unit::Seconds), help, []), [([], oldest)])?;
        let metric = Metric("operations_accepted", None, "Operations that were taken on.", ["kind"]);
        page.counters(metric, OPERATIONS_ACCEPTED.read())?;
        let help = "Operations that were refused because another one has what they need.";
        page.counters(Metric("operation_conflicts", None, help, ["kind"]), OPERATION_CONFLICTS.read())?;
        let help = "Operations that were refused for another reason than a conflict.";
        page.counters(Metric("operations_refused", None, help, ["reason"]), OPERATIONS_REFUSED.read())?;
        let help = "Operations from when they were taken on to their end.";
        let metric = Metric("operation_duration", Some(Unit::Seconds), help, ["kind", "state"]);
        page.durations(metric, OPERATION_DURATIONS.read())
    }

    fn tell_rings(&self, page: &mut Page<'_>) -> fmt::Result {
        let of =
            |number: fn(&Rings) -> u64| self.rings.iter().map(move |(owner, rings)| ([owner.clone()], number(rings)));
        page.numbers(Metric("rings", None, "Rings.", ["owner"]), of(|rings| rings.rings))?;
        page.numbers(Metric("ring_entries", None, "Entries of rings.", ["owner"]), of(|rings| rings.entries))?;
        let metric = Metric("ring", Some(Unit::Bytes), "Bytes on disk of packed entries.", ["owner"]);
        page.numbers(metric, of(|rings| rings.bytes))?;
        let help = "Whether all rings were looked at: 0 if there are too many.";
        page.numbers(Metric("ring_scan_complete", None, help, []), [([], u64::from(self.rings_complete))])?;
        let help = "Entries that left their ring because it was over its limits.";
        page.counters(Metric("ring_evictions", None, help, []), [([], self.tally.evicted)])?;
        let packs = &self.tally.packs;
        let metric = Metric("pack_duration", Some(Unit::Seconds), "Layers that were packed.", []);
        page.durations(metric, [([], packs.durations.clone())])?;
        let metric = Metric("pack_failures", None, "Layers that could not be packed.", []);
        page.counters(metric, [([], packs.failed)])?;
        let metric = Metric("pack_read", Some(Unit::Bytes), "Bytes on disk of the layers that were packed.", []);
        page.counters(metric, [([], packs.read)])?;
        page.counters(Metric("pack_written", Some(Unit::Bytes), "Bytes of packs.", []), [([], packs.written)])
    }

    fn tell_templates(&self, page: &mut Page<'_>) -> fmt::Result {
        let of = |number: fn(&Template) -> u64| {
            self.templates.iter().map(move |(name, template)| ([name.clone()], number(template)))
        };
        let states = self.templates_by_state.iter().map(|(state, number)| ([(*state).to_owned()], *number));
        page.numbers(Metric("templates", None, "Templates.", ["state"]), states)?;
        let help = "Sandboxes that wait for clones.";
        page.numbers(Metric("template_sandboxes", None, help, ["template"]), of(|template| template.sandboxes))?;
        let help = "Sandboxes that are to wait for clones.";
        page.numbers(Metric("template_sandboxes_wanted", None, help, ["template"]), of(|template| template.wanted))?;
        let help = "Requests for a clone that wait for a sandbox.";
        page.numbers(Metric("template_waiting_requests", None, help, ["template"]), of(|template| template.waiting))?;
        let help = "Keepers of templates that had ended and got a successor.";
        page.counters(Metric("template_restarts", None, help, ["template"]), of(|template| template.restarts))?;
        let help = "Clones that were made, from the request to the answer.";
        let durations =
            self.templates.iter().map(|(name, template)| ([name.clone()], template.clones.durations.clone()));
        page.durations(Metric("clone_duration", Some(Unit::Seconds), help, ["template"]), durations)?;
        let metric = Metric("clone_failures", None, "Clones that could not be made.", ["template"]);
        page.counters(metric, of(|template| template.clones.failed))
    }
}

fn tell_registry(page: &mut Page<'_>) -> fmt::Result {
    let metric = Metric("registry_request_duration", Some(Unit::Seconds), "Requests to the registry.", ["call"]);
    page.durations(metric, REGISTRY_DURATIONS.read())?;
    let metric = Metric("registry_failures", None, "Requests to the registry without an answer.", ["call", "sort"]);
    page.counters(metric, REGISTRY_FAILURES.read())?;
    let metric = Metric("leases_lost", None, "Leases that ended though they were to be kept.", []);
    page.counters(metric, [([], LEASES_LOST.load(Ordering::Relaxed))])
}

impl Page<'_> {
    /// Each value, written by `write`, under its labels.
    fn each<T, const LABELS: usize>(
        &mut self,
        Metric(name, unit, help, labels): Metric<'_, LABELS>,
        sort: MetricType,
        values: impl IntoIterator<Item = ([String; LABELS], T)>,
        write: impl Fn(&mut MetricEncoder<'_>, &T) -> fmt::Result,
    ) -> fmt::Result {
        let name = format!("regen_{name}");
        let mut encoder = self.0.encode_descriptor(&name, help, unit.as_ref(), sort)?;
        for (words, value) in values {
            if LABELS == 0 {
                write(&mut encoder, &value)?;
            } else {
                let pairs: Vec<_> = labels.iter().copied().zip(words.iter().map(String::as_str)).collect();
                write(&mut encoder.encode_family(&pairs)?, &value)?;
            }
        }
        Ok(())
    }

    fn counters<const LABELS: usize>(
        &mut self,
        metric: Metric<'_, LABELS>,
        values: impl IntoIterator<Item = ([String; LABELS], u64)>,
    ) -> fmt::Result {
        self.each(metric, MetricType::Counter, values, |encoder, value| {
            encoder.encode_counter::<NoLabelSet, _, u64>(value, None)
        })
    }

    fn numbers<const LABELS: usize>(
        &mut self,
        metric: Metric<'_, LABELS>,
        values: impl IntoIterator<Item = ([String; LABELS], u64)>,
    ) -> fmt::Result {
        self.each(metric, MetricType::Gauge, values, |encoder, value| encoder.encode_gauge(value))
    }

    fn gauges<const LABELS: usize>(
        &mut self,
        metric: Metric<'_, LABELS>,
        values: impl IntoIterator<Item = ([String; LABELS], f64)>,
    ) -> fmt::Result {
        self.each(metric, MetricType::Gauge, values, |encoder, value| encoder.encode_gauge(value))
    }

    fn durations<const LABELS: usize>(
        &mut self,
        metric: Metric<'_, LABELS>,
        values: impl IntoIterator<Item = ([String; LABELS], Durations)>,
    ) -> fmt::Result {
        self.each(metric, MetricType::Histogram, values, |encoder, value| {
            encoder.encode_histogram::<NoLabelSet>(value.seconds(), value.count(), &value.buckets(), None)
        })
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        let name = format!("regen_{name}");
        self.0.encode_descriptor(&name, help, None, MetricType::Info)?.encode_info(&labels)
    }
}
