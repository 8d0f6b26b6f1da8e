//! From tar bytes to a compressed, hashed blob, on all processors.
//!
//! ```text
//! caller ──chunks──┬─> hasher (diff id)
//!   ^              └─> encoders, in turn ──frames──> writer (digest, blob)
//!   └──── empty chunks ────┘
//! ```
//! Every chunk becomes a frame (zstd) or member (gzip) of its own; a file of several is one stream to every reader,
//! and its bytes do not depend on how many encoders there were. Chunks circulate, so their number bounds memory.
//! Every thread drains its channel until the sender is gone, also after a failure: nobody waits for ever.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, available_parallelism, scope};

use sha2::{Digest as _, Sha256};

use super::{Coding, Compression, Effort};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::Digest;

/// Tar bytes in a chunk.
const CHUNK: usize = 1 << 20;
/// Chunks in circulation.
const CHUNKS: usize = 10;
/// Frames that an encoder may be ahead of the writer.
const FRAMES_AHEAD: usize = 2;
/// More encoders would want more chunks and gain little.
const ENCODERS_MAX: usize = 4;
/// The fastest level: a pack is written on every exit, and read only when a layer was lost or is sent away.
const ZSTD_QUICK: i32 = 1;
/// For what stays: a tenth less of text, for twice the time. The next levels take more time and save next to nothing.
const ZSTD_LASTING: i32 = 3;

/// A buffer and how much of it is in use.
#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Chunk {
    fn data(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

/// What went through.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) diff_id: Digest,
    pub(super) tar_bytes: u64,
    pub(super) digest: Digest,
    pub(super) packed_bytes: u64,
}

/// The caller's end: takes tar bytes.
pub(super) struct TarStream<'a> {
    chunk: Chunk,
    empty: Receiver<Chunk>,
    hasher: Sender<Arc<Chunk>>,
    encoders: Vec<Sender<Arc<Chunk>>>,
    sent: u64,
    turn: usize,
    failed: &'a AtomicBool,
    progress: &'a mut dyn FnMut(u64),
}

/// Writes into `blob` what `produce` writes into the stream.
pub(super) fn run(
    coding: Coding,
    blob: &mut File,
    progress: &mut dyn FnMut(u64),
    produce: impl FnOnce(&mut TarStream<'_>) -> Result<()>,
) -> Result<Streams> {
    let failed = AtomicBool::new(false);
    scope(|threads| {
        let (recycle, empty) = channel();
        for _ in 1..CHUNKS {
            // The receiver is right here.
            let _ = recycle.send(Chunk { bytes: vec![0; CHUNK].into(), filled: 0 });
        }
        let (encoders, frames) = start_encoders(threads, coding, &recycle);
        let (hasher, to_hash) = channel();
        let hasher_thread = threads.spawn(move || hash(&to_hash, &recycle));
        let writer_failed = &failed;
        let writer_thread = threads.spawn(move || write(frames, blob, writer_failed));
        let chunk = Chunk { bytes: vec![0; CHUNK].into(), filled: 0 };
        let mut stream = TarStream { chunk, empty, hasher, encoders, sent: 0, turn: 0, failed: &failed, progress };
        let produced = produce(&mut stream).and_then(|()| stream.send());
        let tar_bytes = stream.sent;
        drop(stream);
        let (diff_id, written) = (joined(hasher_thread.join())?, joined(writer_thread.join())?);
        // A blob that cannot be written stops the caller: the writer knows why.
        let (digest, packed_bytes) = written.context(|| "write the blob")?;
        produced?;
        Ok(Streams { diff_id, tar_bytes, digest, packed_bytes })
    })
}

fn joined<T>(result: std::thread::Result<T>) -> Result<T> {
    result.map_err(|_| Error::new(Kind::System, "pack a layer", "a thread of it panicked"))
}

impl TarStream<'_> {
    /// Takes bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let count = bytes.len().min(room.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.chunk.filled += count;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Takes zeros.
    pub(super) fn pad(&mut self, mut count: usize) -> Result<()> {
        while count > 0 {
            let room = self.room()?;
            let now = count.min(room.len());
            room[..now].fill(0);
            self.chunk.filled += now;
            count -= now;
        }
        Ok(())
    }

    /// Takes a stretch of a file, without another copy.
    pub(super) fn copy(&mut self, file: BorrowedFd<'_>, mut offset: u64, mut length: u64) -> Result<()> {
        while length > 0 {
            let room = self.room()?;
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(room.len());
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut room[..count], offset))
                .context(|| "read it")?;
            if read == 0 {
                let cause = "it became shorter meanwhile: nothing else may change a layer";
                return Err(Error::new(Kind::Damaged, "read it", cause));
            }
            self.chunk.filled += read;
            offset += read as u64;
            length -= read as u64;
        }
        Ok(())
    }

    /// The free part of the current chunk, which is not empty.
    fn room(&mut self) -> Result<&mut [u8]> {
        if self.chunk.filled == self.chunk.bytes.len() {
            self.send()?;
        }
        Ok(&mut self.chunk.bytes[self.chunk.filled..])
    }

    /// Sends the current chunk off and waits for an empty one.
    fn send(&mut self) -> Result<()> {
        let stopped = || Error::new(Kind::System, "pack a layer", "a thread of it ended early");
        if self.failed.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let mut next = self.empty.recv().map_err(|_| stopped())?;
        next.filled = 0;
        let full = Arc::new(std::mem::replace(&mut self.chunk, next));
        self.sent += full.filled as u64;
        (self.progress)(self.sent);
        self.hasher.send(Arc::clone(&full)).map_err(|_| stopped())?;
        self.encoders[self.turn].send(full).map_err(|_| stopped())?;
        self.turn = (self.turn + 1) % self.encoders.len();
        Ok(())
    }
}

