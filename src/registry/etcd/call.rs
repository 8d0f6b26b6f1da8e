//! A question to the members, asked of one after the other until one answers or the time is over.
//!
//! ```text
//!               unsent, distrusted   declined, forgotten        lost
//! Read          next member          next member, later again   next member, later again
//! Repeatable    next member          next member, later again   next member, later again; at the end Indeterminate
//! Once          next member          next member, later again   Indeterminate
//! ```
//!
//! When a whole round reached nobody, that is the answer; else there are rounds until the time is over, because an etcd
//! that chooses a leader is back in a second or two.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, Error as ClientError, GetOptions, GetResponse, LeaseGrantResponse, LeaseRevokeResponse,
    ResponseHeader, TxnResponse,
};
use tokio::time::{Instant, sleep, timeout};

use super::fault::{self, Fault, Refusal};
use super::member::Member;
use super::settings::Settings;
use crate::error::{Error, Kind, Result};
use crate::registry::{Answer, Failure, Renewed};

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(50);

/// What asking twice does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It changes nothing.
    Read,
    /// It changes something, and the second time nothing more.
    Repeatable,
    /// It must not be asked twice if the first time may have been heard.
    Once,
}

/// An answer, which may say what cluster it is from.
pub(super) trait Header {
    /// The number of the cluster; none if it does not tell.
    fn cluster(&self) -> Option<u64> {
        None
    }
}

macro_rules! tell {
    ($($answer:ty),*) => {
        $(impl Header for $answer {
            fn cluster(&self) -> Option<u64> {
                self.header().map(ResponseHeader::cluster_id)
            }
        })*
    };
}

tell!(GetResponse, TxnResponse, LeaseGrantResponse, LeaseRevokeResponse);

impl Header for () {}
impl Header for Client {}
impl Header for Renewed {}

/// The members, and who answered last.
pub(super) struct Cluster {
    settings: Settings,
    options: ConnectOptions,
    members: Vec<Member>,
    /// The index of the member that is asked first.
    first: AtomicUsize,
    /// The number of the cluster; 0 as long as nobody told.
    identity: AtomicU64,
}

/// What went wrong in the rounds of a question so far.
#[derive(Debug, Default)]
struct Tried {
    /// Of each member, what it said last.
    faults: Vec<(usize, Fault)>,
    /// Whether it may have been heard.
    lost: bool,
}

impl Cluster {
    /// Reads the files that the settings name, and connects to nobody yet.
    pub(super) fn new(settings: Settings) -> Result<Self> {
        let options = settings.options()?;
        let members = settings.endpoints.iter().map(|address| Member::new(address.clone(), settings.url(address)));
        let members: Vec<_> = members.collect();
        // All machines name the members in one order, and should not all ask the same one.
        let first = usize::try_from(std::process::id()).unwrap_or(0) % members.len().max(1);
        Ok(Self { settings, options, members, first: first.into(), identity: AtomicU64::new(0) })
    }

    /// What every key begins with.
    pub(super) fn prefix(&self) -> &str {
        &self.settings.prefix
    }

    /// How long a request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// The number of the cluster; 0 as long as nobody told.
    pub(super) fn identity(&self) -> u64 {
        self.identity.load(Ordering::Relaxed)
    }

    /// An error about this etcd: `read from etcd 'HOST:PORT'`.
    pub(super) fn error(&self, kind: Kind, effect: Effect, cause: impl Into<String>) -> Error {
        let verb = match effect {
            Effect::Read => "read from",
            Effect::Repeatable | Effect::Once => "write to",
        };
        Error::new(kind, format!("{verb} etcd '{}'", self.settings.endpoints.join(",")), cause)
    }

