//! Reads a tar stream that nobody vouches for, entry by entry.
//!
//! The tar crate's reader holds a whole set of records in memory whatever its size, and ends a value at its first
//! newline; here every length is capped before it is believed.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{BufRead, ErrorKind};
use std::os::unix::ffi::OsStrExt;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::attribute::Attribute;
use super::header::{BLOCK, RECORDS_CAP};
use super::name::Refusal;
use super::record::{Records, SparseRecords, decimal, id, number, unsigned};
use super::sparse::{self, PIECES_CAP, Piece};
use crate::error::{Context, Error, Kind, Result, quote};

/// The longest name in a GNU long-name entry.
const LONG_NAME_CAP: u64 = 1 << 20;
/// How much padding may follow the end of the archive: GNU tar writes records of up to 32 MiB.
const PADDING_CAP: u64 = 32 << 20;

/// One file of the stream. Its content is still to be read.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: EntryType,
    pub(super) stored: Vec<u8>,
    pub(super) real: Option<Vec<u8>>,
    pub(super) link: Vec<u8>,
    pub(super) real_link: Option<Vec<u8>>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) device: (u32, u32),
    pub(super) attributes: Vec<Attribute>,
    /// Bytes of content in the stream.
    pub(super) data: u64,
    /// The file's size and where its data goes, if it has holes.
    pub(super) sparse: Option<(u64, Vec<Piece>)>,
}

/// A tar stream.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: R,
    /// Header blocks still allowed, extended ones too.
    headers_left: u64,
    /// Bytes between what was read of the current entry and the next header.
    pending: u64,
    /// The name of the last entry.
    last: Vec<u8>,
}

fn show(name: &[u8]) -> String {
    quote(OsStr::from_bytes(name))
}

fn refused(cause: Refusal) -> Error {
    Error::new(Kind::Invalid, "read its header", cause)
}

fn truncated() -> Error {
    Error::new(Kind::Damaged, "read the tar stream", "it ends too early")
}

impl<R: BufRead> Reader<R> {
    /// Reads at most `headers` headers.
    pub(super) fn new(input: R, headers: u64) -> Self {
        Self { input, headers_left: headers, pending: 0, last: Vec::new() }
    }

