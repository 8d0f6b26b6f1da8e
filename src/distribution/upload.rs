//! Blobs that are sent. A large one goes in pieces, and where the registry says that it goes on is noted: what broke off goes
//! on there, in this process or in a later one.
//!
//! ```text
//! POST ?mount=… ── POST uploads/ ── PATCH piece, until all are there ── PUT digest          GET: how much is there
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::thread::sleep;

use ureq::Body;
use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use ureq::http::{Method, Response, StatusCode};

use super::repository::{Blob, Repository};
use super::transport::{self, Call, Part, Payload, Repeat};
use crate::error::{Error, Kind, Result};

/// Blobs of so many bytes go in pieces; a smaller one is sent again as soon as it is asked after.
pub const PIECES_FROM: u64 = 8 << 20;
/// A registry need not keep anything of a piece that breaks off; some (docker-registry 2.8) then forget the upload.
const PIECE: u64 = 16 << 20;
/// So many failures in a row are put down to the upload.
const AGAIN: u32 = 3;
/// Places are as long as their writers like, but not longer than a header may be.
const PLACE_MAX: u64 = 64 * 1024;
const BYTES: &str = "application/octet-stream";

/// An upload that the registry keeps.
struct Session {
    /// Path and query of where it goes on.
    place: String,
    /// How many bytes the registry has.
    done: u64,
    /// How many of them went over the line now.
    sent: u64,
}

/// What became of a piece.
enum Taken {
    Yes,
    /// The registry does not know the upload, or not as we do: its place is of no use any more.
    Lost,
    /// It takes no pieces.
    Unsupported(Response<Body>),
}

/// What there is to send.
struct Parcel<'a> {
    operation: &'a str,
    blob: &'a Blob,
    file: &'a File,
    note: Option<&'a File>,
    tell: &'a dyn Fn(u64),
}

impl Repository {
    /// Sends a blob. `note` is where an upload is noted that may go on later, and may hold one. `tell` is told how many bytes
    /// have left. Gives how many went over the line; none if the registry had it elsewhere.
    ///
    /// # Errors
    /// As [`Repository::has_blob`]; [`Kind::State`] if the registry does not want it.
    pub fn send_blob(&mut self, blob: &Blob, file: &File, note: Option<&File>, tell: &dyn Fn(u64)) -> Result<u64> {
        let operation = format!("send blob {} to '{}'", blob.digest, self.reference);
        let parcel = Parcel { operation: &operation, blob, file, note, tell };
        if self.take_from_relatives(&parcel) {
            return Ok(0);
        }
        if blob.size < PIECES_FROM {
            return self.send_at_once(&parcel);
        }
        let sent = self.send_in_pieces(&parcel)?;
        parcel.write_note("");
        sent.map_or_else(|| self.send_at_once(&parcel), Ok)
    }

    /// Whether the registry has taken it from another repository. If not, or if that may not be read, it is sent.
    fn take_from_relatives(&mut self, parcel: &Parcel<'_>) -> bool {
        let digest = transport::percent(&parcel.blob.digest.to_string());
        let targets: Vec<_> = self
            .relatives
            .iter()
            .map(|from| self.path(&format!("blobs/uploads/?mount={digest}&from={}", transport::percent(from))))
            .collect();
        targets.iter().any(|target| {
            let answer = self.transport.call(&Call {
                operation: parcel.operation,
                method: Method::POST,
                target,
                headers: Vec::new(),
                payload: Payload::Text(&[]),
                repeat: Repeat::Never,
            });
            match answer {
                Ok(response) if response.status() == StatusCode::CREATED => true,
                Ok(response) => {
                    self.give_up(parcel.operation, &response);
                    false
                }
                Err(error) => {
                    tracing::debug!("{error}");
                    false
                }
            }
        })
    }

    /// An upload that was begun in place of what was asked for, and is not wanted.
    fn give_up(&mut self, operation: &str, response: &Response<Body>) {
        let Ok(Some(place)) = self.place_of(operation, response) else { return };
        let call = Call {
            operation,
            method: Method::DELETE,
            target: &place,
            headers: Vec::new(),
            payload: Payload::Nothing,
            repeat: Repeat::Never,
        };
        // What is left of it is the registry's to clear away.
        if let Err(error) = self.transport.call(&call) {
            tracing::debug!("{error}");
        }
    }

