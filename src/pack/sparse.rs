//! Files with holes: finding them, and the map that GNU tar's format 1.0 puts in front of a file's data.

use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::header::BLOCK;
use crate::error::{Context, Error, Kind, Result};

/// The most pieces that a map has: a file in more of them keeps its widest holes only.
pub(super) const PIECES_CAP: usize = 1 << 16;

/// A stretch of data in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Piece {
    pub(super) fn end(self) -> u64 {
        self.offset + self.length
    }
}

/// Where the data of an open file lies; `None` if it has no holes.
pub(super) fn map(file: BorrowedFd<'_>, size: u64) -> Result<Option<Vec<Piece>>> {
    let find = || -> rustix::io::Result<Vec<Piece>> {
        let (mut pieces, mut at, mut narrow) = (Vec::new(), 0, 4096);
        while at < size {
            let offset = match seek(file, SeekFrom::Data(at)) {
                Ok(offset) => offset,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno),
            };
            at = seek(file, SeekFrom::Hole(offset))?.min(size);
            pieces.push(Piece { offset, length: at - offset });
            while pieces.len() > PIECES_CAP {
                pieces = fill_narrow(&pieces, narrow);
                narrow *= 2;
            }
        }
        Ok(pieces)
    };
    let pieces = find().context(|| "find its holes")?;
    let whole = Piece { offset: 0, length: size };
    Ok((pieces != [whole]).then_some(pieces))
}

/// Takes holes of at most `narrow` bytes for data.
fn fill_narrow(pieces: &[Piece], narrow: u64) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last) if piece.offset - last.end() <= narrow => last.length = piece.end() - last.offset,
            _ => joined.push(*piece),
        }
    }
    joined
}

/// The map as blocks of decimal lines: the number of pieces, then offset and length of each. A last piece of length
/// zero marks the file's end, as GNU tar does it.
pub(super) fn encode(pieces: &[Piece], size: u64) -> Vec<u8> {
    let end = pieces.last().is_none_or(|last| last.end() < size).then_some(Piece { offset: size, length: 0 });
    let mut text = format!("{}\n", pieces.len() + usize::from(end.is_some()));
    for piece in pieces.iter().chain(&end) {
        text.push_str(&format!("{}\n{}\n", piece.offset, piece.length));
    }
    let mut blocks = text.into_bytes();
    blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
    blocks
}

/// Checks a map that was read: in order, not overlapping, inside the file, as long as the data that follows.
pub(super) fn check(pieces: &[Piece], size: u64, data: u64) -> Result<()> {
    let (mut at, mut sum) = (0, 0);
    for piece in pieces {
        let end = piece.offset.checked_add(piece.length).filter(|end| piece.offset >= at && *end <= size);
        let Some(end) = end else { return Err(refuse("its pieces overlap or lie outside of the file")) };
        at = end;
        sum += piece.length;
    }
    if sum == data { Ok(()) } else { Err(refuse("its pieces are not as long as the data that follows")) }
}

/// A map that cannot be.
pub(super) fn refuse(cause: &str) -> Error {
    Error::new(Kind::Invalid, "check its map of holes", cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    fn piece(offset: u64, length: u64) -> Piece {
        Piece { offset, length }
    }

    #[test]
    fn holes_of_a_file_are_found_whatever_its_size() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(map(file.as_fd(), 1 << 40).unwrap(), Some(vec![piece(1 << 20, 4096)]));
        file.set_len(0).unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        assert_eq!(map(file.as_fd(), 4096).unwrap(), None);
    }

    #[test]
    fn narrow_holes_are_filled_first() {
        let pieces = [piece(0, 10), piece(15, 5), piece(100, 1)];
        assert_eq!(fill_narrow(&pieces, 5), [piece(0, 20), piece(100, 1)]);
    }

    #[test]
    fn a_map_is_lines_in_whole_blocks() {
        let blocks = encode(&[piece(4096, 10)], 8192);
        assert_eq!(blocks.len(), 512);
        assert!(blocks.starts_with(b"2\n4096\n10\n8192\n0\n\0"));
        assert!(encode(&[piece(0, 8192)], 8192).starts_with(b"1\n0\n8192\n\0"));
    }

    #[test]
    fn impossible_maps_are_refused() {
        let huge = piece(u64::MAX, 2);
        for bad in [&[piece(0, 10), piece(5, 10)][..], &[piece(95, 10)], &[huge], &[piece(0, 19)]] {
            assert!(check(bad, 100, 20).is_err(), "{bad:?} was taken");
        }
        check(&[piece(0, 10), piece(90, 10)], 100, 20).unwrap();
    }
}
