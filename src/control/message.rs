//! Messages of varlink (<https://varlink.org/Method-Call>): a JSON object, then a NUL.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::error::{Context, Error, Kind, Result};

/// The most bytes of a message, its NUL not counted.
pub const MESSAGE_MAX: usize = 16 << 20;
/// The interface that every service has.
pub const STANDARD: &str = "org.varlink.service";
/// The interface of the daemon itself.
pub const CONTROL: &str = "run.regen.Control";

/// A call, as it was sent.
#[derive(Debug, Deserialize)]
pub(super) struct Request<'a> {
    /// `INTERFACE.METHOD`
    #[serde(borrow)]
    pub(super) method: Cow<'a, str>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    oneway: Option<bool>,
    #[serde(default)]
    more: Option<bool>,
    #[serde(default)]
    upgrade: Option<bool>,
}

/// How often a call wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Once.
    Once,
    /// As often as there is something to say.
    More,
    /// Not at all.
    Oneway,
}

impl<'a> Request<'a> {
    /// Reads a message without its NUL.
    pub(super) fn parse(bytes: &'a [u8]) -> std::result::Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("the message is no call: {error}"))
    }

    pub(super) fn mode(&self) -> Mode {
        match (self.oneway, self.more) {
            (Some(true), _) => Mode::Oneway,
            (_, Some(true)) => Mode::More,
            (_, _) => Mode::Once,
        }
    }

    /// Whether the caller wants to speak another protocol from here on, which nothing here does.
    pub(super) fn wants_upgrade(&self) -> bool {
        self.upgrade == Some(true)
    }

    /// The text of the parameters: an object.
    pub(super) fn parameters(&self) -> &'a str {
        self.parameters.map_or("{}", RawValue::get)
    }

    /// Interface and method.
    pub(super) fn target(&self) -> (&str, &str) {
        self.method.rsplit_once('.').unwrap_or((&self.method, ""))
    }
}

/// Reads parameters, and names the one that does not fit.
pub(super) fn parse_parameters<'a, T: Deserialize<'a>>(text: &'a str) -> std::result::Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let quoted = message.split('`').nth(1).filter(|_| message.contains(" field `"));
        let parameter = quoted.map(str::to_owned).or_else(|| parameter_at(text, &error)).unwrap_or_default();
        Fault::InvalidParameter { parameter, message }
    })
}

/// The name of the parameter in whose value an error was found.
fn parameter_at(text: &str, error: &serde_json::Error) -> Option<String> {
    let line: usize = text.split_inclusive('\n').take(error.line().checked_sub(1)?).map(str::len).sum();
    let offset = line + error.column();
    let values: std::collections::BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(text).ok()?;
    let begin = |value: &RawValue| value.get().as_ptr().addr() - text.as_ptr().addr();
    // The error is told where the value ends, or in it.
    let inside = |value: &RawValue| (begin(value)..=begin(value) + value.get().len() + 1).contains(&offset);
    values
        .iter()
        .filter(|(_, value)| inside(value))
        .max_by_key(|(_, value)| begin(value))
        .map(|(name, _)| name.to_string())
}

/// Why a call is answered with an error.
#[derive(Debug)]
pub enum Fault {
    /// There is no such interface.
    InterfaceNotFound(String),
    /// The interface has no such method.
    MethodNotFound(String),
    /// The method is known and not done here.
    MethodNotImplemented(String),
    /// A parameter is missing or says nothing valid.
    InvalidParameter {
        /// Its name, empty if it is not known.
        parameter: String,
        /// What is wrong.
        message: String,
    },
    /// The caller may not do this.
    PermissionDenied(String),
    /// The method answers more than once, and the call does not say so.
    ExpectedMore,
    /// An error of the interface itself.
    Own {
        /// Its name, without the interface's.
        name: &'static str,
        /// What it carries: an object.
        parameters: Value,
    },
    /// An error of the daemon, after which it closes the connection.
    Closing {
        /// Its name in [`CONTROL`].
        name: &'static str,
        /// What it carries: an object.
        parameters: Value,
    },
    /// The caller is gone, or we are about to go: there is nobody to answer.
    Gone,
}

impl Fault {
    /// An error of the daemon that says no more than its words.
    pub(super) fn closing(name: &'static str, message: impl Into<String>) -> Self {
        Self::Closing { name, parameters: json!({"message": message.into()}) }
    }

