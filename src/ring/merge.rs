//! Several layer directories become one that shows the same, in overlay format.
//!
//! Files are not copied but linked, so that it costs time per file and no bytes. Layers never change, so that it does
//! no harm that two of them share a file.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::pile::{Child, Closed, Found, Pile, look};
use crate::error::{Context, Error, Kind, Result, quote};
use crate::store::{Layers, Stage};
use crate::sys::fs::copy_attributes;
use crate::sys::xattr::OverlayClass;

/// What shows where a merged layer has nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Below {
    /// Nobody knows: every whiteout may be needed.
    Unknown,
    /// Nothing: there is nothing to hide.
    Nothing,
    /// What this directory shows.
    Directory(PathBuf),
    /// That, but for these places in it: volumes, which stand on something else.
    ButFor(Box<Below>, Vec<PathBuf>),
}

impl Below {
    /// Whether a whiteout hides something. In a directory that only this layer has, the kernel would show the names of
    /// those that do not.
    fn needs_whiteout(&self, name: &OsStr) -> Result<bool> {
        match self {
            Self::Unknown => Ok(true),
            Self::Nothing => Ok(false),
            Self::Directory(directory) => Ok(look(&directory.join(name))?.is_some()),
            Self::ButFor(below, _) => below.needs_whiteout(name),
        }
    }

    /// The same with places in it of which nobody knows what they stand on.
    pub(super) fn but_for(self, places: Vec<PathBuf>) -> Self {
        match places.first() {
            None => self,
            Some(_) if places.iter().any(|place| place.as_os_str().is_empty()) => Self::Unknown,
            Some(_) => Self::ButFor(Box::new(self), places),
        }
    }

    /// What is below a directory that hides everything.
    fn covered(&self) -> Self {
        match self {
            Self::ButFor(_, places) => Self::Nothing.but_for(places.clone()),
            Self::Unknown | Self::Nothing | Self::Directory(_) => Self::Nothing,
        }
    }

    fn enter(&self, name: &OsStr) -> Result<Self> {
        let directory = match self {
            Self::Directory(directory) => directory,
            Self::Unknown | Self::Nothing => return Ok(self.clone()),
            Self::ButFor(below, places) => {
                let inner = places.iter().filter_map(|place| place.strip_prefix(name).ok()).map(Path::to_owned);
                return Ok(below.enter(name)?.but_for(inner.collect()));
            }
        };
        let inner = directory.join(name);
        let is_directory = look(&inner)?.is_some_and(|metadata| metadata.is_dir());
        Ok(if is_directory { Self::Directory(inner) } else { Self::Nothing })
    }
}

/// A stage that shows what `directories` (lowest first) show when they are stacked, in overlay format.
pub(super) fn merge(layers: &Layers, directories: &[PathBuf], class: OverlayClass, below: &Below) -> Result<Stage> {
    let stage = layers.stage()?;
    fill(&Pile::of_layers(directories, class)?, class, stage.directory(), below)?;
    Ok(stage)
}

/// Makes `target`, an empty directory, show what the pile shows.
fn fill(pile: &Pile, class: OverlayClass, target: &Path, below: &Below) -> Result<()> {
    let Some((_, top)) = pile.top() else { return Ok(()) };
    let covered = below.covered();
    let below = if pile.closed() == Closed::Yes { &covered } else { below };
    for name in pile.names()? {
        let to = target.join(&name);
        match pile.child(&name)? {
            Some(Child::File(file)) if file.is_whiteout() && !below.needs_whiteout(&name)? => {}
            Some(Child::File(file)) => link(&file, &to)?,
            Some(Child::Directory(inner)) => {
                fs::create_dir(&to).context(|| format!("create {}", quote(&to)))?;
                fill(&inner, class, &to, &below.enter(&name)?)?;
            }
            None => return Err(Error::new(Kind::Damaged, format!("merge {}", quote(top)), "a layer changes")),
        }
    }
    // Of the kernel's own notes only one says something about content.
    copy_attributes(top, target, |name| !name.starts_with(class.prefix()))?;
    match pile.closed() {
        Closed::Yes => xattr::set(target, class.opaque(), b"y").context(|| format!("mark {} opaque", quote(target))),
        Closed::No => Ok(()),
    }
}

