//! What a failed attempt at a member says about what was asked: whether it may have happened, and whether to ask again.
//!
//! etcd's words are those of its `api/v3rpc/rpctypes/error.go`; they are what tells its refusals apart, because several
//! share a code.

use std::error::Error as Source;

use etcd_client::Error as ClientError;
use tonic::{Code, ConnectError, Status};

use crate::error::Kind;

/// A member has something against this machine's certificate, or against there being none.
pub(super) const NOT_ACCEPTED: &str = "it does not accept this machine's certificate";

/// How an attempt at a member failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It reached nobody.
    Unsent(String),
    /// One of the two does not accept the other's certificate; it reached nobody.
    Distrusted(String),
    /// The member knows this client no more; nothing was done. A new connection may help.
    Forgotten(String),
    /// The member cannot take it on for the moment; nothing was done.
    Declined(String),
    /// It was under way when the connection or the time ended.
    Lost(String),
    /// A revision that it names is not known any more; nothing was done.
    Compacted,
    /// The answer is no, whoever is asked; nothing was done.
    Refused(Refusal),
}

/// Why the answer is no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub kind: Kind,
    pub cause: String,
    pub next: Option<&'static str>,
}

impl Fault {
    /// The same for what should have been asked after what failed.
    pub(super) fn before_asking(self) -> Self {
        match self {
            Self::Lost(cause) => Self::Unsent(cause),
            Self::Compacted => Self::Declined("it has forgotten the newest revision".to_owned()),
            Self::Unsent(_) | Self::Distrusted(_) | Self::Forgotten(_) | Self::Declined(_) | Self::Refused(_) => self,
        }
    }

    /// Whether the next attempt at that member needs a new connection.
    pub(super) fn spoils_connection(&self) -> bool {
        match self {
            Self::Unsent(_) | Self::Distrusted(_) | Self::Forgotten(_) | Self::Lost(_) => true,
            Self::Declined(_) | Self::Compacted | Self::Refused(_) => false,
        }
    }
}

/// Reads what the client says.
pub(super) fn read(error: &ClientError) -> Fault {
    match error {
        ClientError::GRpcStatus(status) => read_status(status),
        ClientError::TransportError(error) => match certificate_words(&innermost(error)) {
            Some(words) => Fault::Distrusted(words),
            None => refuse(Kind::Invalid, &innermost(error), Some("check the files that [cluster] names")),
        },
        ClientError::InvalidArgs(_) | ClientError::InvalidUri(_) | ClientError::InvalidMetadataValue(_) => {
            refuse(Kind::Invalid, &error.to_string(), None)
        }
        other => Fault::Lost(other.to_string()),
    }
}

fn read_status(status: &Status) -> Fault {
    let chain = || std::iter::successors(Source::source(status), |error| (*error).source());
    let inner = Source::source(status).map(innermost);
    if let Some(words) = inner.as_deref().and_then(certificate_words) {
        return Fault::Distrusted(words);
    }
    if chain().any(|error| error.is::<ConnectError>()) {
        let cause = inner.unwrap_or_default();
        return Fault::Unsent(match cause.as_str() {
            "tls handshake eof" => {
                "it ends the connection instead of encrypting it; perhaps it does not speak TLS".to_owned()
            }
            _ => cause,
        });
    }
    match inner {
        // Not a member said this, but the connection to it.
        Some(cause) => Fault::Lost(cause),
        None => read_words(status.code(), status.message()),
    }
}

