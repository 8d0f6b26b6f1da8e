//! One request to a registry: over which scheme, with which token, and again where that may help.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use super::challenge::{self, Challenge};
use super::credential::{self, Credential};
use super::reference::Reference;
use crate::error::{Context, Error, Kind, Result, quote};

/// How often a request is made that fails in passing.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A registry that asks for a longer pause is asked again sooner, and at last given up.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
/// How long one read or write may stand still. A registry that was sent a large blob looks at all of it before it answers.
const STILL: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(300);
const REDIRECTS: u32 = 5;
/// Tokens and messages are short.
const TEXT_CAP: u64 = 1 << 20;
/// Where systems keep the authorities that they trust.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Whether a registry has to prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// By a certificate that the system trusts, or one of `/etc/containers/certs.d/HOST`.
    Verified,
    /// Not at all: without a certificate, or without TLS.
    Anyone,
}

/// Whether a request may be made again if nobody knows whether it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or the same.
    Safe,
    /// Whoever makes it has to begin further up.
    Never,
}

/// What a request carries.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Nothing,
    Text(&'a [u8]),
    /// A part of a file.
    Part(Part<'a>),
}

/// A part of a file that goes out.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub file: &'a File,
    /// Where it begins.
    pub from: u64,
    pub length: u64,
    /// Told up to where the file has left.
    pub tell: &'a dyn Fn(u64),
}

/// A request.
pub(super) struct Call<'a> {
    /// For messages, with its object.
    pub operation: &'a str,
    pub method: Method,
    /// Path and query.
    pub target: &'a str,
    pub headers: Vec<(HeaderName, String)>,
    pub payload: Payload<'a>,
    pub repeat: Repeat,
}

/// The way to a registry.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    agent: Agent,
    base: String,
    host: String,
    /// `repository:NAME:pull,push`, and others that are read.
    scopes: Vec<String>,
    credential: Option<Credential>,
    /// The header that the registry asked for, once it has.
    authorization: Option<String>,
}

impl Transport {
    /// Finds out how the registry of a repository is spoken to.
    ///
    /// # Errors
    /// [`Kind::System`] if it cannot be reached, those of reading credentials and authorities.
    pub fn open(reference: &Reference, trust: Trust) -> Result<Self> {
        let authority = reference.authority();
        let mut transport = Self {
            agent: agent(reference.host(), trust)?,
            base: format!("https://{authority}"),
            host: reference.host().to_owned(),
            scopes: vec![format!("repository:{}:pull,push", reference.repository())],
            credential: credential::find(reference.host(), reference.repository())?,
            authorization: None,
        };
        let operation = format!("reach registry '{}'", reference.host());
        match (transport.knock(), trust) {
            (Ok(()), _) => Ok(transport),
            (Err(error), Trust::Verified) => Err(transport.unreachable(&operation, &error, trust)),
            (Err(_), Trust::Anyone) => {
                transport.base = format!("http://{authority}");
                transport.knock().map_err(|error| transport.unreachable(&operation, &error, trust))?;
                Ok(transport)
            }
        }
    }

    /// Asks for the right to read another repository, too.
    pub fn reads_also(&mut self, repository: &str) {
        self.scopes.push(format!("repository:{repository}:pull"));
    }

    fn unreachable(&self, operation: &str, error: &ureq::Error, trust: Trust) -> Error {
        let error_line = broken(operation, error);
        if is_silence(error) {
            return error_line.next("see whether it runs there, and whether this machine may reach it");
        }
        if error.to_string().contains("certificate") {
            let place = format!("put that of its authority into /etc/containers/certs.d/{}/ca.crt", self.host);
            return error_line.next(format!("{place}, or give '--tls-verify=false' to take any"));
        }
        error_line.next(match trust {
            Trust::Verified => "for a registry without TLS, give '--tls-verify=false'",
            Trust::Anyone => "see whether what answers there is a registry",
        })
    }

    /// Whatever it answers, it is there.
    fn knock(&self) -> Result<(), ureq::Error> {
        let request = Request::get(format!("{}/v2/", self.base)).body(())?;
        self.agent.run(request).map(drop)
    }

