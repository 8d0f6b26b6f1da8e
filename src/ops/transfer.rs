//! What pushing, pulling, exporting and importing have in common: where to and from, and how far they are.

use std::fmt;
use std::fs::File;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use crate::distribution::{Blob, PIECES_FROM, Reference, Repository};
use crate::error::{Error, Kind, Result};
use crate::image::ImageSource;
use crate::image::layout::digest_of;
use crate::image::manifest::Descriptor;
use crate::store::Transfers;
use crate::store::transfer::Piece;

/// So many blobs are under way at a time: one more than one keeps the line busy while the other begins or ends.
const AT_A_TIME: usize = 2;

/// A place outside of the store for an entry, as a user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`.
    Image(ImageSource),
    /// `docker://HOST[:PORT]/REPOSITORY[:TAG]`.
    Registry(Reference),
}

impl Location {
    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Image(source) => source.tag(),
            Self::Registry(reference) => reference.tag(),
        }
    }
}

impl Location {
    /// The same from every working directory.
    ///
    /// # Errors
    /// Those of asking for the present one.
    pub(super) fn absolute(&self) -> Result<Self> {
        match self {
            Self::Image(source) => source.absolute().map(Self::Image),
            Self::Registry(reference) => Ok(Self::Registry(reference.clone())),
        }
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("docker://") {
            return text.parse().map(Self::Registry);
        }
        let next = "give oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://HOST[:PORT]/REPOSITORY[:TAG]";
        text.parse().map(Self::Image).map_err(|error: Error| error.next(next))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(source) => source.fmt(f),
            Self::Registry(reference) => reference.fmt(f),
        }
    }
}

/// How far a transfer is, for whoever watches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// What is done: `pushing root/alice`.
    pub what: String,
    /// Bytes that are over.
    pub done: u64,
    /// Bytes that there are.
    pub total: u64,
}

/// What was moved, and what the other side had already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blobs that went over.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that did not need to.
    pub present: u64,
}

/// A descriptor's blob, as a registry is asked for it.
pub(super) fn blob_of(descriptor: &Descriptor) -> Result<Blob> {
    Ok(Blob { digest: descriptor.digest()?, size: descriptor.size })
}

/// Sends a blob, and notes where that goes on should it break off.
pub(super) fn send_blob(
    repository: &mut Repository,
    transfers: &Transfers,
    (blob, file): (&Blob, &File),
    told: &dyn Fn(u64),
) -> Result<u64> {
    if blob.size < PIECES_FROM {
        return repository.send_blob(blob, file, None, told);
    }
    let name = digest_of(format!("{} {}", repository.name(), blob.digest).as_bytes());
    // Another process that sends the same has a note of its own upload there.
    let mut held = transfers.hold(Piece::Upload(&name))?;
    repository.send_blob(blob, file, held.as_mut().map(|held| &*held.file()), told)
}

/// Does jobs, two at a time, each worker with what it works with as its own. `tell` is told how many bytes are over in all;
/// a job tells how many of its own are. After a failure no other job is begun, and the one under way is brought to its end,
/// so that what it has moved is of use the next time.
pub(super) fn in_pairs<W: Clone + Send, J: Sync>(
    worker: &W,
    jobs: &[J],
    run: impl Fn(&mut W, &J, &dyn Fn(u64)) -> Result<()> + Sync,
    tell: &mut dyn FnMut(u64),
) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (next, failed, run) = (&next, &failed, &run);
    thread::scope(|threads| {
        let (told, heard) = channel();
        let start = |_| {
            let (mut worker, told) = (worker.clone(), told.clone());
            threads.spawn(move || {
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    let tell = |bytes: u64| {
                        // Who listens does so until the last of us has gone.
                        let _ = told.send((index, bytes));
                    };
                    run(&mut worker, job, &tell).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                }
                Ok(())
            })
        };
        let workers: Vec<_> = (0..AT_A_TIME.min(jobs.len())).map(start).collect();
        drop(told);
        let (mut each, mut sum) = (vec![0; jobs.len()], 0);
        for (index, bytes) in heard {
            // One that begins anew has fewer than before.
            sum = sum - each[index] + bytes;
            each[index] = bytes;
            tell(sum);
        }
        let panicked = |_| Err(Error::new(Kind::System, "move blobs", "a thread panicked"));
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn two_jobs_are_under_way_at_a_time_and_all_are_done() {
        let (both, mut told) = (Barrier::new(2), Vec::new());
        let run = |_: &mut (), job: &u64, tell: &dyn Fn(u64)| {
            // Nobody gets past this alone.
            both.wait();
            tell(*job);
            Ok(())
        };
        in_pairs(&(), &[1, 2, 3, 4], run, &mut |sum| told.push(sum)).unwrap();
        assert_eq!((told.len(), told.last()), (4, Some(&10)));
        assert!(told.is_sorted());
        in_pairs(&(), &[], run, &mut |_| {}).unwrap();
    }

    #[test]
    fn after_a_failure_no_other_job_is_begun() {
        let begun = AtomicUsize::new(0);
        let run = |_: &mut (), _: &u64, _: &dyn Fn(u64)| {
            begun.fetch_add(1, Ordering::Relaxed);
            Err(Error::new(Kind::System, "move", "no"))
        };
        in_pairs(&(), &[0; 100], run, &mut |_| {}).unwrap_err();
        assert!(begun.load(Ordering::Relaxed) <= AT_A_TIME);
    }

    #[test]
    fn a_place_is_a_layout_an_archive_or_a_repository() {
        for text in ["oci:/a:b", "oci-archive:a.tar", "docker://h.example/a:b"] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
        for bad in ["", "a", "docker:a", "dir:/a", "docker://a"] {
            let line = bad.parse::<Location>().unwrap_err().to_string();
            assert!(line.contains("docker://HOST[:PORT]/REPOSITORY[:TAG]") && !line.contains('\n'), "{line}");
        }
    }
}
