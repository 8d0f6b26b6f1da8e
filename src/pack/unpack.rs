//! A blob becomes a layer directory: digest first, then the bytes, then the diff id.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::scope;

use rustix::fs::{Advice, CWD, Mode, fadvise, openat};
use sha2::digest::Update;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::Compression;
use super::name::{self, Meaning, Refusal};
use super::place::Place;
use super::reader::{Entry, Reader};
use super::trail::DIRECTORY;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Digest;
use crate::sys::fs::start_writeback;
use crate::sys::xattr::OverlayClass;

/// Bytes read and hashed at a time.
const PIECE: usize = 1 << 18;
/// Compressed bytes held at a time: a whole frame of ours is then decompressed to where it is wanted, without a copy.
const INPUT: usize = 4 << 20;
/// Bytes decompressed at a time: a frame of ours.
const CHUNK: usize = 1 << 20;
/// Chunks that decompression may be ahead.
const CHUNKS_AHEAD: usize = 4;
/// Bytes of a file after which the disk begins to write them, instead of waiting for whoever flushes everything at the end.
const STRETCH: u64 = 8 << 20;
/// Files that may wait for that.
const STRETCHES: usize = 4;

/// How much a layer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of file content that is written; holes are not.
    pub max_bytes: u64,
    /// Of headers: files, directories, links, marks.
    pub max_entries: u64,
    /// Which sorts of files.
    pub files: Files,
}

/// Which sorts of files there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// All that a root file system has, and the marks of a layer.
    Layer,
    /// Files, directories, and links that stay inside: what may be shown anywhere, and to anybody.
    Inside,
}

/// What a blob has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Of the blob.
    pub digest: Digest,
    /// Of the tar stream in it, if that is known.
    pub diff_id: Option<Digest>,
}

/// A layer that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Of the tar stream.
    pub diff_id: Digest,
    /// Length of the tar stream.
    pub tar_bytes: u64,
    /// File content that was written.
    pub content_bytes: u64,
}

/// Unpacks `blob` (from offset 0, wherever it stands) into `into`, an empty directory that nobody else uses yet.
///
/// Not a byte is decompressed before the blob's digest is right. Whiteouts and opaque directories get the form that
/// overlay has for them in `class`. Nothing is sure to be on disk. After an error, `into` holds anything; the caller
/// removes it. Starts two threads.
///
/// # Errors
/// [`Kind::Damaged`] for a wrong digest or a stream that is no tar, [`Kind::Invalid`] for an entry that is refused
/// (the line names it) or exceeds the limits, else those of writing.
#[expect(clippy::too_many_arguments, reason = "what, from where, to where, how much: no two make a thing")]
pub fn unpack_layer(
    blob: &File,
    expected: &Expected,
    compression: Compression,
    class: OverlayClass,
    limits: &Limits,
    into: &Path,
) -> Result<Unpacked> {
    let operation = || format!("unpack layer {}", &expected.digest.hex()[..12]);
    verify(blob, &expected.digest).context(operation)?;
    let root =
        openat(CWD, into, DIRECTORY, Mode::empty()).context(|| format!("open {}", quote(into))).context(operation)?;
    let place = Place::new(root, class).context(operation)?;
    let (stream, content_bytes) = place_stream(blob, compression, place, limits, Sha256::new()).context(operation)?;
    let unpacked = Unpacked {
        diff_id: Digest::from_bytes(stream.hash.finalize().into()),
        tar_bytes: stream.length,
        content_bytes,
    };
    match &expected.diff_id {
        Some(diff_id) if *diff_id != unpacked.diff_id => {
            let cause = format!("the tar stream is {}, but {diff_id} was expected", unpacked.diff_id);
            Err(Error::new(Kind::Damaged, operation(), cause))
        }
        Some(_) | None => Ok(unpacked),
    }
}

