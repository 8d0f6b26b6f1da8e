//! Numbers of bytes, as people write and read them.

use serde::Deserialize;

use crate::error::{Error, Kind, Result, is_too_large};

/// A number of bytes, written as a number or as `512MiB`, `2G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Written")]
pub struct Size(pub u64);

/// How much of a file system is to stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Floor {
    /// A share of its size, 0 to 100.
    Percent(u8),
    /// A number of bytes.
    Bytes(u64),
}

impl Floor {
    /// The bytes that stay free on a file system of `total` bytes.
    #[must_use]
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// A quantity as a file may write it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of bytes, or text like \"512MiB\"")]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => parse_bytes(&text).map(Self),
        }
    }
}

impl TryFrom<Written> for Floor {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        let text = match written {
            Written::Number(bytes) => return Ok(Self::Bytes(bytes)),
            Written::Text(text) => text,
        };
        let Some(percent) = text.trim().strip_suffix('%') else { return parse_bytes(&text).map(Self::Bytes) };
        match percent.trim_end().parse() {
            Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
            _ => Err(Error::new(Kind::Invalid, read_size(&text), "a share is between 0% and 100%")),
        }
    }
}

/// Reads a number of bytes: `4096`, `512MiB`, `1.5GiB`, `2G`. K, M, G and T are powers of 1024, with or without `iB` or `B`,
/// in any case.
///
/// # Errors
/// [`Kind::Invalid`] if it is something else, or more than a file system can have.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let refuse =
        || Err(Error::new(Kind::Invalid, read_size(text), "it is no number of bytes").next("write 512MiB or 10GiB"));
    let too_large = || Err(Error::new(Kind::Invalid, read_size(text), "it is too large"));
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return refuse(),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // Nine digits of a fraction are more than anybody means, and keep the sum below exact.
    let (whole, digits) = match (whole.parse::<u64>(), fraction.parse::<u32>()) {
        (Ok(whole), Ok(digits)) => (whole, digits),
        (Err(error), Ok(_)) if is_too_large(&error) => return too_large(),
        _ => return refuse(),
    };
    if fraction.len() > 9 || (shift == 0 && digits != 0) {
        return refuse();
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let bytes = (u128::from(whole) << shift) + (u128::from(digits) << shift) / scale;
    u64::try_from(bytes).or_else(|_| too_large())
}

fn read_size(text: &str) -> String {
    format!("read size '{}'", text.escape_debug())
}

/// A number of bytes for people: `1.5 MiB`.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths, rounded; what rounds up to 1024 of a unit is 1.0 of the next.
    let mut power = 1;
    loop {
        let unit = 1_u128 << (10 * power);
        let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        if tenths < 10_240 || power == UNITS.len() {
            return format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[power - 1]);
        }
        power += 1;
    }
}
