//! What can be done for services whose registry cannot be used: clients are sent to the instances that serve. Nobody is
//! started, stopped or let go, because nobody knows what was wanted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::watch::{Heard, News, Watch};
use crate::error::{Context, Error, Result};
use crate::ids::ContainerId;
use crate::ops::Place;
use crate::service::keeper::{self, Keeper};
use crate::service::message::Phase;
use crate::service::roster::{Member, Roster};

/// How long to wait for what keepers say first. Who takes longer is heard later.
const FIRST_WORDS: Duration = Duration::from_secs(2);
/// What cannot be waited for is tried again after this.
const PAUSE: Duration = Duration::from_secs(1);

/// One who knows of services only what their keepers say.
#[derive(Debug, Clone)]
pub struct Bystander {
    roster: Arc<Roster>,
    reason: Arc<Error>,
}

impl Bystander {
    /// Listens to the keepers that are there.
    ///
    /// # Errors
    /// The reason itself if there are none: nobody would be helped. Else those of watching.
    pub fn open(place: &Place, reason: Error) -> Result<Self> {
        let root = place.root.path();
        let watch = Watch::new()?;
        let mut awaited = BTreeSet::new();
        for instance in keeper::list(root)? {
            let watched = match Keeper::connect(root, &instance) {
                Ok(Some(keeper)) => watch.add(keeper).map(|_| awaited.insert(instance)),
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            if let Err(error) = watched {
                tracing::warn!("{error}");
            }
        }
        if awaited.is_empty() {
            return Err(reason);
        }
        let (roster, until) = (Roster::new(), Instant::now() + FIRST_WORDS);
        while !awaited.is_empty() && Instant::now() < until {
            for news in watch.wait(Some(until))? {
                awaited.remove(&enlist(&roster, news));
            }
        }
        let theirs = Arc::clone(&roster);
        let thread = std::thread::Builder::new().name("watch".to_owned());
        thread.spawn(move || attend(&watch, &theirs)).context(|| "start the thread that watches keepers")?;
        Ok(Self { roster, reason: Arc::new(reason) })
    }

    /// Whom clients can be sent to.
    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster)
    }

    /// Why nothing else can be done.
    #[must_use]
    pub fn reason(&self) -> Error {
        let reason = Error::clone(&self.reason).during("manage services");
        let next = "then restart 'regen serve'; until then instances go on as they are";
        let both = reason.next_step().map_or_else(|| next.to_owned(), |step| format!("{step}; {next}"));
        reason.next(both)
    }
}

/// The life of the thread that watches.
fn attend(watch: &Watch, roster: &Roster) {
    loop {
        match watch.wait(None) {
            Ok(news) => news.into_iter().for_each(|news| drop(enlist(roster, news))),
            Err(error) => {
                tracing::error!("{error}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Who serves is in the roster, and nobody else.
fn enlist(roster: &Roster, News { instance, heard }: News) -> ContainerId {
    match heard {
        Heard::Status(status) if status.phase == Phase::Serving => roster.add(Member::from(&*status)),
        Heard::Status(_) | Heard::Gone | Heard::Ended => roster.withdraw(&instance),
    }
    instance
}
