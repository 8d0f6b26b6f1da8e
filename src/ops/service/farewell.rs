//! What is said to instances that are to go. A keeper that does not answer hears it later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::Core;
use super::judge::Farewell;
use super::record::Key;
use crate::error::Kind;
use crate::ids::ContainerId;
use crate::service::message::Command;
use crate::sys::process::Identity;
use crate::sys::signal::Signal;

/// When a keeper that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// What could not be said yet.
#[derive(Debug)]
pub(super) struct Overdue {
    /// When it is said again.
    pub at: Instant,
    instance: ContainerId,
    way: Farewell,
    timeout: Duration,
}

impl Core {
    /// Says farewell to an instance whose leaving is written down. What becomes of it is heard from its keeper.
    pub(super) fn part(self: &Arc<Self>, instance: &ContainerId, way: Farewell, timeout: Duration) {
        /// Clients that were just sent there may still come.
        const GRACE: Duration = Duration::from_millis(200);
        let drain = |grace, succeeded| Command::Drain { timeout, grace, succeeded };
        let said = match way {
            Farewell::Succeeded => self.ask(instance, &drain(Duration::ZERO, true)),
            Farewell::Withdrawn => self.ask(instance, &drain(GRACE, false)),
            Farewell::Stop => self.ask(instance, &Command::Stop),
            // It may have ended before anybody thought of letting it go.
            Farewell::Release => self.ask(instance, &Command::Release),
            Farewell::Clear | Farewell::Wait => Ok(()),
        };
        let mut book = self.lock();
        match said {
            Ok(()) => self.look_after(&mut book, instance),
            Err(error) if error.kind() == Kind::NotFound => self.look_after(&mut book, instance),
            Err(error) => {
                tracing::error!("{error}");
                if error.kind() == Kind::Busy {
                    let instance = instance.clone();
                    book.overdue.push(Overdue { at: Instant::now() + AGAIN, instance, way, timeout });
                    self.watch.ring();
                }
            }
        }
    }

    /// Says what could not be said before.
    pub(super) fn part_again(self: &Arc<Self>, now: Instant) {
        let mut book = self.lock();
        let due: Vec<_> = book.overdue.extract_if(.., |overdue| overdue.at <= now).collect();
        for Overdue { instance, way, timeout, .. } in due {
            let core = Arc::clone(self);
            // It may have gone meanwhile, as it was told when it did not answer.
            if book.instances.contains_key(&instance) {
                self.crew.submit(move || core.part(&instance, way, timeout));
            }
        }
    }

    /// Whether an instance that was ordered and is not wanted any more is there. Of one whose keeper was killed while it made
    /// it nothing is left after this; one that nobody listens to yet is listened to.
    pub(super) fn find_ordered(&self, key: &Key, instance: &ContainerId) -> bool {
        if self.lock().instances.contains_key(instance) {
            return true;
        }
        match self.follow(key, instance) {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => tracing::error!("{error}"),
        }
        self.lock().instances.remove(instance);
        if let Err(error) = self.clear(instance) {
            tracing::error!("{error}");
        }
        false
    }

    /// Lets go of a program that was there before us, without ending it.
    pub(super) fn abandon(&self, instance: &ContainerId) {
        let keeper = self.lock().instances.get(instance).and_then(|seen| Some(seen.status.as_ref()?.keeper.clone()));
        let killed = match keeper.as_ref().map(Identity::open) {
            Some(Ok(Some(process))) => process.signal(Signal::KILL).map(drop),
            Some(Ok(None)) | None => Ok(()),
            Some(Err(error)) => Err(error),
        };
        if let Err(error) = killed {
            tracing::error!("let go of instance '{instance}': {error}");
        }
    }
}