    /// Its name, without an interface's.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::InterfaceNotFound(_) => "InterfaceNotFound",
            Self::MethodNotFound(_) => "MethodNotFound",
            Self::MethodNotImplemented(_) => "MethodNotImplemented",
            Self::InvalidParameter { .. } => "InvalidParameter",
            Self::PermissionDenied(_) => "PermissionDenied",
            Self::ExpectedMore => "ExpectedMore",
            Self::Own { name, .. } | Self::Closing { name, .. } => name,
            Self::Gone => "Gone",
        }
    }

    /// What the daemon itself could not do, in words. Everything else is the caller's affair, who is told.
    pub(super) fn own_failure(&self) -> Option<&str> {
        match self {
            Self::Own { name: "Failed" | "Damaged" | "NoSpace", parameters }
            | Self::Closing { name: "OutOfResources", parameters } => parameters["message"].as_str(),
            Self::InterfaceNotFound(_)
            | Self::MethodNotFound(_)
            | Self::MethodNotImplemented(_)
            | Self::InvalidParameter { .. }
            | Self::PermissionDenied(_)
            | Self::ExpectedMore
            | Self::Own { .. }
            | Self::Closing { .. }
            | Self::Gone => None,
        }
    }

    /// What errors of a kind are called.
    #[must_use]
    pub fn name_of(kind: Kind) -> &'static str {
        match kind {
            Kind::Usage | Kind::Invalid => "Invalid",
            Kind::NotFound => "NotFound",
            Kind::Exists => "Exists",
            Kind::Busy => "Busy",
            Kind::State => "State",
            Kind::Damaged => "Damaged",
            Kind::NoSpace => "NoSpace",
            Kind::Unsupported => "Unsupported",
            Kind::CommandNotFound | Kind::CommandNotExecutable | Kind::System => "Failed",
        }
    }

    /// What is sent; `interface` is whose method was called. Nothing for [`Fault::Gone`].
    ///
    /// Errors of the standard interface have the parameters of the standard and no others, none where it has none, or
    /// clients that know their types could not read them: their words stand beside.
    fn encode(&self, interface: &str) -> Option<Value> {
        let standard = |name: &str, parameters: Value, message: Option<&str>| {
            let mut sent = json!({"error": format!("{STANDARD}.{name}")});
            if !parameters.is_null() {
                sent["parameters"] = parameters;
            }
            if let Some(message) = message {
                sent["message"] = message.into();
            }
            Some(sent)
        };
        let own = |interface: &str, name: &str, parameters: &Value| {
            Some(json!({"error": format!("{interface}.{name}"), "parameters": parameters}))
        };
        match self {
            Self::InterfaceNotFound(name) => standard("InterfaceNotFound", json!({"interface": name}), None),
            Self::MethodNotFound(name) => standard("MethodNotFound", json!({"method": name}), None),
            Self::MethodNotImplemented(name) => standard("MethodNotImplemented", json!({"method": name}), None),
            Self::InvalidParameter { parameter, message } => {
                standard("InvalidParameter", json!({"parameter": parameter}), Some(message))
            }
            Self::PermissionDenied(message) => standard("PermissionDenied", Value::Null, Some(message)),
            Self::ExpectedMore => {
                let message = "the method answers more than once: call it with 'more'";
                standard("ExpectedMore", Value::Null, Some(message))
            }
            Self::Own { name, parameters } => own(interface, name, parameters),
            Self::Closing { name, parameters } => own(CONTROL, name, parameters),
            Self::Gone => None,
        }
    }
}

/// Errors of rooms below become errors of the interface that are named after their kind. Every interface of ours declares
/// them: `NotFound`, `Exists`, …, each with `message` and `next`.
impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let name = Self::name_of(error.kind());
        Self::Own { name, parameters: json!({"message": error.without_next_step(), "next": error.next_step()}) }
    }
}

/// What a client makes of an error that it was answered with: the kind that its name says, and its words.
pub(super) fn error_from_wire(name: &str, parameters: &Value) -> Error {
    let kind = match name.rsplit('.').next().unwrap_or_default() {
        "NotFound" => Kind::NotFound,
        "Exists" => Kind::Exists,
        "Busy" | "TooManyConnections" => Kind::Busy,
        "State" => Kind::State,
        "Damaged" => Kind::Damaged,
        "NoSpace" => Kind::NoSpace,
        "Unsupported" | "InterfaceNotFound" | "MethodNotFound" | "MethodNotImplemented" => Kind::Unsupported,
        "Invalid" | "InvalidParameter" | "ExpectedMore" => Kind::Invalid,
        _ => Kind::System,
    };
    let own = name.starts_with("run.regen.") && !name.starts_with(CONTROL);
    let message = parameters["message"].as_str();
    let error = match message.filter(|_| own).and_then(|message| message.split_once(": ")) {
        // As it was there, so that a verb of ours tells what it would tell if it did the work itself.
        Some((operation, cause)) => Error::new(kind, operation, cause),
        None => Error::new(
            kind,
            format!("call the daemon: {name}"),
            message.map_or_else(|| parameters.to_string(), str::to_owned),
        ),
    };
    match parameters["next"].as_str() {
        Some(step) => error.next(step),
        None => error,
    }
}

/// Whether another answer follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Following {
    /// This was the last.
    Nothing,
    /// At least one.
    Something,
}

