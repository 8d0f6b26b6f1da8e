//! Other processes: this program, executed again with what it has to do in its environment.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use regen::registry::{Registry, Sqlite};

use crate::harness::registry::{Faulty, Plan};
use crate::suite::{caller, crowd};

/// What a child has to do: `VERB ADDRESS ARGUMENT…`, a line each.
const TASK: &str = "REGEN_OCI_TEST_TASK";

/// Opens what [`crate::suite::Subject::address`] names.
pub fn open(address: &str) -> Arc<dyn Registry> {
    if let Some((seed, address)) = address.strip_prefix("faulty-").and_then(|rest| rest.split_once('-')) {
        // The others of the same plan fail at other calls.
        let seed = seed.parse::<u64>().unwrap() + u64::from(std::process::id());
        return Arc::new(Faulty::new(open(address), Plan::bad(seed)));
    }
    match address.split_once(':').unwrap() {
        ("sqlite", directory) => Arc::new(Sqlite::open(Path::new(directory)).unwrap()),
        #[cfg(feature = "etcd")]
        ("etcd", url) => crate::etcd::open(url, &regen::config::Cluster::default()),
        other => panic!("{other:?} is no kind of registry"),
    }
}

/// Another process, which ends with the test.
#[derive(Debug)]
pub struct Child(std::process::Child);

impl Child {
    pub fn start(verb: &str, address: &str, arguments: &[&str]) -> Self {
        let task = [&[verb, address], arguments].concat().join("\n");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child::a_child_does_what_it_is_told", "--nocapture"]).env(TASK, task);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// Waits for it; it succeeds.
    #[track_caller]
    pub fn finish(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "a child ended with {status}");
    }

    /// Kills it, wherever it is.
    pub fn kill(mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "it has ended by itself");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's side; nothing where nobody is told anything.
#[test]
fn a_child_does_what_it_is_told() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<_> = task.lines().collect();
    let registry = open(words[1]);
    match (words[0], &words[2..]) {
        ("count", [writer, times]) => {
            (0..times.parse().unwrap()).for_each(|number| caller::add_one(&*registry, writer, number));
        }
        ("stir", [writer, times]) => crowd::stir(&*registry, writer, times.parse().unwrap()),
        ("write", [writer]) => crowd::write_for_ever(&*registry, writer),
        other => panic!("{other:?} is nothing that a child does"),
    }
}