    /// Makes a request, as often as it may and has to be made. What is answered with 4xx, other than for want of a token,
    /// is the caller's.
    ///
    /// # Errors
    /// [`Kind::System`] if there is no answer; [`Kind::State`] if the registry refuses who we are.
    pub fn call(&mut self, call: &Call<'_>) -> Result<Response<Body>> {
        let mut asked = false;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let last = attempt >= ATTEMPTS || call.repeat == Repeat::Never;
            match self.run(call) {
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !asked => {
                    asked = true;
                    attempt -= 1;
                    self.authorize(call.operation, &response)?;
                }
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                    return Err(self.refused(call.operation));
                }
                Ok(response) if !is_passing(response.status()) => return Ok(response),
                Ok(response) if last => return Err(self.refusal(call.operation, response)),
                Ok(response) => {
                    sleep(asked_pause(response.headers()).max(pause(attempt)));
                    continue;
                }
                Err(error) if last || !may_pass(&error) => return Err(broken(call.operation, &error)),
                Err(error) => tracing::debug!("{}: {error}; again", call.operation),
            }
            if !asked || attempt > 0 {
                sleep(pause(attempt));
            }
        }
    }

    /// The path and query of a place that the registry named for an upload, if it is its own.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it names another host: what is sent there would leave the registry that was chosen.
    pub fn own_target(&self, operation: &str, location: &str) -> Result<String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(location.to_owned());
        }
        let authority =
            |url: &str| url.split_once("://").map(|(_, rest)| rest.split(['/', '?']).next().unwrap_or(rest).to_owned());
        let own = authority(&self.base);
        let rest = location.strip_prefix("http://").or_else(|| location.strip_prefix("https://"));
        match rest.and_then(|rest| rest.find('/').map(|start| &rest[start..])) {
            // A proxy before the registry may have it speak of another scheme.
            Some(path) if authority(location) == own => Ok(path.to_owned()),
            _ => {
                let shown: String = location.chars().take(200).collect();
                let cause = format!("it wants the upload at '{}', which is not its own", shown.escape_debug());
                Err(Error::new(Kind::Invalid, operation, cause))
            }
        }
    }

    fn run(&self, call: &Call<'_>) -> Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(call.method.clone()).uri(format!("{}{}", self.base, call.target));
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let follow = if [Method::GET, Method::HEAD].contains(&call.method) { REDIRECTS } else { 0 };
        let (mut source, size) = match call.payload {
            Payload::Nothing => {
                let request = self.agent.configure_request(request.body(())?);
                return self.agent.run(request.max_redirects(follow).build());
            }
            Payload::Text(text) => (Source::Text(text), text.len() as u64),
            Payload::Part(part) => {
                let mut file = part.file;
                file.seek(SeekFrom::Start(part.from))?;
                (Source::Part { part, sent: 0 }, part.length)
            }
        };
        let request = request.header(CONTENT_LENGTH, size).body(SendBody::from_reader(&mut source))?;
        self.agent.run(self.agent.configure_request(request).max_redirects(follow).build())
    }

    /// Gets what a registry asks for.
    fn authorize(&mut self, operation: &str, response: &Response<Body>) -> Result<()> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = headers.iter().filter_map(|value| value.to_str().ok()).find_map(challenge::parse);
        let header = match (challenge, &self.credential) {
            (Some(Challenge::Basic), Some(credential)) => credential.header(),
            (Some(Challenge::Bearer { realm, service }), _) => self.token(operation, &realm, service.as_deref())?,
            (Some(Challenge::Basic), None) => return Err(self.refused(operation)),
            (None, _) => {
                let cause = format!("registry '{}' asks for what is neither a password nor a token", self.host);
                return Err(Error::new(Kind::Unsupported, operation, cause));
            }
        };
        self.authorization = Some(header);
        Ok(())
    }

    fn token(&self, operation: &str, realm: &str, service: Option<&str>) -> Result<String> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let operation = format!("{operation}: get a token");
        let secure = realm.starts_with("https://");
        if !(secure || realm.starts_with("http://") && self.base.starts_with("http://")) {
            let shown: String = realm.chars().take(200).collect();
            let cause = format!("registry '{}' names '{}' for it, which is not https", self.host, shown.escape_debug());
            return Err(Error::new(Kind::Invalid, operation, cause));
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        let service = service.map_or_else(String::new, |service| format!("service={}&", percent(service)));
        let scopes: Vec<_> = self.scopes.iter().map(|scope| format!("scope={}", percent(scope))).collect();
        let url = format!("{realm}{separator}{service}{}", scopes.join("&"));
        let mut request = Request::get(url);
        if let Some(credential) = &self.credential {
            request = request.header(AUTHORIZATION, credential.header());
        }
        let request = request.body(()).map_err(|error| broken(&operation, &error.into()))?;
        let mut response = self.agent.run(request).map_err(|error| broken(&operation, &error))?;
        if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&response.status()) {
            return Err(self.refused(&operation));
        }
        if !response.status().is_success() {
            return Err(self.refusal(&operation, response));
        }
        let text = read_capped(&mut response, TEXT_CAP).context(|| operation.clone())?;
        let answer: Answer = serde_json::from_slice(&text).context(|| operation.clone())?;
        let token =
            answer.token.or(answer.access_token).filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        let token = token.ok_or_else(|| Error::new(Kind::Invalid, operation, "there is none in the answer"))?;
        Ok(format!("Bearer {token}"))
    }

    /// What a registry says against a request, in its own words where it has some.
    pub(super) fn refusal(&self, operation: &str, mut response: Response<Body>) -> Error {
        let status = response.status();
        let text = read_capped(&mut response, TEXT_CAP).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let said = |field: &str| {
            value.pointer(&format!("/errors/0/{field}")).and_then(serde_json::Value::as_str).unwrap_or("")
        };
        let words: Vec<String> = [said("code"), said("message")]
            .iter()
            .filter(|word| !word.is_empty())
            .map(|word| word.chars().take(200).collect::<String>().escape_debug().to_string())
            .collect();
        let kind = if status == StatusCode::NOT_FOUND { Kind::NotFound } else { Kind::State };
        let said = if words.is_empty() { String::new() } else { format!(" ({})", words.join(": ")) };
        let error = Error::new(kind, operation, format!("the registry answers {status}{said}"));
        match status {
            StatusCode::FORBIDDEN => {
                error.next(format!("ask for the right to it, or log in as who has it: 'podman login {}'", self.host))
            }
            status if is_passing(status) => error.next("try again later"),
            _ => error,
        }
    }

    fn refused(&self, operation: &str) -> Error {
        let cause = match self.credential {
            Some(_) => format!("registry '{}' does not accept the credentials for it", self.host),
            None => format!("registry '{}' wants credentials, and none are kept for it", self.host),
        };
        Error::new(Kind::State, operation, cause)
            .next(format!("log in: 'podman login {0}' or 'skopeo login {0}'", self.host))
    }
}

