//! The messages of D-Bus, as far as systemd is spoken to (D-Bus specification, "Marshaling" and "Message Protocol").

use crate::error::{Error, Kind, Result};

/// A value that a property can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Boolean(bool),
    Number(u64),
    Text(String),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Boolean(_) => "b",
            Self::Number(_) => "t",
            Self::Text(_) => "s",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// A name and its value.
pub(super) type Property = (&'static str, Value);

/// Bytes being written, each value at its alignment.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A length; what is too long for one is too long for a message, and refused by the other side.
    fn length(&mut self, length: usize) {
        self.u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes.extend(text.bytes());
        self.bytes.push(0);
    }

    pub(super) fn boolean(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    fn signature(&mut self, text: &str) {
        // Ours are short.
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.bytes());
        self.bytes.push(0);
    }

    /// An array: its length in bytes goes before it, without the gap up to its first element.
    fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        fill(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Boolean(value) => self.boolean(*value),
            Value::Number(value) => {
                self.align(8);
                self.bytes.extend(value.to_le_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Numbers(numbers) => self.array(4, |w| numbers.iter().for_each(|number| w.u32(*number))),
            Value::Bytes(bytes) => self.array(1, |w| w.bytes.extend(bytes)),
            Value::Pairs(pairs) => self.array(8, |w| {
                for (first, second) in pairs {
                    w.align(8);
                    w.text(first);
                    w.text(second);
                }
            }),
        }
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, properties: &[Property]) {
        self.array(8, |w| {
            for (name, value) in properties {
                w.align(8);
                w.text(name);
                w.variant(value);
            }
        });
    }

    /// An empty `a(sa(sv))`.
    pub(super) fn no_auxiliary_units(&mut self) {
        self.array(8, |_| ());
    }
}

/// A method of an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    /// The service's name; none on a connection without a bus between.
    pub destination: Option<&'a str>,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    /// The types of the arguments.
    pub signature: &'a str,
}

/// A call as bytes.
pub(super) fn call(serial: u32, method: Method<'_>, body: &Writer) -> Vec<u8> {
    let mut message = Writer { bytes: vec![b'l', 1, 0, 1] };
    message.length(body.bytes.len());
    message.u32(serial);
    message.array(8, |w| {
        let mut field = |code: u8, kind: &str, text: &str| {
            w.align(8);
            w.bytes.push(code);
            w.signature(kind);
            if kind == "g" { w.signature(text) } else { w.text(text) }
        };
        field(1, "o", method.path);
        field(2, "s", method.interface);
        field(3, "s", method.member);
        if let Some(destination) = method.destination {
            field(6, "s", destination);
        }
        if !method.signature.is_empty() {
            field(8, "g", method.signature);
        }
    });
    message.align(8);
    message.bytes.extend(&body.bytes);
    message.bytes
}

/// What kind of message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Answer,
    Failure,
    Signal,
    Other,
}

/// A message that came.
#[derive(Debug)]
pub(super) struct Message {
    pub sort: Sort,
    /// The call that it answers.
    pub reply_to: u32,
    /// Of a signal.
    pub member: String,
    /// Of a failure.
    pub error: String,
    /// The texts and object paths at the beginning of the body; numbers among them are skipped.
    pub texts: Vec<String>,
}

/// The size of the fixed part of a message.
pub(super) const FIXED: usize = 16;
/// The specification allows more; systemd has no reason to send as much.
const CAP: usize = 16 << 20;

/// How many bytes follow the fixed part.
pub(super) fn rest_of(fixed: &[u8; FIXED]) -> Result<usize> {
    if fixed[0] != b'l' {
        return Err(damaged("its byte order is not ours"));
    }
    let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let (body, fields) = (number(4) as usize, number(12) as usize);
    match fields.next_multiple_of(8).checked_add(body) {
        Some(rest) if rest <= CAP && fields <= CAP => Ok(rest),
        _ => Err(damaged("it is too long")),
    }
}

