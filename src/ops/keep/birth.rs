//! From an order to an instance that runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use oci_spec::runtime::LinuxNamespaceType;
use rustix::pipe::{PipeFlags, pipe_with};

use super::holding::Holding;
use super::home::Home;
use crate::error::{Context, Error, Kind, Result};
use crate::image::process::Overrides;
use crate::ops::handover::{self, HandOver};
use crate::ops::load::{self, Network, Supervised, Wish};
use crate::ops::request::RingRequest;
use crate::ops::{Place, order, save};
use crate::ring::Rebase;
use crate::ring::selector::Selector;
use crate::runtime::{CreateRequest, Created, Starter, Stdio};
use crate::service::definition::{Readiness, Source};
use crate::service::intercept;
use crate::service::message::{Order, PROTOCOL};
use crate::service::ready::notify;
use crate::sys::channel::Channel;
use crate::sys::process::{Identity, Process};
use crate::sys::signal::Blocked;

/// What a keeper was started with.
#[derive(Debug)]
pub(super) struct Commission {
    /// Where to say what came of it.
    pub channel: Channel,
    pub order: Order,
    /// Those of [`Order::inherited`].
    pub sockets: Vec<OwnedFd>,
}

/// An instance that runs.
#[derive(Debug)]
pub(super) struct Newborn {
    pub process: Process,
    pub init: Identity,
    pub holding: Holding,
    /// What it prints.
    pub output: Option<OwnedFd>,
    pub notify: Option<notify::Socket>,
    pub signals: Blocked,
    pub started: DateTime<Utc>,
    /// What gives its ring back to the instance before.
    pub handover: Option<HandOver>,
}

impl Commission {
    /// Takes it from descriptor 0.
    pub(super) fn receive() -> Result<Self> {
        let operation = || "take the order of a keeper";
        let (channel, received) = order::receive(operation(), "keepers are started by 'regen serve' alone")?;
        let order: Order = serde_json::from_slice(&received.bytes).context(operation)?;
        if order.protocol != PROTOCOL {
            let cause = format!("it speaks version {} of the protocol, this is version {PROTOCOL}", order.protocol);
            return Err(Error::new(Kind::Unsupported, operation(), cause));
        }
        if order.inherited.len() != received.descriptors.len() {
            return Err(Error::new(Kind::Invalid, operation(), "some of its sockets are missing"));
        }
        Ok(Self { channel, order, sockets: received.descriptors })
    }
}

/// Where and for whom the instance is made.
pub(super) fn place(order: &Order) -> Result<Place> {
    Place::of_order(&order.root, &order.store, order.config.as_deref())
}

/// Takes over a program that runs.
fn adopt(order: &Order, identity: &Identity) -> Result<Newborn> {
    let gone = || Error::new(Kind::NotFound, format!("adopt process {}", identity.pid), "it has ended");
    let process = identity.open()?.ok_or_else(gone)?;
    let holding = Holding::adopt(order, &process)?;
    let (init, signals, started) = (identity.clone(), Blocked::all()?, Utc::now());
    Ok(Newborn { process, init, holding, output: None, notify: None, signals, started, handover: None })
}

/// Makes the instance and starts it. On failure nothing of it is left.
pub(super) fn bear(order: &Order, place: &Place, home: &Home, sockets: Vec<OwnedFd>) -> Result<Newborn> {
    if let Some(identity) = &order.adopt {
        return adopt(order, identity);
    }
    let signals = Blocked::all()?;
    let mut holding = Holding::prepare(order, sockets)?;
    let notify = match order.definition.ready {
        Readiness::Notify => Some(home.listen_for_readiness()?),
        Readiness::Tcp | Readiness::Http(_) | Readiness::None => None,
    };
    let (output, print) = pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe for the instance's output")?;
    let streams = streams(print)?;
    let (listen, intercept) = (holding.to_pass_on()?, holding.intercept());
    let manager = order.cgroup_manager.parse()?;
    let wish = wish(order, place, notify.as_ref().map(|_| home.notify()))?;
    let mut network = intercept::Network::Shared;
    let mut live = load::create(place, wish, |request| {
        network = network_of(request);
        leave_terminal_out(request);
        request.cgroups = manager;
        request.starter = Starter::Creator;
        request.mask = Some(signals.before());
        request.stdio = streams;
        request.listen = listen;
        request.intercept = intercept;
    })?;
    let started = start(order, place, &live.created).and_then(|process| {
        if let Some(listener) = live.created.listener.take() {
            holding.answer_at(listener, network, &process)?;
        }
        Ok(process)
    });
    match started {
        Ok(process) => {
            let (init, started) = (live.created.init, Utc::now());
            let handover = live.handover;
            Ok(Newborn { process, init, holding, output: Some(output), notify, signals, started, handover })
        }
        Err(error) => {
            // First: then what it left, if anything, stands beside the main line.
            if let Some(handover) = &live.handover {
                handover::give_back(place, handover);
            }
            discard(order, place);
            Err(error)
        }
    }
}