    fn send_at_once(&mut self, parcel: &Parcel<'_>) -> Result<u64> {
        let Parcel { operation, blob, file, tell, .. } = *parcel;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let place = self.begin_upload(operation)?;
            let whole = Payload::Part(Part { file, from: 0, length: blob.size, tell });
            match self.close_upload(parcel, &place, whole) {
                Ok(response) if response.status() == StatusCode::CREATED => return Ok(blob.size),
                Ok(response) => return Err(self.transport.refusal(operation, response)),
                // What is left of a broken upload is the registry's to clear away.
                Err(error) if attempt >= transport::attempts() || error.kind() == Kind::Unsupported => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!("{error}; again");
                    sleep(transport::pause(attempt));
                }
            }
        }
    }

    /// `None` if the registry takes no pieces.
    fn send_in_pieces(&mut self, parcel: &Parcel<'_>) -> Result<Option<u64>> {
        let (mut attempt, mut farthest, mut sent) = (0, 0, 0);
        let mut place = parcel.read_note();
        loop {
            let mut session = match self.recall(parcel.operation, place)? {
                Some(session) if session.done <= parcel.blob.size => session,
                Some(_) | None => Session { place: self.begin_upload(parcel.operation)?, done: 0, sent: 0 },
            };
            parcel.write_note(&session.place);
            let result = self.send_rest(parcel, &mut session);
            sent += session.sent;
            let error = match result {
                Ok(Taken::Yes) => return Ok(Some(sent)),
                Ok(Taken::Unsupported(response)) if session.done == 0 => {
                    tracing::debug!("{}", self.transport.refusal(parcel.operation, response));
                    return Ok(None);
                }
                Ok(Taken::Unsupported(response)) => self.transport.refusal(parcel.operation, response),
                Ok(Taken::Lost) => Error::new(Kind::State, parcel.operation, "the registry has lost the upload"),
                Err(error) => error,
            };
            attempt = if session.done > farthest { 1 } else { attempt + 1 };
            farthest = farthest.max(session.done);
            if attempt >= transport::attempts() || error.kind() == Kind::Unsupported {
                return Err(error);
            }
            tracing::debug!("{error}; again from byte {}", session.done);
            sleep(transport::pause(attempt));
            // The answer to the last piece may be all that was lost.
            if self.has_blob(&parcel.blob.digest)? {
                return Ok(Some(sent));
            }
            // What goes wrong again and again is begun anew.
            place = Some(session.place).filter(|place| !place.is_empty() && attempt != AGAIN);
        }
    }

    fn send_rest(&mut self, parcel: &Parcel<'_>, session: &mut Session) -> Result<Taken> {
        while session.done < parcel.blob.size {
            match self.send_piece(parcel, session)? {
                Taken::Yes => parcel.write_note(&session.place),
                other => {
                    session.place.clear();
                    parcel.write_note("");
                    return Ok(other);
                }
            }
        }
        let response = self.close_upload(parcel, &session.place, Payload::Text(&[]))?;
        match response.status() {
            StatusCode::CREATED => Ok(Taken::Yes),
            // Pieces of several processes that do not fit are sent once more, all of them.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE => {
                tracing::debug!("{}", self.transport.refusal(parcel.operation, response));
                session.place.clear();
                parcel.write_note("");
                Ok(Taken::Lost)
            }
            _ => Err(self.transport.refusal(parcel.operation, response)),
        }
    }

    fn send_piece(&mut self, parcel: &Parcel<'_>, session: &mut Session) -> Result<Taken> {
        let Parcel { operation, blob, file, tell, .. } = *parcel;
        let length = PIECE.min(blob.size - session.done);
        let end = session.done + length;
        let response = self.transport.call(&Call {
            operation,
            method: Method::PATCH,
            target: &session.place,
            headers: vec![(CONTENT_TYPE, BYTES.to_owned()), (CONTENT_RANGE, format!("{}-{}", session.done, end - 1))],
            payload: Payload::Part(Part { file, from: session.done, length, tell }),
            repeat: Repeat::Never,
        })?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT => {
                if let Some(place) = self.place_of(operation, &response)? {
                    session.place = place;
                }
                let done = bytes_of(&response).filter(|done| *done > session.done).unwrap_or(end).min(end);
                session.sent += done - session.done;
                session.done = done;
                Ok(Taken::Yes)
            }
            StatusCode::NOT_FOUND if session.done > 0 => Ok(Taken::Lost),
            // What is still on its way from one who was killed may have come since it was asked.
            StatusCode::RANGE_NOT_SATISFIABLE if session.done > 0 => Err(self.transport.refusal(operation, response)),
            StatusCode::FORBIDDEN => Err(self.transport.refusal(operation, response)),
            _ => Ok(Taken::Unsupported(response)),
        }
    }

    /// An upload that was begun, as far as the registry still has it.
    fn recall(&mut self, operation: &str, place: Option<String>) -> Result<Option<Session>> {
        let Some(place) = place else { return Ok(None) };
        let response = self.transport.call(&Call {
            operation,
            method: Method::GET,
            target: &place,
            headers: Vec::new(),
            payload: Payload::Nothing,
            repeat: Repeat::Safe,
        })?;
        // Whatever else it says, it does not go on with it.
        if response.status() != StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let done = bytes_of(&response).unwrap_or(0);
        let place = self.place_of(operation, &response)?.unwrap_or(place);
        Ok(Some(Session { place, done, sent: 0 }))
    }

    fn begin_upload(&mut self, operation: &str) -> Result<String> {
        let target = self.path("blobs/uploads/");
        let response = self.transport.call(&Call {
            operation,
            method: Method::POST,
            target: &target,
            headers: Vec::new(),
            payload: Payload::Text(&[]),
            repeat: Repeat::Safe,
        })?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.transport.refusal(operation, response));
        }
        let nowhere = || Error::new(Kind::Invalid, operation, "the registry does not say where");
        self.place_of(operation, &response)?.ok_or_else(nowhere)
    }

    fn close_upload(&mut self, parcel: &Parcel<'_>, place: &str, payload: Payload<'_>) -> Result<Response<Body>> {
        let separator = if place.contains('?') { '&' } else { '?' };
        let digest = transport::percent(&parcel.blob.digest.to_string());
        self.transport.call(&Call {
            operation: parcel.operation,
            method: Method::PUT,
            target: &format!("{place}{separator}digest={digest}"),
            headers: vec![(CONTENT_TYPE, BYTES.to_owned())],
            payload,
            repeat: Repeat::Never,
        })
    }

    /// Where the registry says that it goes on.
    fn place_of(&self, operation: &str, response: &Response<Body>) -> Result<Option<String>> {
        let place = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        place.map(|place| self.transport.own_target(operation, place)).transpose()
    }
}