/// Where the bytes of a request come from.
enum Source<'a> {
    Text(&'a [u8]),
    Part { part: Part<'a>, sent: u64 },
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Text(text) => text.read(buffer),
            Self::Part { part, sent } => {
                let length = part.file.take(part.length - *sent).read(buffer)?;
                *sent += length as u64;
                (part.tell)(part.from + *sent);
                Ok(length)
            }
        }
    }
}

fn agent(host: &str, trust: Trust) -> Result<Agent> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    tls = match trust {
        Trust::Verified => tls.root_certs(RootCerts::new_with_certs(&authorities(host)?)),
        Trust::Anyone => tls.disable_verification(true).root_certs(RootCerts::new_with_certs(&[])),
    };
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(trust == Trust::Verified)
        .max_redirects_will_error(true)
        .tls_config(tls.build())
        .user_agent(concat!("regen/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(STILL))
        .timeout_per_write(Some(STILL))
        .timeout_recv_response(Some(ANSWER));
    Ok(config.build().new_agent())
}

/// Whom the system trusts, and whom for this host.
fn authorities(host: &str) -> Result<Vec<Certificate<'static>>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let mut files: Vec<_> = match named {
        Some(file) => vec![file],
        None => AUTHORITIES.iter().map(Path::new).filter(|path| path.exists()).take(1).map(Path::to_owned).collect(),
    };
    let own = Path::new("/etc/containers/certs.d").join(host);
    for child in fs::read_dir(own).into_iter().flatten().flatten() {
        files.extend(Some(child.path()).filter(|path| path.extension().is_some_and(|extension| extension == "crt")));
    }
    let mut found = Vec::new();
    for file in files {
        let text = fs::read(&file).context(|| format!("read certificates from {}", quote(&file)))?;
        found.extend(parse_pem(&text).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            Ok(_) | Err(_) => None,
        }));
    }
    Ok(found)
}

/// Reads a short body.
pub(super) fn read_capped(response: &mut Response<Body>, cap: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reader = response.body_mut().with_config().limit(u64::MAX).reader();
    reader.take(cap + 1).read_to_end(&mut bytes).context(|| "read the answer")?;
    if bytes.len() as u64 > cap {
        return Err(Error::new(Kind::Damaged, "read the answer", format!("it has more than {cap} bytes")));
    }
    Ok(bytes)
}

/// A request that came to no answer.
pub(super) fn broken(operation: &str, error: &ureq::Error) -> Error {
    let cause = error.to_string().chars().take(300).collect::<String>();
    Error::new(Kind::System, operation, cause)
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT
}

/// Whether nobody is there, rather than somebody else.
fn is_silence(error: &ureq::Error) -> bool {
    use ureq::Error as E;
    match error {
        E::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::TimedOut
        ),
        E::Timeout(_) | E::HostNotFound | E::ConnectionFailed => true,
        _ => false,
    }
}

/// Whether the same may succeed in a moment.
fn may_pass(error: &ureq::Error) -> bool {
    use ureq::Error as E;
    matches!(error, E::Io(_) | E::Timeout(_) | E::ConnectionFailed | E::BodyStalled | E::HostNotFound | E::Protocol(_))
}

/// How long to wait after an attempt: longer each time.
pub(super) fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE * 2_u32.pow(attempt.saturating_sub(1).min(5))
}

/// How long a registry that has too much to do wants to be left alone, as far as that is worth waiting for.
fn asked_pause(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST_PAUSE)
}

/// How often what fails in passing is tried.
pub(super) fn attempts() -> u32 {
    ATTEMPTS
}

/// As a query has it.
pub(super) fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use ureq::http::header::HeaderValue;

    use super::*;

    #[test]
    fn a_registry_is_left_alone_for_as_long_as_it_asks_but_not_for_ever() {
        let asks = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            asked_pause(&headers).as_secs()
        };
        assert_eq!(["0", "7", " 7 ", "86400", "-1", "soon", ""].map(asks), [0, 7, 7, 60, 0, 0, 0]);
        assert_eq!(asked_pause(&HeaderMap::new()), Duration::ZERO);
    }
}
