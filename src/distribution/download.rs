//! Blobs that are fetched: a transfer that breaks off goes on where it was, in this process or in a later one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::thread::sleep;

use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::header::{CONTENT_RANGE, RANGE};
use ureq::http::{Method, Response, StatusCode};

use super::repository::{Blob, Repository};
use super::transport::{self, Call, Payload, Repeat};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;

const BUFFER: usize = 128 * 1024;
/// A line that breaks again and again is good enough as long as so much comes over it each time.
const PROGRESS: u64 = 1 << 20;

/// What became of one try.
enum Fetched {
    Whole,
    /// The transfer broke off; it can go on.
    Broken(Error),
}

impl Repository {
    /// Fetches a blob into a file that may hold its beginning already. `tell` is told how many bytes are there. Gives how many
    /// came over the line.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Damaged`] if it is not what its digest and size say: the file then holds anything. After
    /// all others it holds what came, for the next try.
    pub fn fetch_blob(&mut self, blob: &Blob, file: &mut File, tell: &mut dyn FnMut(u64)) -> Result<u64> {
        let operation = format!("fetch blob {} from '{}'", blob.digest, self.reference);
        let mut arrival = Arrival::resume(file, blob.size).context(|| operation.clone())?;
        tell(arrival.done);
        self.fetch_whole(&operation, blob, &mut arrival, tell)?;
        if arrival.digest() != blob.digest && arrival.in_pieces {
            // Nobody knows which of the pieces is wrong.
            tracing::debug!("{operation}: the pieces make another blob; again from the beginning");
            arrival.restart().context(|| operation.clone())?;
            self.fetch_whole(&operation, blob, &mut arrival, tell)?;
        }
        let found = arrival.digest();
        if found == blob.digest {
            return Ok(arrival.received);
        }
        Err(Error::new(Kind::Damaged, operation, format!("what the registry sends has digest {found}")))
    }

    fn fetch_whole(
        &mut self,
        operation: &str,
        blob: &Blob,
        arrival: &mut Arrival<'_>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let (mut attempt, mut farthest) = (0, arrival.done);
        while arrival.done < blob.size {
            let Fetched::Broken(error) = self.fetch_rest(operation, blob, arrival, tell)? else { break };
            attempt = if arrival.done >= farthest + PROGRESS { 1 } else { attempt + 1 };
            farthest = farthest.max(arrival.done);
            if attempt >= transport::attempts() {
                return Err(error);
            }
            tracing::debug!("{error}; again from byte {}", arrival.done);
            sleep(transport::pause(attempt));
        }
        Ok(())
    }

    fn fetch_rest(
        &mut self,
        operation: &str,
        blob: &Blob,
        arrival: &mut Arrival<'_>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Fetched> {
        let target = self.path(&format!("blobs/{}", blob.digest));
        let range = (arrival.done > 0).then(|| (RANGE, format!("bytes={}-", arrival.done)));
        let response = self.transport.call(&Call {
            operation,
            method: Method::GET,
            target: &target,
            headers: range.into_iter().collect(),
            payload: Payload::Nothing,
            repeat: Repeat::Safe,
        })?;
        match response.status() {
            StatusCode::OK => arrival.restart().context(|| operation)?,
            StatusCode::PARTIAL_CONTENT if arrival.done > 0 && begins_at(&response, arrival.done) => {
                arrival.in_pieces = true;
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if arrival.done > 0 => {
                arrival.restart().context(|| operation)?;
                let cause = "the registry does not send the part that it is asked for";
                return Ok(Fetched::Broken(Error::new(Kind::Invalid, operation, cause)));
            }
            _ => return Err(self.transport.refusal(operation, response)),
        }
        let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match reader.read(&mut buffer) {
                Ok(0) if arrival.done == blob.size => return Ok(Fetched::Whole),
                Ok(0) => {
                    let cause = format!("it ends after {} of {} bytes", arrival.done, blob.size);
                    return Ok(Fetched::Broken(Error::new(Kind::Damaged, operation, cause)));
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Fetched::Broken(Error::new(Kind::System, operation, error.to_string()))),
            };
            if arrival.done + length as u64 > blob.size {
                let cause = format!("the registry sends more than its {} bytes", blob.size);
                return Err(Error::new(Kind::Damaged, operation, cause));
            }
            arrival.take(&buffer[..length]).context(|| operation)?;
            tell(arrival.done);
        }
    }
}

/// Whether a part is the one that was asked for. Some registries leave out which it is.
fn begins_at(response: &Response<Body>, from: u64) -> bool {
    let said = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    said.is_none_or(|said| said.trim().starts_with(&format!("bytes {from}-")))
}

/// A blob on its way into a file.
struct Arrival<'a> {
    file: &'a mut File,
    hasher: Sha256,
    done: u64,
    /// What came over the line.
    received: u64,
    /// Whether not all of it came in one answer.
    in_pieces: bool,
}

impl<'a> Arrival<'a> {
    /// Goes on behind what a file has, unless that is more than there can be.
    fn resume(file: &'a mut File, size: u64) -> io::Result<Self> {
        let mut arrival = Self { file, hasher: Sha256::new(), done: 0, received: 0, in_pieces: false };
        let length = arrival.file.metadata()?.len();
        if length > size {
            arrival.restart()?;
            return Ok(arrival);
        }
        arrival.file.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match arrival.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    arrival.hasher.update(&buffer[..length]);
                    arrival.done += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        arrival.in_pieces = arrival.done > 0;
        Ok(arrival)
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Sha256::new();
        self.done = 0;
        self.in_pieces = false;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        self.received += bytes.len() as u64;
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }
}