/// Unpacks `blob` once more, of which it is known what it holds if its digest is right: that is found out meanwhile, and the
/// stream in it is not hashed again. The rest is as with [`unpack_layer`]; starts three threads.
///
/// # Errors
/// As [`unpack_layer`]. A wrong digest is reported before anything that comes of it.
pub fn rebuild_layer(
    blob: &File,
    digest: &Digest,
    compression: Compression,
    class: OverlayClass,
    into: &Path,
) -> Result<()> {
    let operation = || format!("unpack layer {}", &digest.hex()[..12]);
    let root =
        openat(CWD, into, DIRECTORY, Mode::empty()).context(|| format!("open {}", quote(into))).context(operation)?;
    let place = Place::new(root, class).context(operation)?;
    let limits = Limits { max_bytes: u64::MAX, max_entries: u64::MAX, files: Files::Layer };
    scope(|threads| {
        let verifier = threads.spawn(|| verify(blob, digest));
        let placed = place_stream(blob, compression, place, &limits, Unhashed);
        verifier.join().map_err(|_| Error::new(Kind::System, "verify its digest", "a thread panicked"))??;
        placed.map(drop)
    })
    .context(operation)
}

/// Decompresses on a thread of its own, places what comes, and has long files written to the disk meanwhile. Gives the stream that was read, and the bytes of content.
fn place_stream<H: Update + Send>(
    blob: &File,
    compression: Compression,
    place: Place,
    limits: &Limits,
    hash: H,
) -> Result<(Inflated<H>, u64)> {
    scope(|threads| {
        let (full, chunks) = sync_channel(CHUNKS_AHEAD);
        let (empty, recycled) = channel();
        let inflater = threads.spawn(move || inflate(blob, compression, (&full, &recycled), hash));
        let stream = Stream { chunks, recycle: empty, chunk: Vec::new(), at: 0 };
        let (behind, written) = sync_channel(STRETCHES);
        threads.spawn(move || write_back(&written));
        let placed = place_all(Reader::new(stream, limits.max_entries), place, limits, &Behind(behind));
        let inflated = inflater.join().map_err(|_| Error::new(Kind::System, "decompress it", "a thread panicked"))?;
        Ok((inflated, placed?))
    })
}

/// Has the disk begin with files of which much was written. Whether it does changes nothing but how long a flush takes.
fn write_back(files: &Receiver<File>) {
    for file in files {
        let _ = start_writeback(&file);
    }
}

/// The way to who does that.
struct Behind(SyncSender<File>);

impl Behind {
    fn tell(&self, file: &File) {
        // The disk may be behind; then it has enough to do.
        let _ = file.try_clone().map(|file| self.0.try_send(file));
    }
}

/// What was read of a stream; its hash counts only if that was all of it.
struct Inflated<H> {
    hash: H,
    length: u64,
}

/// In place of a hash that nobody asks for.
struct Unhashed;

impl Update for Unhashed {
    fn update(&mut self, _: &[u8]) {}
}

/// Reads a file from its start, wherever others have moved its position to.
#[derive(Debug)]
struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

pub(super) fn verify(blob: &File, expected: &Digest) -> Result<()> {
    // Only a hint.
    let _ = fadvise(blob, 0, None, Advice::Sequential);
    let (mut input, mut hash) = (FromStart { file: blob, offset: 0 }, Sha256::new());
    let mut buffer = vec![0; PIECE];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => Update::update(&mut hash, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "read the blob"),
        }
    }
    let digest = Digest::from_bytes(hash.finalize().into());
    if digest == *expected {
        return Ok(());
    }
    let cause = format!("the blob is {digest}, but {expected} was expected");
    Err(Error::new(Kind::Damaged, "verify its digest", cause))
}

/// The tar stream in a blob, from its start.
pub(super) fn decoder(blob: &File, compression: Compression) -> io::Result<Box<dyn Read + '_>> {
    let raw = BufReader::with_capacity(INPUT, FromStart { file: blob, offset: 0 });
    Ok(match compression {
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(raw)?),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
        Compression::None => Box::new(raw),
    })
}

fn inflate<H: Update>(
    blob: &File,
    compression: Compression,
    (chunks, recycled): (&SyncSender<io::Result<Vec<u8>>>, &Receiver<Vec<u8>>),
    hash: H,
) -> Inflated<H> {
    let mut inflated = Inflated { hash, length: 0 };
    let mut run = || -> io::Result<()> {
        let mut input = decoder(blob, compression)?;
        loop {
            let mut chunk = recycled.try_recv().unwrap_or_default();
            chunk.resize(CHUNK, 0);
            let filled = fill(&mut input, &mut chunk)?;
            if filled == 0 {
                return Ok(());
            }
            chunk.truncate(filled);
            inflated.hash.update(&chunk);
            inflated.length += filled as u64;
            if chunks.send(Ok(chunk)).is_err() {
                // The reader found something to refuse.
                return Ok(());
            }
        }
    };
    if let Err(error) = run() {
        let cause = io::Error::new(io::ErrorKind::InvalidData, format!("decompress: {error}"));
        // As above.
        let _ = chunks.send(Err(cause));
    }
    inflated
}

