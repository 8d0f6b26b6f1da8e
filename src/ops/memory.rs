//! The processes of a container in a ring: saved with a snapshot, and brought back after a rollback to it.
//!
//! ```text
//! ring snapshot --with-memory   check ── copy ── freeze ── copy ── criu dump ── thaw ── seal
//! ring rollback                 ring.json: the next run brings them back
//! create, run                   claim ── mount ── criu restore, stopped ── start: they go on
//! ```
//!
//! `rings/OWNER/NAME/memory/TAG/` has, beside what the ring knows of it:
//!
//! ```text
//! memory.json    on which machine it was taken, and which mounts came from outside
//! images/        criu's, and the names of the standard streams
//! restore.log    what criu said when they were brought back last
//! ```

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::request::RingRequest;
use crate::criu::{Afterwards, Allowed, CgroupMode, check, dump_log, next_step};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::RingName;
use crate::overlay::Detached;
use crate::ring::selector::Selector;
use crate::ring::{Base, Locked, Ring};
use crate::runtime::{self, CheckpointRequest, CreateRequest, Hold, Images, RestoreRequest, Tree};
use crate::store::{Run, Store};
use crate::sys::fs::{Durability, read_capped, replace_file};

const NOTES: &str = "memory.json";
const IMAGES: &str = "images";
const VERSION: u32 = 1;
const CAP: u64 = 1 << 20;
/// What the kernel keeps of a process takes room beside its pages.
const BESIDE_PAGES: u64 = 1 << 20;

/// The content of `memory.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    version: u32,
    /// Where the processes can come back.
    machine: Machine,
    /// Where the container had mounts that come from outside.
    mounts: Vec<PathBuf>,
}

impl Notes {
    /// What is to be noted of a container's processes, which is refused if they cannot be saved.
    ///
    /// # Errors
    /// [`Kind::Unsupported`], with the reason.
    pub(super) fn of(hold: &Hold) -> Result<Self> {
        let mut mounts = hold.check_checkpoint()?;
        mounts.sort();
        Ok(Self { version: VERSION, machine: Machine::here()?, mounts })
    }

    /// Saves the processes of a container that stands still. criu keeps the descriptor open until it is done.
    ///
    /// # Errors
    /// What criu says: its log is then in the ring's directory.
    pub(super) fn save(&self, (hold, ring): (&Hold, &Ring), directory: &Path, kept: BorrowedFd<'_>) -> Result<()> {
        let images = images(directory, None);
        let log = dump_log(&images.path);
        let request = CheckpointRequest {
            images,
            parent: None,
            afterwards: Afterwards::Running,
            page_server: None,
            lazy_pages: None,
        };
        let kept_log = ring.memory_log();
        hold.checkpoint(&request, kept).map_err(|error| match fs::copy(&log, &kept_log) {
            Ok(_) => error.next(next_step(&kept_log)),
            Err(_) => error,
        })?;
        // It tells nothing that anybody asks for once they are saved.
        for log in [&log, &kept_log] {
            match fs::remove_file(log) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.context(|| format!("remove {}", quote(log)))?,
            }
        }
        let text = serde_json::to_vec(self).context(|| "write down what processes were saved")?;
        replace_file(directory, NOTES, &text, Durability::Volatile)
    }

    fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(NOTES);
        let operation = || format!("read {}", quote(&path));
        let notes: Self = serde_json::from_slice(&read_capped(&path, CAP)?)
            .map_err(|error| Error::new(Kind::Damaged, operation(), error.to_string()))?;
        if notes.version == VERSION {
            return Ok(notes);
        }
        Err(Error::new(Kind::Unsupported, operation(), "another regen wrote it"))
    }

    /// What was mounted from outside has to be there again: programs have files open in it, or work in it.
    fn check_mounts(&self, mut now: Vec<PathBuf>) -> Result<()> {
        now.sort();
        let refuse = |cause: String| Err(Error::new(Kind::State, "compare the mounts", cause));
        if let Some(missing) = self.mounts.iter().find(|mount| !now.contains(mount)) {
            return refuse(format!(
                "they had something of the host's at '{}', this container has not",
                missing.display()
            ));
        }
        match now.iter().find(|mount| !self.mounts.contains(mount)) {
            Some(new) => {
                refuse(format!("this container has something of the host's at '{}', they had not", new.display()))
            }
            None => Ok(()),
        }
    }
}

fn images(directory: &Path, work: Option<&Path>) -> Images {
    Images {
        path: directory.join(IMAGES),
        work: work.map(Path::to_owned),
        // Who else has a lock is in no container of this ring.
        allowed: Allowed { file_locks: true, ..Allowed::default() },
        cgroups: CgroupMode::Soft,
        empty_network: false,
        deduplicate: false,
    }
}

