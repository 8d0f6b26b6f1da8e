//! The standard streams of a clone.
//!
//! criu opens what it is given anew, by its name in /proc: a pipe and a device are the same then, a socket cannot be opened, and
//! in a file it would begin at the front. For those a pipe is given, and a process copies between the two.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use nix::sched::CloneFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Result};
use crate::runtime::Stdio;
use crate::sys::clone::{Birth, Parent, close_all_but, replace_stream, spawn};
use crate::sys::process::Process;
use crate::sys::signal::Signal;

/// Who copies between the streams that a clone was to have and those that it has.
#[derive(Debug, Default)]
pub struct Streams {
    input: Option<Process>,
    output: Vec<Process>,
}

impl Streams {
    /// What a clone can be given for these. The caller has one thread.
    ///
    /// # Errors
    /// Those of pipe(2) and clone(2).
    pub fn fit(stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> Result<(Stdio, Self)> {
        let mut streams = Self::default();
        let stdin = if fits(&stdin)? {
            stdin
        } else {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe")?;
            streams.input = Some(copy(stdin, write)?);
            read
        };
        let (stdout, stderr) = (streams.fit_output(stdout)?, streams.fit_output(stderr)?);
        Ok((Stdio::Files { stdin, stdout, stderr }, streams))
    }

    /// The same for one that is written to.
    ///
    /// # Errors
    /// As [`Streams::fit`].
    pub(super) fn fit_output(&mut self, wanted: OwnedFd) -> Result<OwnedFd> {
        if fits(&wanted)? {
            return Ok(wanted);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe")?;
        self.output.push(copy(read, wanted)?);
        Ok(write)
    }

    /// Waits until all that the clone has printed has arrived; it has ended.
    ///
    /// # Errors
    /// Those of waiting.
    pub fn finish(self) -> Result<()> {
        if let Some(input) = self.input {
            input.signal(Signal::KILL)?;
            input.reap()?;
        }
        self.output.iter().try_for_each(|process| process.reap().map(drop))
    }
}

fn fits(stream: &OwnedFd) -> Result<bool> {
    let operation = || "look at a standard stream";
    let file = File::from(stream.try_clone().context(operation)?);
    let kind = file.metadata().context(operation)?.file_type();
    Ok(kind.is_fifo() || kind.is_char_device())
}

/// A process that copies until one of the two ends. It has nothing else open, so that others hear of their ends.
fn copy(from: OwnedFd, to: OwnedFd) -> Result<Process> {
    let birth = Birth { namespaces: CloneFlags::empty(), cgroup: None, parent: Parent::Caller };
    spawn(birth, || {
        let kept = [from.as_fd(), to.as_fd()];
        let forgotten = File::open("/dev/null")
            .context(|| "open '/dev/null'")
            .and_then(|null| (0..=2).try_for_each(|stream| replace_stream(null.as_fd(), stream)));
        let forgotten = forgotten.and_then(|()| close_all_but(3, &kept));
        if forgotten.is_err() {
            return 1;
        }
        let copies = (from.try_clone(), to.try_clone());
        let (Ok(source), Ok(target)) = copies else { return 1 };
        i32::from(pump(source.into(), target.into()).is_err())
    })
}

fn pump(mut source: File, mut target: File) -> std::io::Result<()> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        match source.read(&mut chunk)? {
            0 => return Ok(()),
            count => target.write_all(chunk.get(..count).unwrap_or_default())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn pipes_and_devices_are_given_as_they_are() {
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let (_read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (_stdio, streams) = Streams::fit(null(), write, null()).unwrap();
        assert!(streams.input.is_none() && streams.output.is_empty());
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(!fits(&ours.into()).unwrap());
        assert!(!fits(&tempfile::tempfile().unwrap().into()).unwrap());
    }
}
