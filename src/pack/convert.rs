//! A pack in another compression: the same tar stream, so the same diff id, in another blob.

use std::fs::File;
use std::io::{self, Read};

use super::unpack::{decoder, verify};
use super::{Compression, Expected, Packed, pipeline};
use crate::error::{Context, Error, Kind, Result};

const BUFFER: usize = 1 << 18;

/// Writes the tar stream of `blob` into `into`, compressed by the second of the two compressions instead of the first. The
/// caller syncs it. `progress` is given the tar bytes so far, every mebibyte. Starts threads.
///
/// # Errors
/// [`Kind::Damaged`] if the blob or the tar stream in it is not what is expected, else those of reading and writing; what
/// `into` then holds is of no use.
pub fn recompress(
    blob: &File,
    expected: &Expected,
    (from, to): (Compression, Compression),
    into: &mut File,
    progress: &mut dyn FnMut(u64),
) -> Result<Packed> {
    let operation = || format!("compress layer {} anew", &expected.digest.hex()[..12]);
    verify(blob, &expected.digest).context(operation)?;
    let streams = pipeline::run(to.into(), into, progress, |stream| {
        let mut input = decoder(blob, from).context(|| "decompress it")?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => stream.write(&buffer[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::new(Kind::Damaged, "decompress it", error.to_string())),
            }
        }
    })
    .context(operation)?;
    if let Some(diff_id) = expected.diff_id.as_ref().filter(|diff_id| **diff_id != streams.diff_id) {
        let cause = format!("the tar stream is {}, but {diff_id} was expected", streams.diff_id);
        return Err(Error::new(Kind::Damaged, operation(), cause));
    }
    Ok(Packed {
        digest: streams.digest,
        diff_id: streams.diff_id,
        packed_bytes: streams.packed_bytes,
        tar_bytes: streams.tar_bytes,
        sockets: Vec::new(),
    })
}