/// Gives a file one more name. File systems limit how many it may have, and overlayfs makes one inode serve for as many
/// whiteouts as it can.
fn link(file: &Found, to: &Path) -> Result<()> {
    let operation = || format!("link {} to {}", quote(&file.path), quote(to));
    match fs::hard_link(&file.path, to) {
        Err(error) if error.kind() == io::ErrorKind::TooManyLinks && file.is_whiteout() => {
            mknodat(CWD, to, FileType::CharacterDevice, Mode::empty(), 0).context(operation)
        }
        Err(error) if error.kind() == io::ErrorKind::TooManyLinks && file.metadata.is_file() => {
            fs::copy(&file.path, to).context(operation)?;
            copy_attributes(&file.path, to, |_| true)
        }
        other => other.context(operation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{Detached, Fate, Stack, Upper};
    use std::process::Command;

    /// Runs `script` with sh in a container-like root: `lowers` uppermost first, changes into `upper`.
    fn change(directory: &Path, lowers: &[PathBuf], upper: &Path, script: &str) {
        let work = directory.join("work");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir(&work).unwrap();
        fs::create_dir(upper).unwrap();
        let stack = Stack {
            lowers: lowers.to_vec(),
            upper: Some(Upper { directory: upper.to_owned(), work, fate: Fate::Kept }),
            class: OverlayClass::Trusted,
        };
        let mount = Detached::overlay(&stack, "test").unwrap();
        let status = Command::new("sh").args(["-ec", script]).current_dir(mount.path()).status().unwrap();
        assert!(status.success(), "{script}");
    }

    /// What a stack shows: a line per path with type, mode, owner, size, time, link target and attributes.
    fn listing(lowers: &[PathBuf]) -> String {
        let mount = Detached::overlay(&Stack::view(lowers.to_vec(), OverlayClass::Trusted), "test").unwrap();
        let script = r"find . -printf '%p %y %m %U:%G %s %T@ %l\n' | sed 's/^\(.* d .* \)[0-9]*\( [0-9.]* \)/\1-\2/' | sort; \
                      find . -type f -exec sha256sum {} + | sort; getfattr -hRd -m '^(user|security)' . ";
        let output = Command::new("sh").args(["-ec", script]).current_dir(mount.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A base and three layers over it, made by programs: whatever can stand over whatever.
    struct Chain {
        directory: tempfile::TempDir,
        base: Vec<PathBuf>,
        layers: Vec<PathBuf>,
    }

    impl Chain {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let base = ["base", "empty"].map(|name| directory.path().join(name));
            base.iter().for_each(|path| fs::create_dir(path).unwrap());
            let script = "mkdir -p gone/deep keep/sub swap opq/in; echo b > gone/deep/f; echo b > keep/f; echo b > file; \
                echo b > swap/x; echo b > opq/in/f; echo b > opq/g; ln -s file link";
            let made = Command::new("sh").args(["-ec", script]).current_dir(&base[0]).status().unwrap();
            assert!(made.success());
            let mut chain = Self { directory, base: base.to_vec(), layers: Vec::new() };
            chain.add(
                "rm -r gone; echo 1 > keep/new; rm file; mkdir file; echo 1 > file/in; rm -r swap; echo 1 > swap; \
                rm -r opq; mkdir opq; echo 1 > opq/only; mkdir later; echo 1 > later/f; setfattr -n user.a -v 1 keep; \
                ln keep/new keep/hard; mkdir own; chmod 700 own; mknod dev c 1 3; mkfifo pipe",
            );
            chain.add(
                "mkdir gone; echo 2 > gone/f; rm -r file; echo 2 > file; rm swap; mkdir swap; echo 2 > swap/y; \
                echo 2 > opq/g; rm -r later; rm keep/hard; chmod 750 keep; rm link; chown 70000:70001 own; rm pipe; \
                echo 2 > own/x",
            );
            chain.add(
                "mkdir later; echo 3 > later/g; rm -r opq; echo 3 > opq; rm own/x; touch -d @12345.678 swap/y; \
                mkdir link; rm file; mkdir -p file/a/b",
            );
            chain
        }

        fn add(&mut self, script: &str) {
            let upper = self.directory.path().join(format!("layer{}", self.layers.len()));
            change(self.directory.path(), &self.stack(&self.layers), &upper, script);
            self.layers.push(upper);
        }

        /// Layers, lowest first, over the base; uppermost first as the kernel wants them.
        fn stack(&self, layers: &[PathBuf]) -> Vec<PathBuf> {
            layers.iter().rev().chain(&self.base).cloned().collect()
        }
    }

    #[test]
    fn privileged_a_merged_layer_shows_what_its_parts_showed() {
        let chain = Chain::new();
        let whole = listing(&chain.stack(&chain.layers));
        let home = chain.directory.path().join("layers");
        fs::create_dir(&home).unwrap();
        let home = Layers::new(home);
        for (first, last) in [(0, 1), (1, 2), (0, 2)] {
            let under = Stack::view(chain.stack(&chain.layers[..first]), OverlayClass::Trusted);
            let mount = Detached::overlay(&under, "test").unwrap();
            let parts = &chain.layers[first..=last];
            let below = Below::Directory(mount.path());
            let merged = merge(&home, parts, OverlayClass::Trusted, &below).unwrap();
            let mut layers = chain.layers[..first].to_vec();
            layers.push(merged.directory().to_owned());
            layers.extend_from_slice(&chain.layers[last + 1..]);
            assert_eq!(listing(&chain.stack(&layers)), whole, "layers {first} to {last}");
        }
    }
}
