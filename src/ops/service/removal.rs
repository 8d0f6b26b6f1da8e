//! The end of a service: withdrawn, drained, stopped, forgotten.

use std::sync::Arc;
use std::time::Duration;

use super::change::ENDING;
use super::core::{Claim, Core};
use super::judge::Farewell;
use super::mandate::Mandate;
use super::record::{ChangeKind, Key, Wanted};
use crate::error::{Error, Kind, Result};
use crate::ids::ContainerId;
use crate::sys::signal::Signal;

/// How its instances end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// They finish what they have.
    Drain,
    /// They are killed.
    Kill,
}

/// How long a killed instance may take to be gone.
const KILLED: Duration = Duration::from_secs(20);

impl Core {
    /// Takes services out, all at once, and returns when nothing of them is left.
    ///
    /// # Errors
    /// [`Kind::Busy`] if one of them is being changed, and then none is taken out.
    pub(super) fn remove(self: &Arc<Self>, keys: &[Key], how: Removal, mandate: &Mandate<'_>) -> Result<()> {
        let (mut claims, mut hurried) = (Vec::new(), Vec::new());
        let mut book = self.lock();
        for key in keys {
            let goes = book.get(key)?.running.as_ref().is_some_and(|running| running.change.kind == ChangeKind::Remove);
            if goes && how == Removal::Kill {
                // Whoever takes it out already gets to the end sooner.
                hurried.push(key.clone());
                continue;
            }
            let claimed = mandate
                .begin(ChangeKind::Remove)
                .and_then(|change| self.claim(&mut book, key, change, &format!("remove service '{key}'")));
            match claimed {
                Ok(claim) => claims.push(claim),
                Err(error) => {
                    // Claims are given back under this lock.
                    drop(book);
                    return Err(error);
                }
            }
        }
        drop(book);
        mandate.pass()?;
        let begun: Vec<_> = claims.iter().map(|claim| begin(claim, how)).collect();
        let mut limit = KILLED;
        for begun in begun {
            limit = limit.max(begun?);
        }
        for key in &hurried {
            self.kill_all(key)?;
        }
        for key in claims.iter().map(|claim| &claim.key).chain(&hurried) {
            self.wait_for_removal(key, limit)?;
        }
        Ok(())
    }

    fn wait_for_removal(&self, key: &Key, limit: Duration) -> Result<()> {
        self.wait_for(limit, |book| (!book.services.contains_key(key)).then_some(())).ok_or_else(|| {
            let cause = format!("its instances have not ended in {} s", limit.as_secs());
            Error::new(Kind::Busy, format!("remove service '{key}'"), cause)
                .next(format!("wait for them, or kill them: 'regen service rm --force {key}'"))
        })
    }

    fn kill_all(self: &Arc<Self>, key: &Key) -> Result<()> {
        let all = self.lock().services.get(key).map(|service| service.record.leaving.clone());
        for instance in all.unwrap_or_default() {
            self.kill(&instance)?;
            // Where that was one of several processes that serve, the others have to be told, too.
            self.part(&instance, Farewell::Stop, Duration::ZERO);
        }
        Ok(())
    }

    fn kill(&self, instance: &ContainerId) -> Result<()> {
        let init = self.lock().instances.get(instance).and_then(|seen| seen.status.as_ref()?.init.clone());
        if let Some(process) = init.map(|init| init.open()).transpose()?.flatten() {
            process.signal(Signal::KILL)?;
        }
        Ok(())
    }
}

/// Begins the end of a service; how long that may take.
fn begin(claim: &Claim<'_>, how: Removal) -> Result<Duration> {
    let (core, key) = (claim.core, &claim.key);
    if let Err(error) = core.give_back_what_is_left(key) {
        // Its state is not lost by that, and nobody starts from it again.
        tracing::error!("{error}");
    }
    let mut book = core.lock();
    let service = book.get(key)?;
    let timeout = service.record.definition.drain_timeout;
    let current = service.record.instance.clone();
    core.save(&mut book, key, |record| {
        record.wanted = Wanted::Removed;
        record.leaving.extend(record.instance.take());
    })?;
    if let Some(current) = &current {
        core.roster.withdraw(current);
    }
    core.finish_removal(&mut book, key);
    drop(book);
    match how {
        Removal::Drain => {
            if let Some(current) = &current {
                core.part(current, Farewell::Withdrawn, timeout);
            }
            Ok(timeout + ENDING)
        }
        Removal::Kill => {
            core.kill_all(key)?;
            Ok(KILLED)
        }
    }
}