/// Gives a chunk back once nobody else needs it.
fn recycle_chunk(chunk: Arc<Chunk>, recycle: &Sender<Chunk>) {
    if let Some(chunk) = Arc::into_inner(chunk) {
        // At the end nobody waits for empty chunks any more.
        let _ = recycle.send(chunk);
    }
}

fn hash(chunks: &Receiver<Arc<Chunk>>, recycle: &Sender<Chunk>) -> Digest {
    let mut hash = Sha256::new();
    for chunk in chunks {
        hash.update(chunk.data());
        recycle_chunk(chunk, recycle);
    }
    Digest::from_bytes(hash.finalize().into())
}

/// An encoder's way out, and the way back for its buffers.
type Frames = (Receiver<io::Result<Vec<u8>>>, Sender<Vec<u8>>);

fn start_encoders<'scope>(
    threads: &'scope Scope<'scope, '_>,
    coding: Coding,
    recycle: &Sender<Chunk>,
) -> (Vec<Sender<Arc<Chunk>>>, Vec<Frames>) {
    let count = available_parallelism().map_or(1, usize::from).min(ENCODERS_MAX);
    let start = |_| {
        let (chunks, to_encode) = channel();
        let (frames, to_write) = sync_channel(FRAMES_AHEAD);
        let (written, buffers) = channel();
        let recycle = recycle.clone();
        threads.spawn(move || encode(coding, &to_encode, &recycle, (&frames, &buffers)));
        (chunks, (to_write, written))
    };
    (0..count).map(start).unzip()
}

fn encode(
    coding: Coding,
    chunks: &Receiver<Arc<Chunk>>,
    recycle: &Sender<Chunk>,
    (frames, buffers): (&SyncSender<io::Result<Vec<u8>>>, &Receiver<Vec<u8>>),
) {
    let mut encoder = Encoder::new(coding);
    for chunk in chunks {
        let mut frame = buffers.try_recv().unwrap_or_default();
        frame.clear();
        let result = match &mut encoder {
            Ok(encoder) => encoder.encode(chunk.data(), &mut frame),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        recycle_chunk(chunk, recycle);
        // A writer that has failed takes no more frames; what is left is drained.
        let _ = frames.send(result.map(|()| frame));
    }
}

enum Encoder {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip,
    None,
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match (coding.compression, coding.effort) {
            (Compression::Zstd, Effort::Quick) => Self::Zstd(zstd::bulk::Compressor::new(ZSTD_QUICK)?),
            (Compression::Zstd, Effort::Lasting) => Self::Zstd(zstd::bulk::Compressor::new(ZSTD_LASTING)?),
            (Compression::Gzip, _) => Self::Gzip,
            (Compression::None, _) => Self::None,
        })
    }

    fn encode(&mut self, chunk: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Zstd(compressor) => {
                frame.reserve(zstd::zstd_safe::compress_bound(chunk.len()));
                compressor.compress_to_buffer(chunk, frame).map(drop)
            }
            Self::Gzip => {
                let mut member = flate2::write::GzEncoder::new(frame, flate2::Compression::default());
                member.write_all(chunk)?;
                member.finish().map(drop)
            }
            Self::None => {
                frame.extend_from_slice(chunk);
                Ok(())
            }
        }
    }
}

/// Takes the frames in the order in which their chunks were given out.
fn write(frames: Vec<Frames>, blob: &mut File, failed: &AtomicBool) -> io::Result<(Digest, u64)> {
    let (mut hash, mut length) = (Sha256::new(), 0);
    for (frames, written) in frames.iter().cycle() {
        let Ok(frame) = frames.recv() else { break };
        let result = frame.and_then(|frame| {
            hash.update(&frame);
            length += frame.len() as u64;
            blob.write_all(&frame)?;
            // An encoder that is done needs no buffers.
            let _ = written.send(frame);
            Ok(())
        });
        if let Err(error) = result {
            failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
    }
    Ok((Digest::from_bytes(hash.finalize().into()), length))
}
