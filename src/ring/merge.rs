//! Several layer directories become one that shows the same, in overlay format.
//!
//! Files are not copied but linked, so that it costs time per file and no bytes. Layers never change, so that it does
//! no harm that two of them share a file.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result, quote};
use crate::store::{Layers, Stage};
use crate::sys::fs::{copy_attributes, set_times};
use crate::sys::xattr::OverlayClass;

/// A stage that shows what `directories` (lowest first) show when they are stacked, in overlay format. `below` shows what
/// they stand on, if that is known.
pub(super) fn merge(
    layers: &Layers,
    directories: &[PathBuf],
    class: OverlayClass,
    below: Option<&Path>,
) -> Result<Stage> {
    let merger = Merger { class };
    let stage = layers.stage()?;
    let [lowest, others @ ..] = directories else { return Ok(stage) };
    merger.copy_tree(lowest, stage.directory())?;
    let mut result = stage;
    for upper in others {
        let next = layers.stage()?;
        merger.merge_directory(result.directory(), upper, next.directory())?;
        result = next;
    }
    if below.is_some() {
        merger.prune(result.directory(), below)?;
    }
    Ok(result)
}

struct Merger {
    class: OverlayClass,
}

impl Merger {
    /// Makes `target`, an empty directory, show `upper` over `lower`.
    fn merge_directory(&self, lower: &Path, upper: &Path, target: &Path) -> Result<()> {
        let (covers, covered) = (self.class.is_opaque(upper)?, self.class.is_opaque(lower)?);
        for name in names(upper)? {
            let (from, to) = (upper.join(&name), target.join(&name));
            if covers { self.copy(&from, &to)? } else { self.merge_child(&lower.join(&name), &from, &to)? }
        }
        if !covers {
            for name in names(lower)? {
                if fs::symlink_metadata(upper.join(&name)).is_err() {
                    self.copy(&lower.join(&name), &target.join(&name))?;
                }
            }
        }
        self.copy_attributes(upper, target)?;
        if covered { self.make_opaque(target) } else { Ok(()) }
    }

    fn merge_child(&self, lower: &Path, from: &Path, to: &Path) -> Result<()> {
        match fs::symlink_metadata(lower).ok() {
            Some(metadata) if metadata.is_dir() && look(from)?.is_dir() => {
                make_directory(to)?;
                self.merge_directory(lower, from, to)
            }
            // Whatever else was there hid what lies further down, and has to go on doing so.
            Some(_) if look(from)?.is_dir() => {
                self.copy(from, to)?;
                self.make_opaque(to)
            }
            Some(_) | None => self.copy(from, to),
        }
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        if look(from)?.is_dir() {
            make_directory(to)?;
            return self.copy_tree(from, to);
        }
        fs::hard_link(from, to).context(|| format!("link {} to {}", quote(from), quote(to)))
    }

    fn copy_tree(&self, from: &Path, to: &Path) -> Result<()> {
        for name in names(from)? {
            self.copy(&from.join(&name), &to.join(&name))?;
        }
        self.copy_attributes(from, to)
    }

    /// Takes whiteouts away that hide nothing: in a directory that only this layer has, the kernel would show their
    /// names in listings. `below` is the same directory in what lies under the layer, if there is one.
    fn prune(&self, directory: &Path, below: Option<&Path>) -> Result<()> {
        let before = look(directory)?;
        for name in names(directory)? {
            let path = directory.join(&name);
            let hidden = below.map(|below| below.join(&name)).filter(|hidden| fs::symlink_metadata(hidden).is_ok());
            let metadata = look(&path)?;
            if metadata.is_dir() {
                let seen = if self.class.is_opaque(&path)? { None } else { hidden.filter(|hidden| hidden.is_dir()) };
                self.prune(&path, seen.as_deref())?;
            } else if is_whiteout(&metadata) && hidden.is_none() {
                fs::remove_file(&path).context(|| format!("remove {}", quote(&path)))?;
            }
        }
        set_times(directory, &before)
    }

    fn copy_attributes(&self, from: &Path, to: &Path) -> Result<()> {
        // Of the kernel's own notes only this one says something about content.
        let wanted = |name: &str| !name.starts_with(self.class.prefix()) || name == self.class.opaque();
        copy_attributes(from, to, wanted)
    }

    fn make_opaque(&self, directory: &Path) -> Result<()> {
        xattr::set(directory, self.class.opaque(), b"y").context(|| format!("mark {} opaque", quote(directory)))
    }
}

fn look(path: &Path) -> Result<Metadata> {
    fs::symlink_metadata(path).context(|| format!("look at {}", quote(path)))
}

fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir(path).context(|| format!("create {}", quote(path)))
}

fn names(directory: &Path) -> Result<Vec<OsString>> {
    let operation = || format!("list {}", quote(directory));
    fs::read_dir(directory).context(operation)?.map(|entry| Ok(entry.context(operation)?.file_name())).collect()
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
            let below = Detached::overlay(&under, "test").unwrap();
            let parts = &chain.layers[first..=last];
            let merged = merge(&home, parts, OverlayClass::Trusted, Some(&below.path())).unwrap();
            let mut layers = chain.layers[..first].to_vec();
            layers.push(merged.directory().to_owned());
            layers.extend_from_slice(&chain.layers[last + 1..]);
            assert_eq!(listing(&chain.stack(&layers)), whole, "layers {first} to {last}");
        }
    }
}