    /// The next entry, with what is left of the last one skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let (mut records, mut long_name, mut long_link) = (Records::default(), None, None);
        loop {
            let header = self.header().map_err(|error| error.during(self.position()))?;
            let Some(header) = header else { return Ok(None) };
            let operation = || format!("read {}", show(&header.path_bytes()));
            let size = unsigned(&header.as_old().size).map_err(refused).context(operation)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let body = self.extension(size, RECORDS_CAP).context(operation)?;
                    records = Records::parse(&body).map_err(refused).context(operation)?;
                }
                // Its records are defaults for all entries; image tools pass over them, and so nobody may rely on them.
                EntryType::XGlobalHeader => drop(self.extension(size, RECORDS_CAP).context(operation)?),
                EntryType::GNULongName => long_name = Some(self.long_name(size).context(operation)?),
                EntryType::GNULongLink => long_link = Some(self.long_name(size).context(operation)?),
                kind => {
                    records.path = records.path.or(long_name);
                    records.link = records.link.or(long_link);
                    let entry = self.entry(&header, kind, records)?;
                    self.last.clone_from(&entry.stored);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Where in the stream a header is that nobody knows the name of.
    fn position(&self) -> String {
        match self.last.is_empty() {
            true => "read the first entry".into(),
            false => format!("read the entry after {}", show(&self.last)),
        }
    }

    /// Gives the next `length` bytes of the entry's content to `take`, in pieces.
    pub(super) fn content(&mut self, mut length: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while length > 0 {
            let buffer = fill(&mut self.input)?;
            if buffer.is_empty() {
                return Err(truncated());
            }
            let count = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            take(&buffer[..count])?;
            self.input.consume(count);
            length -= count as u64;
            self.pending = self.pending.saturating_sub(count as u64);
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>> {
        self.content(self.pending, |_| Ok(()))?;
        if fill(&mut self.input)?.is_empty() {
            // GNU tar warns, others do not even that: the digest says that this is all there ever was.
            return Ok(None);
        }
        let mut header = Header::new_old();
        self.block(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return self.end().map(|()| None);
        }
        self.headers_left = self.headers_left.checked_sub(1).ok_or_else(|| {
            Error::new(Kind::Invalid, "count its entries", "there are more than are allowed in a layer")
        })?;
        check_sum(&header).map_err(|cause| Error::new(Kind::Damaged, "read a header", cause))?;
        Ok(Some(header))
    }

    /// After the first zero block, there is only padding.
    fn end(&mut self) -> Result<()> {
        let mut padding = 0;
        loop {
            let buffer = fill(&mut self.input)?;
            if buffer.is_empty() {
                return Ok(());
            }
            padding += buffer.len() as u64;
            if padding > PADDING_CAP || buffer.iter().any(|byte| *byte != 0) {
                return Err(Error::new(Kind::Damaged, "read the end of the tar stream", "something follows it"));
            }
            let count = buffer.len();
            self.input.consume(count);
        }
    }

    fn block(&mut self, block: &mut [u8]) -> Result<()> {
        let mut at = 0;
        self.content(block.len() as u64, |bytes| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
            Ok(())
        })
    }

    /// The whole content of an extended header.
    fn extension(&mut self, size: u64, cap: u64) -> Result<Vec<u8>> {
        if size > cap {
            return Err(refused("an extended header of absurd size"));
        }
        self.pending = size.next_multiple_of(BLOCK as u64);
        let mut body = Vec::new();
        self.content(size, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(body)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut name = self.extension(size, LONG_NAME_CAP)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn entry(&mut self, header: &Header, kind: EntryType, mut records: Records) -> Result<Entry> {
        let path = records.sparse.name.take().or(records.path.take());
        let stored = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let operation = || format!("read {}", show(&stored));
        let sparse = std::mem::take(&mut records.sparse);
        let mut entry = fields(header, kind, records).map_err(|cause| refused(cause).during(operation()))?;
        if entry.kind.is_file() && stored.ends_with(b"/") {
            // Archives older than POSIX mark a directory by the slash at the end of its name.
            entry.kind = EntryType::Directory;
        }
        if !matches!(entry.kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse) {
            // Links and directories may name a size, but nothing follows them.
            entry.data = 0;
        }
        self.pending = entry.data.next_multiple_of(BLOCK as u64);
        self.sparse(header, &mut entry, sparse).context(operation)?;
        entry.stored = stored;
        Ok(entry)
    }

    /// Reads the map of a file with holes, in any of the forms that GNU tar wrote over time.
    fn sparse(&mut self, header: &Header, entry: &mut Entry, records: SparseRecords) -> Result<()> {
        let (size, pieces) = match (entry.kind, (records.version, records.size, records.map)) {
            (EntryType::GNUSparse, _) => {
                let Some(gnu) = header.as_gnu() else { return Err(sparse::refuse("the header is not GNU tar's")) };
                entry.kind = EntryType::Regular;
                // The blocks that continue the header are not counted in its size.
                let padded = std::mem::take(&mut self.pending);
                let pieces = self.old_map(&gnu.sparse, gnu.is_extended())?;
                self.pending = padded;
                (unsigned(&gnu.realsize).map_err(sparse::refuse)?, pieces)
            }
            (EntryType::Regular, ((1, 0), Some(size), _)) => (size, self.map_before_data(entry)?),
            (EntryType::Regular, (_, Some(size), Some(pieces))) => (size, pieces),
            (_, ((0, 0), None, None)) => return Ok(()),
            _ => return Err(sparse::refuse("it is of a kind that is not known")),
        };
        if size > i64::MAX.unsigned_abs() {
            return Err(sparse::refuse("the file's size is out of range"));
        }
        sparse::check(&pieces, size, entry.data)?;
        entry.sparse = Some((size, pieces));
        Ok(())
    }

    fn old_map(&mut self, first: &[GnuSparseHeader], mut extended: bool) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut add = |fields: &[GnuSparseHeader]| -> Result<()> {
            for field in fields.iter().filter(|field| !field.is_empty()) {
                let offset = unsigned(&field.offset).map_err(sparse::refuse)?;
                pieces.push(Piece { offset, length: unsigned(&field.numbytes).map_err(sparse::refuse)? });
            }
            if pieces.len() > PIECES_CAP { Err(sparse::refuse("too many pieces")) } else { Ok(()) }
        };
        add(first)?;
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.block(block.as_mut_bytes())?;
            add(&block.sparse)?;
            extended = block.is_extended();
        }
        Ok(pieces)
    }

    /// Decimal lines in whole blocks before the data: how many pieces, then offset and length of each.
    fn map_before_data(&mut self, entry: &mut Entry) -> Result<Vec<Piece>> {
        let (mut text, mut lines, mut wanted) = (Vec::new(), 0, None);
        while wanted.is_none_or(|wanted| lines < wanted) {
            let mut block = [0; BLOCK];
            entry.data = entry.data.checked_sub(BLOCK as u64).ok_or_else(|| sparse::refuse("it does not end"))?;
            self.block(&mut block)?;
            lines += block.iter().filter(|byte| **byte == b'\n').count();
            text.extend_from_slice(&block);
            if wanted.is_none() && lines > 0 {
                let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let count = decimal(line).map_err(sparse::refuse)?;
                let count = usize::try_from(count).ok().filter(|count| *count <= 2 * PIECES_CAP);
                wanted = Some(1 + 2 * count.ok_or_else(|| sparse::refuse("too many pieces"))?);
            }
        }
        let numbers = text.split(|byte| *byte == b'\n').take(wanted.unwrap_or(1)).skip(1).map(decimal);
        let numbers = numbers.collect::<Result<Vec<_>, _>>().map_err(sparse::refuse)?;
        Ok(numbers.chunks(2).map(|pair| Piece { offset: pair[0], length: pair[1] }).collect())
    }
}

/// The fields of a header, or what the records say instead.
fn fields(header: &Header, kind: EntryType, records: Records) -> Result<Entry, Refusal> {
    let fields = header.as_old();
    let device = match (kind, header.as_ustar(), header.as_gnu()) {
        (EntryType::Char | EntryType::Block, Some(ustar), _) => (number(&ustar.dev_major)?, number(&ustar.dev_minor)?),
        (EntryType::Char | EntryType::Block, None, Some(gnu)) => (number(&gnu.dev_major)?, number(&gnu.dev_minor)?),
        _ => (0, 0),
    };
    let device_number = |number: i64| u32::try_from(number).map_err(|_| "a device number out of range");
    let data = records.size.map_or_else(|| unsigned(&fields.size), Ok)?;
    let link = records.link.or_else(|| header.link_name_bytes().map(Cow::into_owned));
    Ok(Entry {
        kind,
        stored: Vec::new(),
        real: records.real_path,
        link: link.unwrap_or_default(),
        real_link: records.real_link,
        mode: u32::try_from(unsigned(&fields.mode)? & 0o7777).unwrap_or(0),
        uid: records.uid.map_or_else(|| id(unsigned(&fields.uid)?), Ok)?,
        gid: records.gid.map_or_else(|| id(unsigned(&fields.gid)?), Ok)?,
        mtime: records.mtime.map_or_else(|| Ok::<_, Refusal>((number(&fields.mtime)?, 0)), Ok)?,
        device: (device_number(device.0)?, device_number(device.1)?),
        attributes: records.attributes,
        data: i64::try_from(data).map_err(|_| "a size out of range")?.unsigned_abs(),
        sparse: None,
    })
}

fn fill(input: &mut impl BufRead) -> Result<&[u8]> {
    // Retried here, because the borrow of a buffer cannot be returned from inside a loop.
    while let Err(error) = input.fill_buf() {
        if error.kind() != ErrorKind::Interrupted {
            return Err(error).context(|| "read the tar stream");
        }
    }
    input.fill_buf().context(|| "read the tar stream")
}

/// The sum of the header's bytes, with its own field as spaces; some old writers summed signed bytes.
fn check_sum(header: &Header) -> Result<(), Refusal> {
    let expected = number(&header.as_old().cksum)?;
    let bytes = header.as_bytes();
    let plain = bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]);
    let (unsigned, signed) = plain
        .fold((0, 0), |(unsigned, signed), byte| (unsigned + i64::from(*byte), signed + i64::from(byte.cast_signed())));
    if expected == unsigned || expected == signed { Ok(()) } else { Err("its sum is wrong") }
}