/// The bytes of an answer, with its NUL.
pub(super) fn encode_answer(parameters: &impl Serialize, following: Following) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Answer<'a, T> {
        parameters: &'a T,
        #[serde(skip_serializing_if = "Option::is_none")]
        continues: Option<bool>,
    }
    let continues = (following == Following::Something).then_some(true);
    encode(&Answer { parameters, continues })
}

/// The bytes of an error, with its NUL; nothing where nobody is left to read it.
pub(super) fn encode_fault(fault: &Fault, interface: &str) -> Option<Vec<u8>> {
    encode(&fault.encode(interface)?).ok()
}

/// The bytes of a call, with its NUL.
pub(super) fn encode_call(method: &str, parameters: &Value, mode: Mode) -> Result<Vec<u8>> {
    let mut call = json!({"method": method, "parameters": parameters});
    match mode {
        Mode::Once => {}
        Mode::More => call["more"] = Value::Bool(true),
        Mode::Oneway => call["oneway"] = Value::Bool(true),
    }
    encode(&call)
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message).context(|| "write a message")?;
    bytes.push(0);
    Ok(bytes)
}

/// An answer, as a client gets it.
#[derive(Debug, Deserialize)]
pub(super) struct Response {
    #[serde(default)]
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) parameters: Option<Box<RawValue>>,
    /// The words of an error of the standard interface.
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default)]
    continues: Option<bool>,
}

impl Response {
    pub(super) fn following(&self) -> Following {
        if self.continues == Some(true) { Following::Something } else { Following::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Parameters {
        service: String,
        #[serde(default)]
        max_lines: Option<u32>,
    }

    fn invalid(text: &str) -> String {
        match parse_parameters::<Parameters>(text) {
            Err(Fault::InvalidParameter { parameter, .. }) => parameter,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_call_is_read_with_what_it_wants() {
        let request = Request::parse(br#"{"method":"a.b.C","parameters":{"x": [1]},"more":true,"other":0}"#).unwrap();
        assert_eq!(
            (request.target(), request.mode(), request.parameters()),
            (("a.b", "C"), Mode::More, r#"{"x": [1]}"#)
        );
        let request = Request::parse(br#"{"method":"C","parameters":null,"oneway":true,"more":true}"#).unwrap();
        assert_eq!((request.target(), request.mode(), request.parameters()), (("C", ""), Mode::Oneway, "{}"));
        for wrong in
            ["", "{}", "[]", "1", r#"{"method":1}"#, r#"{"method":"a.B"}}"#, "\u{7f}", r#"{"method":"a.B","more":1}"#]
        {
            assert!(Request::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_parameter_that_does_not_fit_is_named() {
        assert_eq!(invalid("{}"), "service");
        assert_eq!(invalid(r#"{"service": 1}"#), "service");
        assert_eq!(invalid(r#"{"service": "a", "maxLines": "x"}"#), "maxLines");
        assert_eq!(invalid("{\n\"service\": \"a\",\n\"maxLines\":\n-1}"), "maxLines");
        assert_eq!(invalid(r#"{"maxLines": 1, "service": {"x":"y"}, "z": 1}"#), "service");
        assert_eq!(invalid("[]"), "");
        let fits = parse_parameters::<Parameters>(r#"{"service": "a", "unknown": [1]}"#).unwrap();
        assert_eq!(fits, Parameters { service: "a".into(), max_lines: None });
    }

    #[test]
    fn an_error_is_the_same_on_the_other_side() {
        let error = Error::new(Kind::Busy, "restart service 'web'", "an upgrade runs").next("wait for it");
        let line = error.to_string();
        let sent = Fault::from(error).encode("run.regen.Service").unwrap();
        assert_eq!(sent["error"], "run.regen.Service.Busy");
        let again = error_from_wire("run.regen.Service.Busy", &sent["parameters"]);
        assert_eq!((again.kind(), again.to_string()), (Kind::Busy, line));
        let foreign = error_from_wire("org.example.Odd", &json!({"a": 1}));
        assert_eq!(foreign.to_string(), r#"call the daemon: org.example.Odd: {"a":1}"#);
    }

    #[test]
    fn errors_of_the_standard_have_its_parameters_and_words_beside() {
        let sent = Fault::PermissionDenied("because".into()).encode("a.b").unwrap();
        let expected = json!({"error": "org.varlink.service.PermissionDenied", "message": "because"});
        assert_eq!(sent, expected);
        assert_eq!(Fault::Gone.encode("a.b"), None);
    }

    #[test]
    fn answers_say_whether_more_follows() {
        let bytes = encode_answer(&json!({"a": 1}), Following::Something).unwrap();
        assert_eq!(bytes, b"{\"parameters\":{\"a\":1},\"continues\":true}\0");
        let bytes = encode_answer(&json!({}), Following::Nothing).unwrap();
        assert_eq!(bytes, b"{\"parameters\":{}}\0");
    }
}
