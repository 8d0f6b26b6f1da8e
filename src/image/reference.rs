//! Where an image is, as a user writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Context, Error, Kind, Result, quote};

/// An image to open: a place, and which of the images there.
///
/// The path ends at the first `:`, as in every tool that takes these references, because tags may be whole names
/// (`docker.io/library/alpine:3.20`). A path that contains a `:` is reached through a symbolic link without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A directory in OCI layout, `oci:DIR[:TAG]`.
    Layout {
        /// The directory that holds `index.json`.
        directory: PathBuf,
        /// The tag; without one the layout must hold a single image.
        tag: Option<String>,
    },
    /// A tar file of such a directory, `oci-archive:FILE[:TAG]`.
    Archive {
        /// The tar file.
        file: PathBuf,
        /// The tag; without one the archive must hold a single image.
        tag: Option<String>,
    },
}

impl ImageSource {
    /// The tag that was asked for.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Layout { tag, .. } | Self::Archive { tag, .. } => tag.as_deref(),
        }
    }

    /// The same from every working directory.
    ///
    /// # Errors
    /// Those of asking for the present one.
    pub fn absolute(&self) -> Result<Self> {
        let absolute = |path: &PathBuf| std::path::absolute(path).context(|| format!("find {}", quote(path)));
        Ok(match self {
            Self::Layout { directory, tag } => Self::Layout { directory: absolute(directory)?, tag: tag.clone() },
            Self::Archive { file, tag } => Self::Archive { file: absolute(file)?, tag: tag.clone() },
        })
    }
}

impl ImageSource {
    /// The directory, or the tar file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Layout { directory, .. } => directory,
            Self::Archive { file, .. } => file,
        }
    }
}

impl FromStr for ImageSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |kind, cause: &str| {
            Error::new(kind, format!("read image reference '{}'", text.escape_debug()), cause)
                .next("give oci:DIR[:TAG] or oci-archive:FILE[:TAG]")
        };
        let Some((transport, rest)) = text.split_once(':') else {
            return Err(refuse(Kind::Invalid, "it does not say how to read the image"));
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(refuse(Kind::Invalid, "the path is empty"));
        }
        if tag.is_some_and(str::is_empty) {
            return Err(refuse(Kind::Invalid, "the tag after ':' is empty"));
        }
        let (path, tag) = (PathBuf::from(path), tag.map(str::to_owned));
        match transport {
            "oci" => Ok(Self::Layout { directory: path, tag }),
            "oci-archive" => Ok(Self::Archive { file: path, tag }),
            "docker" | "docker-archive" | "docker-daemon" | "dir" | "containers-storage" => {
                let cause = format!("'{transport}:' cannot be opened directly: copy it with 'skopeo copy' first");
                Err(refuse(Kind::Unsupported, &cause))
            }
            _ => Err(refuse(Kind::Invalid, "it begins with no known transport")),
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path) = match self {
            Self::Layout { directory, .. } => ("oci", directory),
            Self::Archive { file, .. } => ("oci-archive", file),
        };
        write!(f, "{transport}:{}", path.display())?;
        match self.tag() {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_ends_at_the_first_colon() {
        let layout = |directory: &str, tag: Option<&str>| ImageSource::Layout {
            directory: directory.into(),
            tag: tag.map(str::to_owned),
        };
        for (text, expected) in [
            ("oci:/images/a", layout("/images/a", None)),
            ("oci:a:v1", layout("a", Some("v1"))),
            ("oci:a:docker.io/library/alpine:3.20", layout("a", Some("docker.io/library/alpine:3.20"))),
        ] {
            assert_eq!(text.parse::<ImageSource>().unwrap(), expected);
            assert_eq!(expected.to_string(), text);
        }
        let archive: ImageSource = "oci-archive:x.tar:v2".parse().unwrap();
        assert_eq!(archive, ImageSource::Archive { file: "x.tar".into(), tag: Some("v2".into()) });
    }

    #[test]
    fn a_reference_that_cannot_be_opened_says_what_can() {
        for bad in ["", "busybox", "oci:", "oci::tag", "oci:a:", "ftp:a", "docker://busybox", "containers-storage:x"] {
            let line = bad.parse::<ImageSource>().unwrap_err().to_string();
            assert!(line.contains("oci-archive:FILE[:TAG]"), "{line}");
        }
        assert_eq!("docker://busybox".parse::<ImageSource>().unwrap_err().kind(), Kind::Unsupported);
    }
}
