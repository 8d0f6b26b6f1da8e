//! Socket activation: sockets that a program finds open from descriptor 3 on, and the variables that say so, as
//! sd_listen_fds(3) has them.

use crate::error::{Error, Kind, Result};

/// The first descriptor of a socket that is passed on (`SD_LISTEN_FDS_START`).
pub const FIRST: u32 = 3;

/// The longest name of a socket, as systemd limits it.
const LONGEST_NAME: usize = 255;

/// How many sockets a program finds open, and what they are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    count: u32,
    names: Option<String>,
}

impl Activation {
    /// What an engine passed to us to be passed on: `LISTEN_FDS` and `LISTEN_FDNAMES` of our own environment.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let count = std::env::var("LISTEN_FDS").ok()?.parse().ok().filter(|count| *count > 0)?;
        Some(Self { count, names: std::env::var("LISTEN_FDNAMES").ok() })
    }

    /// For sockets with these names; `None` if there are none.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a name that could not be told apart in the list of them.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Option<Self>> {
        let names: Vec<&str> = names.into_iter().collect();
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            let operation = format!("name socket '{}'", name.escape_debug());
            let cause = format!("a name has 1 to {LONGEST_NAME} printable ASCII characters without ':'");
            return Err(Error::new(Kind::Invalid, operation, cause));
        }
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        Ok((count > 0).then(|| Self { count, names: Some(names.join(":")) }))
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Puts the variables into an environment, for a program that has this pid where it is.
    pub(super) fn announce(&self, variables: &mut Vec<String>, pid: u32) {
        let mut put = |name: &str, value: &str| {
            variables.retain(|entry| entry.strip_prefix(name).is_none_or(|rest| !rest.starts_with('=')));
            variables.push(format!("{name}={value}"));
        };
        put("LISTEN_FDS", &self.count.to_string());
        put("LISTEN_PID", &pid.to_string());
        if let Some(names) = &self.names {
            put("LISTEN_FDNAMES", names);
        }
    }
}

fn is_name(text: &str) -> bool {
    let printable = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    !text.is_empty() && text.len() <= LONGEST_NAME && text.bytes().all(printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_announced_over_what_was_said_before() {
        let mut variables = vec!["A=1".to_owned(), "LISTEN_FDS=9".to_owned(), "LISTEN_FDS_NOT=1".to_owned()];
        Activation::of_names(["web", "admin"]).unwrap().unwrap().announce(&mut variables, 7);
        assert_eq!(variables, ["A=1", "LISTEN_FDS_NOT=1", "LISTEN_FDS=2", "LISTEN_PID=7", "LISTEN_FDNAMES=web:admin"]);
        let unnamed = Activation { count: 1, names: None };
        unnamed.announce(&mut variables, 8);
        assert!(variables.contains(&"LISTEN_PID=8".to_owned()) && !variables.contains(&"LISTEN_PID=7".to_owned()));
    }

    #[test]
    fn names_that_would_run_into_each_other_are_refused() {
        assert_eq!(Activation::of_names([]).unwrap(), None);
        for name in ["", "a:b", "a b", "a\n", "é", &"x".repeat(256)] {
            assert!(Activation::of_names(["web", name]).is_err(), "{name:?}");
        }
    }
}
