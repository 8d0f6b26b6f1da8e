//! Long values, compressed: what ten thousand targets are called is mostly the same, and every byte is written several times
//! before a call is answered.
//!
//! A value is JSON, or a zstd frame of JSON (RFC 8878, 3.1.1) that tells its size.

use std::borrow::Cow;
use std::io;

/// Shorter ones are what they are.
const LONG: usize = 4 << 10;
/// No value has more when it is read.
const MOST: usize = 256 << 20;
/// The fastest that makes it much smaller.
const LEVEL: i32 = 1;
/// What a frame begins with, and no JSON does.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// As it is kept.
pub(super) fn write(text: Vec<u8>) -> Vec<u8> {
    if text.len() < LONG {
        return text;
    }
    // It fails for want of memory only, and is right as it is.
    zstd::bulk::compress(&text, LEVEL).unwrap_or(text)
}

/// What was written.
///
/// # Errors
/// For what is no whole frame, or a far too long one.
pub(super) fn read(value: &[u8]) -> io::Result<Cow<'_, [u8]>> {
    if !value.starts_with(&MAGIC) {
        return Ok(Cow::Borrowed(value));
    }
    let size = zstd::zstd_safe::get_frame_content_size(value).ok().flatten();
    let size = size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= MOST);
    let size = size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is far too long"))?;
    zstd::bulk::decompress(value, size).map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_becomes_short_and_is_read_as_it_was() {
        let long: Vec<u8> = (0..10_000).flat_map(|number| format!("probe/{number},").into_bytes()).collect();
        for text in [Vec::new(), b"[1]".to_vec(), vec![b'x'; LONG - 1], long.clone()] {
            assert_eq!(*read(&write(text.clone())).unwrap(), *text);
        }
        let kept = write(long.clone());
        assert!(kept.len() * 3 < long.len(), "{} of {}", kept.len(), long.len());
        assert!(read(&kept[..kept.len() - 1]).is_err() && read(&MAGIC).is_err());
    }
}
