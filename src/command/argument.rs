//! From what was typed to what a daemon can be told: it works in another directory.

use std::time::Duration;

use super::world::absolute;
use crate::error::Result;
use crate::image::ImageSource;

/// An image by a path that stays the same.
pub(super) fn absolute_image(image: &str) -> Result<String> {
    let image = match image.parse()? {
        ImageSource::Layout { directory, tag } => ImageSource::Layout { directory: absolute(&directory)?, tag },
        ImageSource::Archive { file, tag } => ImageSource::Archive { file: absolute(&file)?, tag },
    };
    Ok(image.to_string())
}

/// Rounded up: a time that was given is not none.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
