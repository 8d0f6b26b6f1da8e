//! Reads the numbers and records of tar headers, which come from anywhere.

use super::attribute::Attribute;
use super::header::XATTR;
use super::name::Refusal;
use super::sparse::{PIECES_CAP, Piece};

/// What the records before a header say instead of it.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) real_path: Option<Vec<u8>>,
    pub(super) real_link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) attributes: Vec<Attribute>,
    pub(super) sparse: SparseRecords,
}

/// GNU tar's records for a file with holes.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) version: (u64, u64),
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// The map, where it is a record (version 0.1).
    pub(super) map: Option<Vec<Piece>>,
}

impl Records {
    /// Reads `LENGTH KEY=VALUE\n`, again and again. Keys that are not known mean nothing here.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, Refusal> {
        const MALFORMED: Refusal = "a record that is not 'LENGTH KEY=VALUE'";
        let mut records = Self::default();
        while !body.is_empty() {
            let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or(MALFORMED)?;
            let length = usize::try_from(decimal(&body[..space])?).map_err(|_| MALFORMED)?;
            let record = body.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or(MALFORMED)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(MALFORMED)?;
            records.add(&record[..equals], &record[equals + 1..])?;
            body = &body[length..];
        }
        Ok(records)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        // An empty value takes back what was said before.
        let text = Some(value.to_vec()).filter(|value| !value.is_empty());
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"REGEN.path" => self.real_path = text,
            b"REGEN.linkpath" => self.real_link = text,
            b"size" => self.size = text.map(|text| decimal(&text)).transpose()?,
            b"uid" => self.uid = text.map(|text| decimal(&text).and_then(id)).transpose()?,
            b"gid" => self.gid = text.map(|text| decimal(&text).and_then(id)).transpose()?,
            b"mtime" => self.mtime = text.map(|text| time(&text)).transpose()?,
            b"GNU.sparse.major" => self.sparse.version.0 = decimal(value)?,
            b"GNU.sparse.minor" => self.sparse.version.1 = decimal(value)?,
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.map" => self.sparse.map = Some(sparse_map(value)?),
            b"GNU.sparse.offset" => return Err("a sparse file of GNU tar's version 0.0"),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    let name = decode_keyword(name);
                    self.attributes.retain(|attribute| attribute.name != name);
                    self.attributes.push(Attribute { name, value: value.to_vec() });
                }
            }
        }
        Ok(())
    }
}

/// Digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Result<u64, Refusal> {
    const REFUSAL: Refusal = "a malformed number";
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(REFUSAL);
    }
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(REFUSAL)
}

/// A user's or group's number; the last one means "leave as it is" to the kernel.
pub(super) fn id(number: u64) -> Result<u32, Refusal> {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or("an owner's number that is too large")
}

/// A number of a header: octal digits, or binary (two's complement) with the highest bit set.
pub(super) fn number(field: &[u8]) -> Result<i64, Refusal> {
    const REFUSAL: Refusal = "a malformed number";
    let first = field.first().copied().unwrap_or(0);
    if first & 0x80 != 0 {
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let first = i128::from(first & 0x7f) | if start < 0 { !0x7f } else { 0 };
        let value = field[1..].iter().fold(first, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).map_err(|_| REFUSAL);
    }
    let digits = field.split(|byte| *byte == 0).next().unwrap_or(&[]).trim_ascii();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + i64::from(digit - b'0')).ok_or(REFUSAL),
        _ => Err(REFUSAL),
    })
}

/// A number of a header that cannot be negative.
pub(super) fn unsigned(field: &[u8]) -> Result<u64, Refusal> {
    u64::try_from(number(field)?).map_err(|_| "a negative number")
}

/// Decimal seconds with a fraction: `-1.5` is (-2, 500_000_000). Digits below the nanosecond are cut off.
fn time(text: &[u8]) -> Result<(i64, u32), Refusal> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = dot.map_or((text, &b""[..]), |dot| (&text[..dot], &text[dot + 1..]));
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("a malformed time");
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0i128, |value, digit| value * 10 + i128::from(digit - b'0'));
    let total = i128::from(decimal(whole)?) * 1_000_000_000 + nanoseconds;
    let total = if negative { -total } else { total };
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).map_err(|_| "a time out of range")?;
    let rest = u32::try_from(total.rem_euclid(1_000_000_000)).map_err(|_| "a time out of range")?;
    Ok((seconds, rest))
}

/// `offset,length,offset,length,…`
fn sparse_map(text: &[u8]) -> Result<Vec<Piece>, Refusal> {
    let numbers: Vec<u64> = text.split(|byte| *byte == b',').map(decimal).collect::<Result<_, _>>()?;
    if !numbers.len().is_multiple_of(2) || numbers.len() > 2 * PIECES_CAP {
        return Err("a malformed map of holes");
    }
    Ok(numbers.chunks(2).map(|pair| Piece { offset: pair[0], length: pair[1] }).collect())
}

/// The name of an attribute, with `%3D` and `%25` as GNU tar writes `=` and `%`.
fn decode_keyword(mut keyword: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(keyword.len());
    while let Some((first, rest)) = keyword.split_first() {
        let (byte, rest) = match keyword {
            [b'%', b'3', b'D', rest @ ..] => (b'=', rest),
            [b'%', b'2', b'5', rest @ ..] => (b'%', rest),
            _ => (*first, rest),
        };
        name.push(byte);
        keyword = rest;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"  644 \0\0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Ok(1 << 33));
        for bad in [&b"12x\0"[..], b"-1\0", b"9\0", &[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(number(bad).is_err(), "{bad:?} was taken");
        }
        assert!(unsigned(&[0xff; 12]).is_err());
    }

    #[test]
    fn times_keep_nanoseconds_and_signs() {
        assert_eq!(time(b"1"), Ok((1, 0)));
        assert_eq!(time(b"-1.5"), Ok((-2, 500_000_000)));
        assert_eq!(time(b"-0.000000001"), Ok((-1, 999_999_999)));
        assert_eq!(time(b"1.1234567899"), Ok((1, 123_456_789)));
        for bad in ["", "x", "1.x", "--1", "99999999999999999999"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn values_may_hold_newlines_and_names_equals_signs() {
        let records = Records::parse(b"28 SCHILY.xattr.user.a%3D=\n\0=\n").unwrap_err();
        assert_eq!(records, "a record that is not 'LENGTH KEY=VALUE'");
        let records = Records::parse(b"30 SCHILY.xattr.user.a%3D=\n\0=\n").unwrap();
        assert_eq!(records.attributes, [Attribute { name: b"user.a=".to_vec(), value: b"\n\0=".to_vec() }]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in
            ["x", "4 a=b\n", "99999999999999999999 a=b\n", "6 a=b", "0 a=b\n", "8 size=-1\n", "11 size=-1\n", "2 "]
        {
            assert!(Records::parse(bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
    }
}
