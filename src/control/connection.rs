//! One caller, from the first message to the last.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::catalog::Catalog;
use super::interface::{Answer, Call};
use super::limit::{Place, Share};
use super::message::{Fault, Following, Mode, Request, encode_answer, encode_fault};
use super::peer::{Origin, Peer};
use super::wire::{Inbox, Incoming, Wire};
use crate::error::{Error, Kind};
use crate::metrics;
use crate::sys::stream::Stream;

/// A caller who was let in.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) wire: Wire,
    pub(super) peer: Peer,
    pub(super) catalog: Arc<Catalog>,
    /// Given to the next one when this ends.
    pub(super) place: Place,
    /// Which connection of this daemon it is.
    pub(super) number: u64,
}

impl Connection {
    /// Answers calls one after the other, until the caller goes. If the daemon wants to stop while nothing is half said,
    /// the connection is left in `idle`, for another daemon to go on with.
    pub(super) fn serve(self, share: Share, idle: &Mutex<Vec<Stream>>) {
        let mut inbox = Inbox::new(share);
        let mut calls = 0;
        loop {
            let step = match self.wire.next(&mut inbox) {
                Ok(Incoming::Message(message)) => {
                    calls += 1;
                    self.answer(&message, calls)
                }
                Ok(Incoming::End) => return,
                Ok(Incoming::Stop) => break,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = step {
                return self.tell(&fault);
            }
        }
        let Self { wire, place, peer, .. } = self;
        match peer.origin {
            Origin::User { .. } => {}
            // What encrypts it is of this process. The node connects anew.
            Origin::Node(_) => return,
        }
        idle.lock().unwrap_or_else(PoisonError::into_inner).push(wire.into_stream());
        // Whoever waits for the last place to be free finds the connection.
        drop(place);
    }

    /// Answers one message, the caller's so many-th. Everything that is logged meanwhile says which request it was.
    ///
    /// # Errors
    /// A fault after which the connection is closed.
    fn answer(&self, message: &[u8], calls: u64) -> Result<(), Fault> {
        let request = Request::parse(message).map_err(|message| Fault::closing("InvalidMessage", message))?;
        let (interface, method) = request.target();
        let (mode, parameters) = (request.mode(), request.parameters());
        let call = Call { method, parameters, mode, peer: &self.peer, wire: &self.wire };
        // What callers make up is neither counted nor logged.
        let name = if self.catalog.knows(interface, method) { &*request.method } else { "unknown" };
        let span = tracing::info_span!("call", request = %format_args!("{}.{calls}", self.number), method = name);
        let _within = span.enter();
        let began = Instant::now();
        let outcome = if request.wants_upgrade() {
            Err(Fault::MethodNotImplemented(request.method.clone().into_owned()))
        } else {
            self.catalog.call(interface, &call)
        };
        let outcome = outcome.and_then(|answer| self.check_files(answer, &request.method));
        self.note(name, outcome.as_ref().err(), began.elapsed());
        match (outcome, mode) {
            (Err(fault @ (Fault::Gone | Fault::Closing { .. })), _) => Err(fault),
            (Ok(_) | Err(_), Mode::Oneway) => Ok(()),
            (Ok(answer), Mode::Once | Mode::More) => {
                let bytes = encode_answer(&answer.parameters, Following::Nothing)?;
                self.wire.send(&bytes, &answer.descriptors())
            }
            (Err(fault), Mode::Once | Mode::More) => match encode_fault(&fault, interface) {
                Some(bytes) => self.wire.send(&bytes, &[]),
                None => Err(Fault::Gone),
            },
        }
    }

    /// Open files do not leave the machine.
    fn check_files(&self, answer: Answer, method: &str) -> Result<Answer, Fault> {
        match &self.peer.origin {
            Origin::Node(_) if !answer.descriptors.is_empty() => {
                let operation = format!("answer {} with what {method} opened", self.peer.origin);
                let cause = "open files cannot go to another machine";
                Err(Error::new(Kind::Unsupported, operation, cause)
                    .next("call it there, or a method without files")
                    .into())
            }
            Origin::Node(_) | Origin::User { .. } => Ok(answer),
        }
    }

    /// Counts a call, and logs it; what the daemon could not do is worth a warning.
    fn note(&self, method: &str, fault: Option<&Fault>, took: Duration) {
        let outcome = fault.map_or("ok", Fault::name);
        metrics::call_answered(method, outcome);
        let peer = &self.peer.origin;
        let pid = match peer {
            Origin::User { pid, .. } => Some(*pid),
            Origin::Node(_) => None,
        };
        match fault.and_then(Fault::own_failure) {
            Some(message) => tracing::warn!(%peer, pid, outcome, "{message}"),
            None => tracing::debug!(%peer, pid, outcome, ms = took.as_secs_f64() * 1e3, "answered"),
        }
    }

    /// Says why the connection is about to be closed, to whoever still reads.
    fn tell(&self, fault: &Fault) {
        if let (Fault::Closing { .. }, Some(bytes)) = (fault, encode_fault(fault, "")) {
            let _ = self.wire.send(&bytes, &[]);
        }
    }
}