/// About how many bytes the processes of a container take as files.
///
/// # Errors
/// Those of listing them.
pub(super) fn expect(run: &Run, hold: &Hold) -> Result<u64> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(1 << 12);
    let resident = |pid: i32| {
        // One that has ended meanwhile takes nothing.
        let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        text.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * page
    };
    let pids = hold.processes().context(|| format!("look at container '{}'", run.record.container))?;
    Ok(pids.into_iter().map(|pid| resident(pid) + BESIDE_PAGES).sum())
}

/// The entry whose processes a run brings back, by its tag: where a rollback says so, and the run nothing else.
///
/// # Errors
/// [`Kind::State`] if the run puts the entry on another base: files that the processes have open would be others.
pub(super) fn wanted(ring: &Locked, request: &RingRequest, base: &Base) -> Result<Option<String>> {
    let entry = ring.state.revived_next().filter(|_| request.selector == Selector::Unsaid);
    let Some(entry) = entry else { return Ok(None) };
    if entry.base == base.fingerprint {
        return Ok(Some(entry.id.clone()));
    }
    let (name, seq) = (ring.ring().name(), entry.seq);
    let cause = format!("they were saved over {}, not over {}", entry.base, base.fingerprint);
    Err(Error::new(Kind::State, format!("bring back the processes of '{name}@{seq}'"), cause).next(without(name, seq)))
}

fn without(ring: &RingName, seq: u64) -> String {
    format!("'regen ring rollback {ring} --to @{seq} --without-memory' starts its program instead")
}

/// Makes a container go on with the processes that its run brings back, instead of beginning with its program.
///
/// # Errors
/// What keeps them from coming back; nothing was done then.
pub(super) fn bring_back(store: &Store, run: &Run, request: &mut CreateRequest) -> Result<()> {
    let (Some(name), Some(tag)) = (&run.record.ring, &run.record.revives) else { return Ok(()) };
    // Who restores by hand has said from what.
    if request.restore.is_some() {
        return Ok(());
    }
    let directory = Ring::open(store, name)?.memory_at(tag);
    let notes = Notes::read(&directory)?;
    refuse(request)?;
    notes.machine.check(&Machine::here()?)?;
    notes.check_mounts(runtime::outside(&request.spec))?;
    check()?;
    let tree = |(destination, mount): (PathBuf, _)| Tree { destination, mount: Detached::from(mount) };
    request.restore = Some(RestoreRequest {
        images: images(&directory, Some(&directory)),
        trees: std::mem::take(&mut request.mounted).into_iter().map(tree).collect(),
        lazy_pages: false,
        lsm_profile: None,
        lsm_mount_context: None,
        mask: request.mask,
    });
    Ok(())
}

/// What only a program can be given that begins.
fn refuse(request: &CreateRequest) -> Result<()> {
    let terminal = request.spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal).unwrap_or(false);
    let cause = if terminal {
        "they had no terminal, this container has one"
    } else if request.memo.is_some() {
        "this container is to be a clone of a template"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Unsupported, "look at its specification", cause))
}

/// Says of a failure to bring processes back what was to be done, and how to go on without.
pub(super) fn explain(run: &Run, error: Error) -> Error {
    let (Some(ring), Some(seq), Some(_)) = (&run.record.ring, run.record.parent, &run.record.revives) else {
        return error;
    };
    let without = without(ring, seq);
    let next = error.next_step().map_or_else(|| without.clone(), |next| format!("{next}; {without}"));
    error.during(format!("bring back the processes of '{ring}@{seq}'")).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_the_host_have_to_be_those_that_were_there() {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        let machine = Machine { kernel: "6".into(), processor: "x".into() };
        let notes = Notes { version: VERSION, machine, mounts: paths(&["/data", "/etc/hosts"]) };
        notes.check_mounts(paths(&["/etc/hosts", "/data"])).unwrap();
        let refused = |mounts: &[&str]| notes.check_mounts(paths(mounts)).unwrap_err().to_string();
        assert!(refused(&["/data"]).contains("'/etc/hosts', this container has not"));
        assert!(refused(&["/data", "/etc/hosts", "/new"]).contains("'/new', they had not"));
    }

    #[test]
    fn notes_survive_the_disk_and_those_of_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let read = || Notes::read(directory.path());
        assert_eq!(read().unwrap_err().kind(), Kind::NotFound);
        let notes = Notes { version: VERSION, machine: Machine::here().unwrap(), mounts: vec!["/data".into()] };
        let write = |notes: &Notes| {
            fs::write(directory.path().join(NOTES), serde_json::to_vec(notes).unwrap()).unwrap();
        };
        write(&notes);
        assert_eq!(read().unwrap(), notes);
        write(&Notes { version: 2, ..notes });
        assert_eq!(read().unwrap_err().kind(), Kind::Unsupported);
        fs::write(directory.path().join(NOTES), "{").unwrap();
        assert_eq!(read().unwrap_err().kind(), Kind::Damaged);
    }
}
