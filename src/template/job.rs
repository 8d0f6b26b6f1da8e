//! What a clone is to do: NUL-terminated strings in a file in memory that nobody can change, which its program finds as
//! descriptor 3.
//!
//! ```text
//! regen-job \0 1 \0 ARGUMENTS \0 argument \0 … VARIABLES \0 KEY=VALUE \0 … 0 \0
//!                                                                      or  2 \0 MODULE:NAME \0 EVENT \0
//! ```
//!
//! A C program reads it with strlen(3), and nothing has to be quoted.

use std::os::fd::OwnedFd;

use crate::error::{Error, Kind, Result};
use crate::sys::fs::sealed_file;

/// The version of the format.
const VERSION: &str = "1";
/// The longest job in bytes: what execve(2) takes of arguments and variables, and as much again for an event.
pub const LIMIT: usize = 4 << 20;

/// A job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// The command line: the program first.
    pub args: Vec<String>,
    /// The whole environment, `KEY=VALUE`.
    pub env: Vec<String>,
    /// The function to call instead of running a program to its end.
    pub call: Option<Call>,
}

/// One call of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `MODULE:NAME`
    pub handler: String,
    /// What it is called with, as JSON text.
    pub event: String,
}

impl Job {
    /// Its bytes.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a NUL, a variable without a name, a handler that is not `MODULE:NAME`, and more than [`LIMIT`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let refuse = |cause: String| Err(Error::new(Kind::Usage, "write down a job", cause));
        if let Some(entry) = self.env.iter().find(|entry| entry.find('=').is_none_or(|index| index == 0)) {
            return refuse(format!("variable '{}' is not NAME=VALUE", shown(entry)));
        }
        let handler = self.call.as_ref().map(|call| call.handler.as_str());
        if let Some(handler) = handler.filter(|handler| !is_handler(handler)) {
            return refuse(format!("handler '{}' is not MODULE:NAME", shown(handler)));
        }
        let counts = [self.args.len().to_string(), self.env.len().to_string()];
        let call = self.call.as_ref().map_or(vec!["0"], |call| vec!["2", &call.handler, &call.event]);
        let head = ["regen-job", VERSION, &counts[0]].into_iter();
        let fields = head
            .chain(self.args.iter().map(String::as_str))
            .chain([counts[1].as_str()])
            .chain(self.env.iter().map(String::as_str))
            .chain(call);
        let mut bytes = Vec::with_capacity(4096);
        for field in fields {
            if field.contains('\0') {
                return refuse(format!("'{}' contains a NUL", shown(field)));
            }
            if bytes.len() + field.len() >= LIMIT {
                return refuse(format!("command, environment and event have more than {} MiB", LIMIT >> 20));
            }
            bytes.extend_from_slice(field.as_bytes());
            bytes.push(0);
        }
        Ok(bytes)
    }

    /// The file that the clone gets, at its beginning.
    ///
    /// # Errors
    /// As [`Job::encode`], and those of making a file in memory.
    pub fn seal(&self) -> Result<OwnedFd> {
        Ok(sealed_file("regen-job", &self.encode()?)?.into())
    }
}

fn is_handler(text: &str) -> bool {
    text.split_once(':').is_some_and(|(module, name)| !module.is_empty() && !name.is_empty())
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    fn job() -> Job {
        Job { args: vec!["python3".into(), "-c".into(), "print(1)".into()], env: vec!["A=b=c".into()], call: None }
    }

    #[test]
    fn a_job_is_strings_that_end_with_nul() {
        assert_eq!(job().encode().unwrap(), b"regen-job\x001\x003\x00python3\x00-c\x00print(1)\x001\x00A=b=c\x000\x00");
        let call = Some(Call { handler: "app:main".into(), event: "{\"n\": 1}".into() });
        let bytes = Job { call, ..Job::default() }.encode().unwrap();
        assert_eq!(bytes, b"regen-job\x001\x000\x000\x002\x00app:main\x00{\"n\": 1}\x00");
    }

    #[test]
    fn its_file_is_at_its_beginning_and_nobody_writes_to_it() {
        let mut file = File::from(job().seal().unwrap());
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, job().encode().unwrap());
        assert!(file.write(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn what_cannot_be_written_down_is_refused() {
        let cause = |change: fn(&mut Job)| {
            let mut job = job();
            change(&mut job);
            job.encode().unwrap_err().to_string()
        };
        assert!(cause(|job| job.args[2].push('\0')).contains("contains a NUL"));
        assert!(cause(|job| job.env[0] = "=b".into()).contains("NAME=VALUE"));
        assert!(cause(|job| job.args.push("x".repeat(LIMIT))).contains("more than 4 MiB"));
        for handler in ["", "app", ":main", "app:"] {
            let call = Some(Call { handler: handler.into(), event: "null".into() });
            assert!(Job { call, ..job() }.encode().unwrap_err().to_string().contains("MODULE:NAME"), "{handler}");
        }
    }
}