fn start(order: &Order, place: &Place, created: &Created) -> Result<Process> {
    let process = created.init.open()?.ok_or_else(|| {
        Error::new(Kind::State, format!("start instance '{}'", order.instance), "its first process has ended")
    })?;
    created.start(&place.root, &order.instance)?;
    Ok(process)
}

/// What the instance's container is to be.
fn wish(order: &Order, place: &Place, notify: Option<PathBuf>) -> Result<Wish> {
    let definition = &order.definition;
    let source = match &definition.source {
        Some(Source::Bundle(directory)) => load::Source::Bundle(directory.clone()),
        Some(Source::Rootfs(directory)) => load::Source::Rootfs(directory.clone()),
        Some(Source::Image(image)) => load::Source::Image(image.parse()?),
        None => {
            let cause = "nobody has said what it is made from";
            return Err(Error::new(Kind::Invalid, format!("start service '{definition}'"), cause).next(format!(
                "say it: 'regen service upgrade {} --to VERSION --rootfs DIR -- COMMAND'",
                definition.name
            )));
        }
    };
    let mut ring = definition.ring.as_deref().map(|text| RingRequest::parse(text, &place.owner)).transpose()?;
    if let Some(ring) = &mut ring {
        if let Some(entry) = order.ring_entry {
            ring.selector = Selector::Seq(entry);
        }
        if definition.rebase {
            ring.rebase = Rebase::Allowed;
        }
    }
    Ok(Wish {
        id: order.instance.clone(),
        source,
        ring,
        default_ring: None,
        follows: order.beside.clone(),
        process: Overrides {
            command: definition.command.clone(),
            env: definition.env.clone(),
            workdir: definition.workdir.clone(),
            user: definition.user.clone(),
        },
        terminal: false,
        network: Network::Host,
        notify,
        supervised: Supervised::Here,
    })
}

/// Nothing to read, and one pipe for what is printed and what is complained about, so that the order is kept.
fn streams(print: OwnedFd) -> Result<Stdio> {
    let stdin = File::open("/dev/null").context(|| "open '/dev/null'")?;
    let stderr = print.try_clone().context(|| "duplicate a pipe")?;
    Ok(Stdio::Files { stdin: stdin.into(), stdout: print, stderr })
}

/// Nobody sits in front of a service, whatever its bundle was written for.
fn leave_terminal_out(request: &mut CreateRequest) {
    if let Some(process) = request.spec.process_mut() {
        process.set_terminal(Some(false));
    }
}

fn network_of(request: &CreateRequest) -> intercept::Network {
    let namespaces = request.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut networks = namespaces.into_iter().flatten().filter(|space| space.typ() == LinuxNamespaceType::Network);
    match networks.next() {
        Some(new) if new.path().is_none() => intercept::Network::Private,
        Some(_) | None => intercept::Network::Shared,
    }
}

/// After a failure: the first error is the one that is told.
fn discard(order: &Order, place: &Place) {
    match save::delete(place, &order.instance, true, None) {
        Err(error) if error.kind() != Kind::NotFound => {
            tracing::warn!("delete instance '{}' after a failure: {error}", order.instance);
        }
        Ok(_) | Err(_) => {}
    }
}
