//! The content of one file becomes that of another: shared where that is possible, else copied.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use super::sparse::Piece;
use crate::error::{Context, Result};

/// Bytes that are copied at a time where the kernel does not do it by itself.
const CHUNK: usize = 1 << 18;
/// The most that the kernel is asked for at a time.
const REQUEST: u64 = 1 << 30;

/// Whether two files of a file system can have the same blocks, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    Possible,
    Impossible,
}

/// Whether a file has the blocks of another now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shared {
    Yes,
    No,
}

/// Gives an empty file the blocks of another, where the file system can (FICLONE); notes where it can't.
pub(super) fn share(source: &File, target: &File, sharing: &mut Sharing) -> Result<Shared> {
    if *sharing == Sharing::Impossible {
        return Ok(Shared::No);
    }
    match ioctl_ficlone(target, source) {
        Ok(()) => Ok(Shared::Yes),
        // This one file can't, for its flags.
        Err(Errno::INVAL) => Ok(Shared::No),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
            *sharing = Sharing::Impossible;
            Ok(Shared::No)
        }
        Err(errno) => Err(errno).context(|| "share its blocks"),
    }
}

/// Copies a stretch of a file; fewer bytes if the file ends before.
pub(super) fn copy_piece(source: &File, target: &File, piece: Piece) -> Result<u64> {
    let (mut from, mut to) = (piece.offset, piece.offset);
    while from < piece.end() {
        let length = usize::try_from((piece.end() - from).min(REQUEST)).unwrap_or(CHUNK);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV) => {
                return copy_by_hand(source, target, piece, from);
            }
            Err(errno) => return Err(errno).context(|| "copy its content"),
        }
    }
    Ok(from - piece.offset)
}

fn copy_by_hand(source: &File, target: &File, piece: Piece, mut from: u64) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    while from < piece.end() {
        let length = usize::try_from(piece.end() - from).unwrap_or(CHUNK).min(CHUNK);
        let count = source.read_at(&mut buffer[..length], from).context(|| "read it")?;
        if count == 0 {
            break;
        }
        target.write_all_at(&buffer[..count], from).context(|| "write it")?;
        from += count as u64;
    }
    Ok(from - piece.offset)
}