    /// Asks until there is an answer; see the module's table.
    pub(super) async fn call<T, F>(&self, effect: Effect, ask: impl Fn(Client) -> F) -> Answer<T>
    where
        T: Header,
        F: Future<Output = std::result::Result<T, ClientError>>,
    {
        let deadline = Instant::now() + self.settings.timeout;
        let mut tried = Tried::default();
        loop {
            let first = self.first.load(Ordering::Relaxed);
            for index in (0..self.members.len()).map(|step| (first + step) % self.members.len()) {
                let remaining = deadline.saturating_duration_since(Instant::now());
                let limit = match effect {
                    Effect::Read | Effect::Repeatable => remaining.min(self.settings.share()),
                    Effect::Once => remaining,
                };
                let fault = match self.attempt(&self.members[index], limit, &ask).await {
                    Ok(answer) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(fault) => fault,
                };
                // Whoever asks next begins with another one.
                self.first.store((index + 1) % self.members.len(), Ordering::Relaxed);
                match self.decide(effect, &fault) {
                    Some(failure) => return Err(failure),
                    None => tried.add(index, fault),
                }
            }
            let again = tried.faults.iter().any(|(_, fault)| !matches!(fault, Fault::Unsent(_) | Fault::Distrusted(_)));
            if !again || Instant::now() + PAUSE >= deadline {
                return Err(self.give_up(effect, &tried));
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks one member, over the connection that is there or a new one.
    async fn attempt<T, F>(
        &self,
        member: &Member,
        limit: Duration,
        ask: &impl Fn(Client) -> F,
    ) -> std::result::Result<T, Fault>
    where
        T: Header,
        F: Future<Output = std::result::Result<T, ClientError>>,
    {
        let link = member.link();
        let silent = || format!("no answer within {} ms", limit.as_millis());
        let connected = timeout(limit.min(self.settings.share()), link.get_or_try_init(|| self.connect(member))).await;
        let asked = match connected {
            Ok(Ok(client)) => match timeout(limit, ask(client.clone())).await {
                Ok(Ok(answer)) => self.check_cluster(member, answer.cluster()).map(|()| answer),
                Ok(Err(error)) => Err(fault::read(&error)),
                Err(_) => Err(Fault::Lost(silent())),
            },
            Ok(Err(fault)) => Err(fault.before_asking()),
            Err(_) => Err(Fault::Unsent(silent())),
        };
        if asked.as_ref().is_err_and(Fault::spoils_connection) {
            member.forget(&link);
        }
        asked
    }

    /// Connects, says who we are, and hears whether it is the cluster that it was.
    async fn connect(&self, member: &Member) -> std::result::Result<Client, Fault> {
        let client = Client::connect([&member.url], Some(self.options.clone())).await;
        let client = client.map_err(|error| self.doubt(fault::read(&error)))?;
        let options = GetOptions::new().with_serializable().with_keys_only();
        let response = client.kv_client().get(self.prefix(), Some(options)).await;
        let response = response.map_err(|error| self.doubt(fault::read(&error)))?;
        self.check_cluster(member, response.cluster()).map(|()| client)
    }

    /// Whether an answer is from the cluster of all answers before. One that is not was not done by that one.
    fn check_cluster(&self, member: &Member, found: Option<u64>) -> std::result::Result<(), Fault> {
        let (Some(found), unknown) = (found, 0) else { return Ok(()) };
        match self.identity.compare_exchange(unknown, found, Ordering::Relaxed, Ordering::Relaxed) {
            Err(known) if known != found => Err(Fault::Refused(Refusal {
                kind: Kind::State,
                cause: format!("{} is of cluster {found:016x}, and {known:016x} was there before", member.address),
                next: Some("check cluster.registry, and restart the daemon if the cluster was made anew"),
            })),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// A member says only after all is agreed on (TLS 1.3) that it does not like a certificate, and what it says is often
    /// lost with the connection.
    fn doubt(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Lost(cause) if self.settings.certificate.is_some() => {
                Fault::Lost(format!("{cause}; perhaps it does not accept this machine's certificate"))
            }
            Fault::Lost(cause) if self.settings.ca.is_some() => {
                Fault::Lost(format!("{cause}; perhaps it asks for a certificate: see cluster.certificate"))
            }
            Fault::Lost(cause) => Fault::Lost(format!("{cause}; perhaps it wants encryption: see cluster.ca")),
            // Of none at all, some say that it is a bad one.
            Fault::Distrusted(cause) if self.settings.certificate.is_none() && cause.contains(fault::NOT_ACCEPTED) => {
                Fault::Distrusted("it asks for a certificate: set cluster.certificate and cluster.key".to_owned())
            }
            other => other,
        }
    }

    /// What a fault means for the question, if it is not to be asked of another member.
    fn decide(&self, effect: Effect, fault: &Fault) -> Option<Failure> {
        match (fault, effect) {
            (Fault::Refused(Refusal { kind, cause, next }), _) => {
                let error = self.error(*kind, effect, cause.clone());
                Some(Failure::Refused(match next {
                    Some(step) => error.next(*step),
                    None => error,
                }))
            }
            (Fault::Compacted, _) => Some(Failure::Compacted),
            (Fault::Lost(cause), Effect::Once) => Some(self.indeterminate(effect, cause)),
            (Fault::Lost(_), Effect::Read | Effect::Repeatable)
            | (Fault::Unsent(_) | Fault::Distrusted(_) | Fault::Forgotten(_) | Fault::Declined(_), _) => None,
        }
    }

    fn indeterminate(&self, effect: Effect, cause: &str) -> Failure {
        let error = self.error(Kind::System, effect, format!("{cause}; it may have been done, or not"));
        Failure::Indeterminate(error)
    }

    fn give_up(&self, effect: Effect, tried: &Tried) -> Failure {
        let cause = tried.words(&self.members);
        if tried.lost && effect == Effect::Repeatable {
            return self.indeterminate(effect, &cause);
        }
        let all = |is: fn(&Fault) -> bool| tried.faults.iter().all(|(_, fault)| is(fault));
        if all(|fault| matches!(fault, Fault::Distrusted(_))) {
            return Failure::Refused(
                self.error(Kind::Invalid, effect, cause).next("check the files that [cluster] names, and the clock"),
            );
        }
        let error = self.error(Kind::System, effect, cause);
        Failure::Unavailable(if all(|fault| matches!(fault, Fault::Unsent(_))) {
            error.next("see whether etcd runs there, or correct cluster.registry")
        } else {
            error
        })
    }
}

impl Tried {
    fn add(&mut self, index: usize, fault: Fault) {
        self.lost |= matches!(fault, Fault::Lost(_));
        self.faults.retain(|(known, _)| *known != index);
        self.faults.push((index, fault));
    }

    /// `a:2379: connection refused; b:2379: no leader`; without the address if there is one member only.
    fn words(&self, members: &[Member]) -> String {
        let words = self.faults.iter().map(|(index, fault)| {
            let cause = match fault {
                Fault::Unsent(cause)
                | Fault::Distrusted(cause)
                | Fault::Forgotten(cause)
                | Fault::Declined(cause)
                | Fault::Lost(cause) => cause,
                Fault::Compacted => "the revision is not known any more",
                Fault::Refused(refusal) => &refusal.cause,
            };
            if members.len() == 1 { cause.to_owned() } else { format!("{}: {cause}", members[*index].address) }
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("settings", &self.settings).finish_non_exhaustive()
    }
}
