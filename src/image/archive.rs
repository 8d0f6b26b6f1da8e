//! An OCI image layout inside a tar file, read where it lies.
//!
//! The headers are read once, remembering where each blob begins; nothing is unpacked and no name of the archive ever
//! becomes a path. Of the file's headers only what blobs need is understood: names, sizes (also those beyond 8 GiB,
//! which pax headers carry), and types.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tar::{EntryType, Header, PaxExtensions};

use super::layout::check_marker;
use super::manifest::{Descriptor, INDEX_MAX, Index};
use super::stage::Stage;
use crate::error::{Context, Error, Kind, Result, quote};
use crate::ids::Digest;

const BLOCK: u64 = 512;
const COPY_BUFFER: usize = 1 << 20;
/// More entries than any image has: a manifest of the largest size that is read names fewer blobs.
const ENTRIES_MAX: usize = 100_000;
/// The largest pax or long-name header that is read.
const EXTENSION_MAX: u64 = 1 << 20;

/// Whether the tar file says where it ends, with blocks of zeros. One that does not is taken if all is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Ending {
    #[default]
    Marked,
    /// So many bytes are there.
    Missing { size: u64 },
}

/// What is missing may lie behind the end of what is there.
fn cut_short(operation: String, size: u64) -> Error {
    let cause = format!("the file ends at byte {size}, before the end of the archive: it was cut short");
    Error::new(Kind::Damaged, operation, cause).next("copy the archive again")
}

/// Where in the tar file something lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    start: u64,
    len: u64,
}

/// A tar file with a layout in it.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: File,
    index: Index,
    blobs: HashMap<Digest, Extent>,
    ending: Ending,
}

impl Archive {
    /// Reads the headers of the whole file, and its index.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no file, [`Kind::Invalid`] if it is no tar file of a layout or has names that
    /// lead out of it, [`Kind::Damaged`] if it ends early.
    pub fn open(path: &Path) -> Result<Self> {
        let operation = || format!("open image archive {}", quote(path));
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).context(operation)?);
        let metadata = file.metadata().context(operation)?;
        if metadata.is_dir() {
            let next = "for a directory in OCI layout, give oci:DIR";
            return Err(Error::new(Kind::Invalid, operation(), "it is a directory").next(next));
        }
        if !metadata.is_file() {
            return Err(Error::new(Kind::Invalid, operation(), "it is not a regular file"));
        }
        let contents = Scan { file: &file, size: metadata.len() }.run().context(operation)?;
        let part = |name: &str, extent: Option<Extent>| match (extent, contents.ending) {
            (Some(extent), _) => read_extent(&file, extent, INDEX_MAX).context(|| format!("read '{name}'")),
            (None, Ending::Missing { size }) => Err(cut_short(format!("look for '{name}'"), size)),
            (None, Ending::Marked) => Err(Error::new(Kind::Invalid, "read layout", format!("it has no file '{name}'"))
                .next("give an archive made by 'skopeo copy … oci-archive:FILE'")),
        };
        let index = part("oci-layout", contents.marker)
            .and_then(|marker| check_marker(&marker))
            .and_then(|()| part("index.json", contents.index))
            .and_then(|bytes| Index::parse(&bytes))
            .context(operation)?;
        Ok(Self { path: path.to_owned(), file, index, blobs: contents.blobs, ending: contents.ending })
    }

    /// The archive's index.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Reads a small blob; its digest is the caller's to check.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Damaged`] if it is larger than `cap` or the archive was cut short, else those of read.
    pub fn read_blob(&self, digest: &Digest, cap: u64) -> Result<Vec<u8>> {
        let operation = || format!("read blob {digest} in {}", quote(&self.path));
        read_extent(&self.file, self.extent(digest)?, cap).context(operation)
    }

    /// Copies a blob into a file of its own in `scratch`, which has no name and is gone when it is closed.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Damaged`] if the size is not the descriptor's, else those of copying.
    pub fn copy_blob(&self, descriptor: &Descriptor, scratch: &Path) -> Result<File> {
        let mut blob = BufReader::with_capacity(COPY_BUFFER, self.open_blob(descriptor)?);
        let operation =
            || format!("copy blob {} from {} to {}", descriptor.digest_text(), quote(&self.path), quote(scratch));
        let mut copy = Stage::create(scratch.to_owned())?.into_unnamed().context(operation)?;
        std::io::copy(&mut blob, &mut copy).context(operation)?;
        copy.rewind().context(operation)?;
        Ok(copy)
    }

    /// A blob where it lies, from its beginning; its digest is the reader's to check.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Damaged`] if the size is not the descriptor's.
    pub fn open_blob(&self, descriptor: &Descriptor) -> Result<BlobReader<'_>> {
        let Extent { start, len } = self.extent(&descriptor.digest()?)?;
        super::layout::check_size(descriptor, len)?;
        Ok(BlobReader { file: &self.file, position: start, end: start + len })
    }

    /// Whether a blob is there, with the size that the descriptor says.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Damaged`].
    pub fn check_blob(&self, descriptor: &Descriptor) -> Result<()> {
        super::layout::check_size(descriptor, self.extent(&descriptor.digest()?)?.len)
    }

    fn extent(&self, digest: &Digest) -> Result<Extent> {
        self.blobs.get(digest).copied().ok_or_else(|| {
            let operation = format!("open blob {digest} in {}", quote(&self.path));
            match self.ending {
                Ending::Missing { size } => cut_short(operation, size),
                Ending::Marked => {
                    Error::new(Kind::NotFound, operation, "the archive does not have it").next("make the archive again")
                }
            }
        })
    }
}

