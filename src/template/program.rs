//! What a clone has of its template's program: a file that a keeper writes into the template's directory before it is ready, so
//! that who wants a clone need not ask.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::sys::fs::{Durability, read_capped, replace_file};

/// Its name in the template's directory.
pub const FILE: &str = "program.json";
/// No environment that execve(2) takes is longer.
const CAP: u64 = 4 << 20;

/// The process of the template's own container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its environment, without what only the template's program is told: `KEY=VALUE`.
    pub env: Vec<String>,
    /// Its working directory inside.
    pub cwd: PathBuf,
}

impl Program {
    /// What the newest keeper that became ready has written.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn read(directory: &Path) -> Result<Self> {
        let operation = || "read the program of a template";
        serde_json::from_slice(&read_capped(&directory.join(FILE), CAP).context(operation)?).context(operation)
    }

    /// Writes it, in one step.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).context(|| "write down the program of a template")?;
        replace_file(directory, FILE, &text, Durability::Volatile)
    }

    /// Its environment with these in it, each in place of one with that name.
    #[must_use]
    pub fn environment(&self, more: &[String]) -> Vec<String> {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let given: Vec<_> = more.iter().map(|entry| name(entry)).collect();
        let kept = self.env.iter().filter(|entry| !given.contains(&name(entry)));
        kept.chain(more).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_who_wants_a_clone() {
        let directory = tempfile::tempdir().unwrap();
        let program = Program { env: vec!["PATH=/bin".into(), "A=1".into()], cwd: "/srv".into() };
        program.write(directory.path()).unwrap();
        assert_eq!(Program::read(directory.path()).unwrap(), program);
        assert_eq!(program.environment(&["A=2".into(), "B=3".into()]), ["PATH=/bin", "A=2", "B=3"]);
    }
}
