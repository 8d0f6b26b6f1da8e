//! What an operation is about, thing by thing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ids::NodeName;

/// One thing on one node, `NODE:SUBJECT`: `n1:service/web@1.0.0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// Where.
    pub node: NodeName,
    /// What, as its kind of subject is spelled.
    pub subject: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.subject)
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((node, subject)) = text.split_once(':') else {
            let shown: String = text.chars().take(80).collect();
            let operation = format!("read the target '{}'", shown.escape_debug());
            return Err(Error::new(Kind::Invalid, operation, "it has to be NODE:SUBJECT"));
        };
        Ok(Self { node: node.parse()?, subject: subject.to_owned() })
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

/// Targets as they are written down: those of one node that follow each other share its name.
///
/// ```text
/// [["n1", ["probe/0", "probe/1"]], ["n2", ["probe/0"]]]
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runs<S = String>(Vec<(NodeName, Vec<S>)>);

impl<'a> Runs<&'a str> {
    /// In the order of the targets, for writing.
    pub fn new(targets: impl IntoIterator<Item = (&'a NodeName, &'a str)>) -> Self {
        let mut runs: Vec<(NodeName, Vec<&str>)> = Vec::new();
        for (node, subject) in targets {
            match runs.last_mut() {
                Some((last, subjects)) if last == node => subjects.push(subject),
                Some(_) | None => runs.push((node.clone(), vec![subject])),
            }
        }
        Self(runs)
    }
}

impl Runs {
    /// One after the other.
    #[must_use]
    pub fn into_targets(self) -> Vec<Target> {
        let each = |(node, subjects): (NodeName, Vec<String>)| {
            subjects.into_iter().map(move |subject| Target { node: node.clone(), subject })
        };
        self.0.into_iter().flat_map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn targets_are_read_as_they_are_written() {
        let target: Target = "n1:service/web@1.0.0".parse().unwrap();
        assert_eq!((target.node.as_str(), target.subject.as_str()), ("n1", "service/web@1.0.0"));
        assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        assert!("service/web".parse::<Target>().is_err());
    }

    proptest! {
        #[test]
        fn runs_keep_the_order(nodes in proptest::collection::vec(0..3_u8, 0..20)) {
            let target = |(index, node): (usize, &u8)| format!("n{node}:probe/{index}").parse::<Target>().unwrap();
            let targets: Vec<_> = nodes.iter().enumerate().map(target).collect();
            let runs = Runs::new(targets.iter().map(|target| (&target.node, target.subject.as_str())));
            let text = serde_json::to_string(&runs).unwrap();
            prop_assert_eq!(serde_json::from_str::<Runs>(&text).unwrap().into_targets(), targets);
        }
    }
}