/// Reads a blob of an archive.
#[derive(Debug)]
pub struct BlobReader<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for BlobReader<'_> {
    /// By position: the file's own offset is shared by all who read layers at the same time.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let want = buffer.len().min(rest);
        let length = self.file.read_at(&mut buffer[..want], self.position)?;
        if length == 0 && want > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.position += length as u64;
        Ok(length)
    }
}

/// What a scan found.
#[derive(Debug, Default)]
struct Contents {
    marker: Option<Extent>,
    index: Option<Extent>,
    blobs: HashMap<Digest, Extent>,
    ending: Ending,
}

/// What the extension headers before an entry said about it.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

/// One walk over the headers of a tar file.
struct Scan<'a> {
    file: &'a File,
    size: u64,
}

impl Scan<'_> {
    fn run(&self) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut extension = Extension::default();
        let mut position = 0;
        for _ in 0..ENTRIES_MAX {
            let Some(header) = self.header(position)? else {
                if position == self.size {
                    contents.ending = Ending::Missing { size: self.size };
                }
                return Ok(contents);
            };
            let start = position + BLOCK;
            let kind = header.entry_type();
            let len = match extension.size {
                Some(size) if !is_extension(kind) => size,
                _ => header.entry_size().context(|| format!("read tar header at byte {position}"))?,
            };
            let extent = Extent { start, len };
            position = self.end_of(extent)?;
            match kind {
                EntryType::XHeader => extension.read_pax(&self.read_extension(extent)?)?,
                EntryType::GNULongName => extension.path = Some(self.read_extension(extent)?),
                EntryType::XGlobalHeader | EntryType::GNULongLink => {}
                _ => {
                    let path = extension.path.take().unwrap_or_else(|| header.path_bytes().into_owned());
                    contents.add(&path, kind, extent)?;
                    extension = Extension::default();
                }
            }
        }
        let cause = format!("more than {ENTRIES_MAX} entries");
        Err(Error::new(Kind::Invalid, "read tar headers", cause))
    }

    /// The header at this place, or nothing where the archive ends.
    fn header(&self, position: u64) -> Result<Option<Header>> {
        let operation = || format!("read tar header at byte {position}");
        let mut header = Header::new_old();
        if position == self.size {
            return Ok(None);
        }
        if self.size - position < BLOCK {
            let cause = format!("the file ends at byte {}, inside it", self.size);
            return Err(Error::new(Kind::Damaged, operation(), cause).next("copy the archive again"));
        }
        self.file.read_exact_at(header.as_mut_bytes(), position).context(operation)?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stored = header.cksum().ok();
        let bytes = header.as_bytes();
        // The checksum is made with its own field read as blanks.
        let sum = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        if stored == Some(sum) {
            return Ok(Some(header));
        }
        let compressed = position == 0 && (bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f]));
        let (cause, next) = match compressed {
            true => ("it is compressed as a whole", "decompress it first"),
            false => ("it is no tar header", "give an archive made by 'skopeo copy … oci-archive:FILE'"),
        };
        Err(Error::new(Kind::Invalid, operation(), cause).next(next))
    }

    /// Where the entry after this one begins.
    fn end_of(&self, extent: Extent) -> Result<u64> {
        let end = extent.start.checked_add(extent.len).filter(|end| *end <= self.size);
        let padded = end.and_then(|end| end.checked_next_multiple_of(BLOCK));
        padded.map(|end| end.min(self.size)).ok_or_else(|| {
            let cause = format!("the file ends at byte {}, inside an entry of {} bytes", self.size, extent.len);
            Error::new(Kind::Damaged, format!("read tar entry at byte {}", extent.start), cause).next("copy it again")
        })
    }

    fn read_extension(&self, extent: Extent) -> Result<Vec<u8>> {
        read_extent(self.file, extent, EXTENSION_MAX)
            .context(|| format!("read tar extension header at byte {}", extent.start))
    }
}