/// Reads until the buffer is full or there is no more; how much that was.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The decompressed stream, at the reader's end.
#[derive(Debug)]
struct Stream {
    chunks: Receiver<io::Result<Vec<u8>>>,
    recycle: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut rest = self.fill_buf()?;
        let count = rest.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len()
            && let Ok(next) = self.chunks.recv()
        {
            // At the end, nobody needs buffers any more.
            let _ = self.recycle.send(std::mem::replace(&mut self.chunk, next?));
            self.at = 0;
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// The bytes of content.
fn place_all<R: BufRead>(mut reader: Reader<R>, mut place: Place, limits: &Limits, behind: &Behind) -> Result<u64> {
    let (mut content_bytes, max_bytes) = (0, limits.max_bytes);
    while let Some(entry) = reader.next()? {
        let operation = || format!("place {}", quote(std::ffi::OsStr::from_bytes(&entry.stored)));
        if entry.data > max_bytes - content_bytes {
            let cause = format!("the layer's content would be more than the {max_bytes} bytes that are allowed");
            return Err(Error::new(Kind::Invalid, operation(), cause));
        }
        place_entry(&mut reader, &mut place, &entry, (limits.files, behind)).context(operation)?;
        content_bytes += entry.data;
    }
    place.finish().context(|| "finish its directories")?;
    Ok(content_bytes)
}

fn place_entry<R: BufRead>(
    reader: &mut Reader<R>,
    place: &mut Place,
    entry: &Entry,
    (files, behind): (Files, &Behind),
) -> Result<()> {
    let refused = |cause: Refusal| Error::new(Kind::Invalid, "check its name", cause);
    let meaning = name::parse_meaning(&entry.stored, entry.real.as_deref()).map_err(refused)?;
    if files == Files::Inside {
        check_inside(&meaning, entry).map_err(|cause| Error::new(Kind::Invalid, "check it", cause))?;
    }
    let path = match meaning {
        Meaning::Nothing => return Ok(()),
        Meaning::Whiteout(path) => return place.whiteout(&path),
        Meaning::Opaque(path) => return place.opaque(&path),
        Meaning::Entry(path) => path,
    };
    match entry.kind {
        EntryType::Directory => place.directory(&path, entry),
        EntryType::Regular | EntryType::Continuous => {
            let file = File::from(place.file(&path)?);
            write(reader, &file, entry, behind)?;
            place.set_open(file.as_fd(), entry)
        }
        EntryType::Link => {
            let target = name::parse_target(&entry.link, entry.real_link.as_deref());
            let target = target.map_err(|cause| Error::new(Kind::Invalid, "check its target", cause))?;
            place.hard_link(&path, &target)
        }
        _ => place.special(&path, entry),
    }
}

/// Whether an entry is one of [`Files::Inside`].
fn check_inside(meaning: &Meaning, entry: &Entry) -> Result<(), Refusal> {
    let path = match meaning {
        Meaning::Nothing => return Ok(()),
        Meaning::Whiteout(_) | Meaning::Opaque(_) => return Err("a mark for the layers below, where there are none"),
        Meaning::Entry(path) => path,
    };
    match entry.kind {
        EntryType::Symlink if name::leads_out(path, &entry.link) => Err("a symbolic link that leads out"),
        EntryType::Block | EntryType::Char => Err("a device"),
        EntryType::Fifo => Err("a fifo"),
        _ => Ok(()),
    }
}

fn write<R: BufRead>(reader: &mut Reader<R>, file: &File, entry: &Entry, behind: &Behind) -> Result<()> {
    let mut stretch = 0;
    let mut write_at = |mut offset: u64, length: u64| {
        reader.content(length, |bytes| {
            file.write_all_at(bytes, offset).context(|| "write it")?;
            offset += bytes.len() as u64;
            stretch += bytes.len() as u64;
            if stretch >= STRETCH {
                behind.tell(file);
                stretch = 0;
            }
            Ok(())
        })
    };
    let Some((size, pieces)) = &entry.sparse else { return write_at(0, entry.data) };
    for piece in pieces {
        write_at(piece.offset, piece.length)?;
    }
    file.set_len(*size).context(|| "set its size")
}
