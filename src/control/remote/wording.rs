//! What went wrong between two ends, in words for who operates them. Pure.

use std::io;

use chrono::{DateTime, SecondsFormat};
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::error::Kind;

/// What is told of an end that is gone.
pub(super) const CLOSED: &str = "it has closed the connection";

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    /// [`Kind::Invalid`] if one end is not good for the other, which does not pass by itself; else [`Kind::System`].
    pub(super) kind: Kind,
    /// In words.
    pub(super) text: String,
}

impl Cause {
    /// Something that may be different later.
    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self { kind: Kind::System, text: text.into() }
    }

    /// Something about the other end's certificate.
    pub(super) fn lasting(text: impl Into<String>) -> Self {
        Self { kind: Kind::Invalid, text: text.into() }
    }
}

impl From<&Error> for Cause {
    fn from(error: &Error) -> Self {
        match error {
            Error::General(_) | Error::FailedToGetCurrentTime | Error::FailedToGetRandomBytes => {
                Self::passing(explain(error))
            }
            _ => Self::lasting(explain(error)),
        }
    }
}

/// What rustls says through an error of I/O, or the error itself.
impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return inner.into();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::passing(CLOSED)
            }
            io::ErrorKind::ConnectionRefused => Self::passing("nobody listens there"),
            io::ErrorKind::TimedOut => Self::passing("it does not answer"),
            _ => Self::passing(error.to_string()),
        }
    }
}

/// A cause, in one part of a line.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => explain_certificate(why),
        Error::NoCertificatesPresented => "it has sent no certificate".to_owned(),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            "what it sends is no TLS".to_owned()
        }
        Error::InappropriateHandshakeMessage { .. } | Error::InappropriateMessage { .. } => {
            "what it sends is no handshake of TLS".to_owned()
        }
        Error::PeerIncompatible(why) => format!("it speaks another TLS than 1.3: {why:?}"),
        Error::InconsistentKeys(_) => "the key does not belong to the certificate".to_owned(),
        other => other.to_string(),
    }
}

fn explain_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "the certificate has expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate has expired at {}", say(*not_after))
        }
        CertificateError::NotValidYet => "the certificate is not valid yet; compare the clocks".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("the certificate is not valid before {}, and this clock says {}", say(*not_before), say(*time))
        }
        // An authority that was made anew under the same name has another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the certificate is of another authority".to_owned()
        }
        CertificateError::NotValidForName => "the certificate is another node's".to_owned(),
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<_> = presented.iter().map(|name| plain_name(name)).collect();
            format!("the certificate is another node's: {}", names.join(", "))
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate is not for servers and clients both (extendedKeyUsage)".to_owned()
        }
        CertificateError::Revoked => "the certificate was revoked".to_owned(),
        other => format!("the certificate is not good: {other}"),
    }
}

/// What the other end says of us before it closes.
fn explain_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "it refuses this node's certificate: it has expired, or is not valid yet by its clock".to_owned()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it refuses this node's certificate: it believes another authority".to_owned()
        }
        AlertDescription::CertificateRequired => "it wants a certificate".to_owned(),
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "it refuses this node's certificate".to_owned()
        }
        other => format!("it refuses: {other:?}"),
    }
}

fn say(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    DateTime::from_timestamp(seconds, 0)
        .map_or_else(|| format!("second {seconds}"), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Names come as `DnsName("n1")`.
fn plain_name(name: &str) -> String {
    match name.split_once('"').and_then(|(_, rest)| rest.split_once('"')) {
        Some((inner, _)) => format!("'{inner}'"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_is_told_with_its_time_and_names() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext { time: at(9), not_after: at(0) };
        assert_eq!(explain(&Error::InvalidCertificate(expired)), "the certificate has expired at 1970-01-01T00:00:00Z");
        let early = CertificateError::NotValidYetContext { time: at(1), not_before: at(60) };
        assert!(explain(&Error::InvalidCertificate(early)).contains("not valid before 1970-01-01T00:01:00Z"));
        let other = CertificateError::NotValidForNameContext {
            expected: "n1".try_into().unwrap(),
            presented: vec!["DnsName(\"n2\")".to_owned()],
        };
        assert_eq!(explain(&Error::InvalidCertificate(other)), "the certificate is another node's: 'n2'");
        let inner = io::Error::other(Error::AlertReceived(AlertDescription::UnknownCA));
        let cause = Cause::from(inner);
        assert!(cause.text.ends_with("it believes another authority") && cause.kind == Kind::Invalid);
        assert_eq!(Cause::from(io::Error::from(io::ErrorKind::ConnectionReset)).kind, Kind::System);
    }
}