impl Parcel<'_> {
    /// The place that was noted, if it is one.
    fn read_note(&self) -> Option<String> {
        let mut text = String::new();
        let mut note = self.note?;
        note.seek(SeekFrom::Start(0)).ok()?;
        note.take(PLACE_MAX).read_to_string(&mut text).ok()?;
        let place = text.strip_suffix('\n')?;
        let plain = place.starts_with('/') && place.bytes().all(|byte| byte.is_ascii_graphic());
        plain.then(|| place.to_owned())
    }

    /// Without a note the next try begins anew: that it cannot be written is no reason to stop.
    fn write_note(&self, place: &str) {
        let Some(mut note) = self.note else { return };
        let mut write = || -> io::Result<()> {
            note.set_len(0)?;
            note.seek(SeekFrom::Start(0))?;
            if place.is_empty() { Ok(()) } else { note.write_all(format!("{place}\n").as_bytes()) }
        };
        if let Err(error) = write() {
            tracing::debug!("{}: note where it goes on: {error}", self.operation);
        }
    }
}

/// How many bytes the registry says that it has: `0-N`, up to and with N. Of one that has none, too, some say `0-0`.
fn bytes_of(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(RANGE)?.to_str().ok()?;
    parse_bytes(range)
}

fn parse_bytes(range: &str) -> Option<u64> {
    let range = range.trim().trim_start_matches("bytes=");
    let last: u64 = range.strip_prefix("0-")?.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_is_read_from_its_range() {
        let cases = ["0-99", "bytes=0-99", " 0-1 ", "0-0", "", "1-99", "0-x", "0--1", "0-18446744073709551615"];
        let found = cases.map(parse_bytes);
        assert_eq!(found, [Some(100), Some(100), Some(2), Some(0), None, None, None, None, None]);
    }
}
