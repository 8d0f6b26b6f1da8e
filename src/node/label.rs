//! What an operator says of a node: `KEY=VALUE`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The longest key, and the longest value.
const PART_MAX: usize = 63;

/// A label: `zone=a`. The key is `[A-Za-z0-9._/-]+` and begins with a letter or digit, the value `[A-Za-z0-9._-]*`, each of
/// at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    /// What it is about.
    pub key: String,
    /// What is said; may be empty.
    pub value: String,
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |cause: &str| {
            let shown: String = text.chars().take(140).collect();
            Err(Error::new(Kind::Invalid, format!("read label '{}'", shown.escape_debug()), cause)
                .next("give KEY=VALUE, for example zone=a"))
        };
        let Some((key, value)) = text.split_once('=') else { return refuse("there is no '=' in it") };
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        if key.len() > PART_MAX || value.len() > PART_MAX {
            return refuse(&format!("key and value have at most {PART_MAX} bytes each"));
        }
        if !key.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric()) {
            return refuse("the key does not begin with a letter or a digit");
        }
        if !key.bytes().all(|c| plain(c) || c == b'/') || !value.bytes().all(plain) {
            return refuse("letters, digits, '.', '_' and '-' are allowed, and '/' in the key");
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl TryFrom<String> for Label {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_key_with_a_value() {
        for good in ["zone=a", "example.org/rack=17", "spare=", "A=b.c_d-e"] {
            assert_eq!(good.parse::<Label>().unwrap().to_string(), good);
        }
        let long = format!("k={}", "x".repeat(64));
        for bad in ["", "zone", "=a", "-a=b", "a=b=c", "a=b/c", "a b=c", "é=1", &long] {
            assert!(bad.parse::<Label>().is_err(), "{bad} was taken");
        }
    }
}