#[cfg(test)]
mod tests {
    use super::super::header::Meta;
    use super::*;

    #[test]
    fn what_no_header_field_has_room_for_comes_back() {
        let attributes = [Attribute { name: b"user.a=%".to_vec(), value: b"\n=\n\0".to_vec() }];
        let path = [b"p".repeat(300), b"\xff".repeat(100)].join(b"/".as_slice());
        let meta = Meta {
            mode: 0o7777,
            uid: 1 << 31,
            gid: u32::MAX - 1,
            mtime: (-5_000_000_000, 1),
            size: 10 << 40,
            attributes: &attributes,
            ..Meta::mark(&path, Some(b"real"))
        };
        let entry = Reader::new(meta.encode().unwrap().as_slice(), 2).next().unwrap().unwrap();
        assert_eq!((entry.stored, entry.real), (path, Some(b"real".to_vec())));
        assert_eq!((entry.mode, entry.uid, entry.gid), (0o7777, 1 << 31, u32::MAX - 1));
        assert_eq!((entry.mtime, entry.data, entry.sparse), ((-5_000_000_000, 1), 10 << 40, None));
        assert_eq!(entry.attributes, attributes);
    }

    #[test]
    fn a_link_has_its_target_whatever_its_length() {
        for length in [1, 99, 100, 101, 4000] {
            let target = b"t".repeat(length);
            let meta = Meta { kind: EntryType::Symlink, link: Some((&target, None)), ..Meta::mark(b"l", None) };
            let entry = Reader::new(meta.encode().unwrap().as_slice(), 2).next().unwrap().unwrap();
            assert_eq!((entry.kind, entry.link), (EntryType::Symlink, target));
        }
    }

    #[test]
    fn a_map_of_holes_comes_back() {
        let pieces = vec![Piece { offset: 4096, length: 3 }, Piece { offset: 1 << 39, length: 0 }];
        let map = sparse::encode(&pieces[..1], 1 << 39);
        let meta = Meta { size: map.len() as u64 + 3, sparse: Some(1 << 39), ..Meta::mark(b"s", None) };
        let stream = [meta.encode().unwrap(), map, b"abc".to_vec()].concat();
        let entry = Reader::new(stream.as_slice(), 2).next().unwrap().unwrap();
        assert_eq!((entry.stored.as_slice(), entry.data, entry.sparse), (b"s".as_slice(), 3, Some((1 << 39, pieces))));
    }
}