impl Extension {
    fn read_pax(&mut self, bytes: &[u8]) -> Result<()> {
        let refuse = |cause: &str| Error::new(Kind::Invalid, "read pax header", cause);
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|error| refuse(&error.to_string()))?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or_else(|| refuse("its size is no number"))?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Contents {
    /// Remembers an entry if it is a part of a layout; the last of a name counts, as when a tar file is unpacked.
    fn add(&mut self, path: &[u8], kind: EntryType, extent: Extent) -> Result<()> {
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        let refuse = |cause: &str| {
            let operation = format!("read tar entry '{}'", path.escape_ascii());
            Err(Error::new(Kind::Invalid, operation, cause).next("use an image from a source that you trust"))
        };
        if path.starts_with(b"/") || path.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return refuse("its path leads out of the archive");
        }
        let Some(part) = Part::of(path) else { return Ok(()) };
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            return refuse("a part of an image layout must be a regular file");
        }
        match part {
            Part::Marker => self.marker = Some(extent),
            Part::Index => self.index = Some(extent),
            Part::Blob(digest) => drop(self.blobs.insert(digest, extent)),
        }
        Ok(())
    }
}

/// What an entry of the archive is to the layout.
enum Part {
    Marker,
    Index,
    Blob(Digest),
}

impl Part {
    fn of(path: &[u8]) -> Option<Self> {
        let path = path.strip_prefix(b"./").unwrap_or(path);
        match std::str::from_utf8(path).ok()? {
            "oci-layout" => Some(Self::Marker),
            "index.json" => Some(Self::Index),
            path => format!("sha256:{}", path.strip_prefix("blobs/sha256/")?).parse().ok().map(Self::Blob),
        }
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink)
}

fn read_extent(file: &File, extent: Extent, cap: u64) -> Result<Vec<u8>> {
    let operation = || format!("read {} bytes at byte {}", extent.len, extent.start);
    match usize::try_from(extent.len) {
        Ok(len) if extent.len <= cap => {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, extent.start).context(operation)?;
            Ok(bytes)
        }
        _ => Err(Error::new(Kind::Damaged, operation(), format!("at most {cap} bytes are read"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header block, and for an extension its data.
    fn entry(kind: EntryType, path: &str, size: u64, data: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn scan(bytes: &[u8], size: u64) -> Result<Contents> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(size).unwrap();
        Scan { file: &file, size }.run()
    }

    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn a_blob_beyond_eight_gigabytes_has_its_size_in_a_pax_header() {
        let size = 9 << 30;
        let record = format!("19 size={size}\n");
        let mut bytes = entry(EntryType::XHeader, "pax", record.len() as u64, record.as_bytes());
        bytes.extend(entry(EntryType::Regular, &format!("blobs/sha256/{HEX}"), 0, b""));
        let start = bytes.len() as u64;
        let contents = scan(&bytes, start + size).unwrap();
        let digest = format!("sha256:{HEX}").parse().unwrap();
        assert_eq!(contents.blobs[&digest], Extent { start, len: size });
        assert_eq!(scan(&bytes, start + size - 1).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn long_names_are_understood_and_the_last_of_a_name_counts() {
        let name = format!("./blobs/sha256/{HEX}\0");
        let mut bytes = entry(EntryType::GNULongName, "././@LongLink", name.len() as u64, name.as_bytes());
        bytes.extend(entry(EntryType::Regular, "short", 3, b"one"));
        bytes.extend(entry(EntryType::Regular, "short", 5, b"other"));
        let record = format!("{} path=blobs/sha256/{HEX}\n", 3 + 18 + HEX.len() + 1);
        bytes.extend(entry(EntryType::XHeader, "pax", record.len() as u64, record.as_bytes()));
        bytes.extend(entry(EntryType::Regular, "short", 3, b"two"));
        let contents = scan(&bytes, bytes.len() as u64).unwrap();
        let last = Extent { start: bytes.len() as u64 - 512, len: 3 };
        assert_eq!(contents.blobs.into_values().collect::<Vec<_>>(), [last]);
    }

    #[test]
    fn sizes_that_would_exhaust_memory_or_overflow_are_refused() {
        let huge = entry(EntryType::XHeader, "pax", 2 << 20, b"");
        assert_eq!(scan(&huge, 4 << 20).unwrap_err().kind(), Kind::Damaged);
        let record = format!("29 size={}\n", u64::MAX);
        let mut bytes = entry(EntryType::XHeader, "pax", 29, record.as_bytes());
        bytes.extend(entry(EntryType::Regular, "x", 0, b""));
        assert_eq!(scan(&bytes, bytes.len() as u64).unwrap_err().kind(), Kind::Damaged);
        let many = entry(EntryType::Directory, "d", 0, b"").repeat(ENTRIES_MAX);
        assert!(scan(&many, many.len() as u64).unwrap_err().to_string().contains("more than"));
    }
}