/// Reads a whole message.
pub(super) fn parse(bytes: &[u8]) -> Result<Message> {
    let sort = match bytes.get(1) {
        Some(2) => Sort::Answer,
        Some(3) => Sort::Failure,
        Some(4) => Sort::Signal,
        _ => Sort::Other,
    };
    let mut message = Message { sort, reply_to: 0, member: String::new(), error: String::new(), texts: Vec::new() };
    let mut reader = Reader { bytes, at: 12 };
    let length = reader.u32()? as usize;
    let end = reader.at + length;
    let mut signature = String::new();
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (3, "s") => message.member = reader.text()?,
            (4, "s") => message.error = reader.text()?,
            (8, "g") => signature = reader.signature()?,
            (5, "u") => message.reply_to = reader.u32()?,
            (_, "u") => drop(reader.u32()?),
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (code, kind) => return Err(damaged(&format!("header field {code} has type {kind:?}"))),
        }
    }
    reader.align(8);
    reader.body(&signature, &mut message.texts)?;
    Ok(message)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(count);
        let slice = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| damaged("it is cut short"))?;
        self.at += count;
        Ok(slice)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Result<u32> {
        self.align(4);
        self.take(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.byte()?;
        Ok(text)
    }

    fn signature(&mut self) -> Result<String> {
        let length = usize::from(self.byte()?);
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.byte()?;
        Ok(text)
    }

    /// Texts and numbers up to the first value of another type.
    fn body(&mut self, signature: &str, texts: &mut Vec<String>) -> Result<()> {
        for kind in signature.chars() {
            match kind {
                's' | 'o' => texts.push(self.text()?),
                'u' => drop(self.u32()?),
                'v' => {
                    let inner = self.signature()?;
                    if matches!(inner.as_str(), "s" | "o" | "u") {
                        self.body(&inner, texts)?;
                    }
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

fn damaged(cause: &str) -> Error {
    Error::new(Kind::Damaged, "read a D-Bus message", cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Method<'_> = Method {
        destination: Some("org.freedesktop.systemd1"),
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StartTransientUnit",
        signature: "ss",
    };

    #[test]
    fn a_call_can_be_read_again() {
        let mut body = Writer::default();
        body.text("a.scope");
        body.text("replace");
        let bytes = call(7, START, &body);
        let fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(rest_of(&fixed).unwrap() + FIXED, bytes.len());
        let message = parse(&bytes).unwrap();
        assert_eq!((message.sort, message.member.as_str()), (Sort::Other, "StartTransientUnit"));
        assert_eq!(message.texts, ["a.scope", "replace"]);
    }

    #[test]
    fn values_stand_at_their_alignment() {
        let mut writer = Writer::default();
        writer.properties(&[("Delegate", Value::Boolean(true)), ("PIDs", Value::Numbers(vec![5]))]);
        let expected: &[u8] = &[
            &[54, 0, 0, 0, 0, 0, 0, 0][..],
            &[8, 0, 0, 0],
            b"Delegate\0",
            &[1, b'b', 0],
            &[1, 0, 0, 0],
            &[0; 4],
            &[4, 0, 0, 0],
            b"PIDs\0",
            &[2, b'a', b'u', 0],
            &[0; 3],
            &[4, 0, 0, 0],
            &[5, 0, 0, 0],
        ]
        .concat();
        // The length counts from the first element to the end of the last.
        let length = u32::try_from(expected.len() - 8).unwrap();
        assert_eq!(writer.bytes[..4], length.to_le_bytes());
        assert_eq!(writer.bytes[4..], expected[4..]);
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_refused() {
        let bytes = call(1, START, &Writer::default());
        for length in 0..bytes.len() - 8 {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
        let mut fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        fixed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(rest_of(&fixed).is_err());
        fixed[0] = b'B';
        assert!(rest_of(&fixed).is_err());
    }
}