/// Reads what a member says.
fn read_words(code: Code, message: &str) -> Fault {
    let words = message.trim_start_matches("etcdserver: ").trim_start_matches("mvcc: ");
    let has = |part: &str| words.contains(part);
    match code {
        _ if has("no leader") || has("too many requests") || has("raft proposal dropped") || has("not capable") => {
            Fault::Declined(words.to_owned())
        }
        // The right of a token is compared before anything is changed.
        Code::Unauthenticated => Fault::Forgotten(words.to_owned()),
        _ if has("invalid auth token") || has("revision of auth store is old") => Fault::Forgotten(words.to_owned()),
        _ if has("has been compacted") => Fault::Compacted,
        _ if has("lease not found") => refuse(Kind::NotFound, "the lease is gone", None),
        _ if has("authentication failed") => refuse(
            Kind::Invalid,
            "it does not know the user, or the password is another",
            Some("check cluster.user and cluster.password-file"),
        ),
        _ if has("user name is empty") => {
            refuse(Kind::Invalid, "it asks for a user", Some("set cluster.user and cluster.password-file"))
        }
        _ if has("authentication is not enabled") => refuse(
            Kind::Invalid,
            "it knows no users",
            Some("remove cluster.user, or make users and run 'etcdctl auth enable'"),
        ),
        Code::PermissionDenied => refuse(
            Kind::Invalid,
            "the user has no right to these keys",
            Some("run 'etcdctl role grant-permission ROLE readwrite --prefix=true PREFIX' with cluster.prefix"),
        ),
        _ if has("space exceeded") => refuse(
            Kind::NoSpace,
            "etcd's database is full",
            Some("compact and defragment it, and run 'etcdctl alarm disarm'"),
        ),
        _ if has("too large") || has("larger than max") => {
            refuse(Kind::Invalid, "the changes are too large together for etcd (--max-request-bytes)", None)
        }
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => refuse(Kind::Invalid, words, None),
        Code::DataLoss => refuse(Kind::Damaged, words, None),
        // The rest may have been under way: a time that is over, a member that stops, a leader that changed.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Fault::Lost(words.to_owned()),
    }
}

fn refuse(kind: Kind, cause: &str, next: Option<&'static str>) -> Fault {
    Fault::Refused(Refusal { kind, cause: cause.to_owned(), next })
}

/// What is at the bottom of an error, in the words that system errors have everywhere here.
fn innermost(error: &(dyn Source + 'static)) -> String {
    let bottom = std::iter::successors(Some(error), |error| (*error).source()).last().unwrap_or(error);
    let text = bottom.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

/// What is wrong with certificates, where that is what an error is about. The words are rustls'.
fn certificate_words(text: &str) -> Option<String> {
    let words = if let Some((_, cause)) = text.split_once("invalid peer certificate: ") {
        match cause {
            _ if cause.contains("expired") || cause.contains("Expired") => "its certificate has expired".to_owned(),
            _ if cause.contains("not valid yet") || cause.contains("NotValidYet") => {
                "its certificate is not valid yet".to_owned()
            }
            _ if cause.contains("UnknownIssuer") || cause.contains("BadSignature") => {
                "its certificate is of another authority than cluster.ca".to_owned()
            }
            _ if cause.contains("not valid for") || cause.contains("NotValidForName") => {
                "its certificate is for another host".to_owned()
            }
            _ => format!("its certificate is not good: {cause}"),
        }
    } else if let Some((_, alert)) = text.split_once("received fatal alert: ") {
        format!("{NOT_ACCEPTED} ({alert})")
    } else if text.contains("corrupt message") {
        "it does not speak TLS: remove cluster.ca, or give etcd certificates".to_owned()
    } else {
        return None;
    };
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_happened_is_lost_and_what_did_not_is_declined() {
        let lost = |text: &str| Fault::Lost(text.to_owned());
        let declined = |text: &str| Fault::Declined(text.to_owned());
        for (code, message, fault) in [
            (Code::Unavailable, "etcdserver: no leader", declined("no leader")),
            (Code::ResourceExhausted, "etcdserver: too many requests", declined("too many requests")),
            (Code::Unknown, "raft proposal dropped", declined("raft proposal dropped")),
            (Code::Unavailable, "etcdserver: request timed out", lost("request timed out")),
            (Code::Unavailable, "etcdserver: server stopped", lost("server stopped")),
            (Code::Unavailable, "etcdserver: leader changed", lost("leader changed")),
            (Code::DeadlineExceeded, "context deadline exceeded", lost("context deadline exceeded")),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Fault::Compacted),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                Fault::Forgotten("invalid auth token".to_owned()),
            ),
        ] {
            assert_eq!(read_words(code, message), fault, "{message}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (code, message, kind, next) in [
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Kind::Invalid,
                "password-file",
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", Kind::Invalid, "cluster.user"),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", Kind::Invalid, "auth enable"),
            (Code::PermissionDenied, "etcdserver: permission denied", Kind::Invalid, "grant-permission"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Kind::NoSpace, "disarm"),
        ] {
            let Fault::Refused(refusal) = read_words(code, message) else { panic!("{message}") };
            assert_eq!(refusal.kind, kind, "{message}");
            assert!(refusal.next.unwrap().contains(next), "{message}");
        }
        let Fault::Refused(gone) = read_words(Code::NotFound, "etcdserver: requested lease not found") else {
            panic!()
        };
        assert_eq!(gone.kind, Kind::NotFound);
    }
}
