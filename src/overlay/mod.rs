//! Overlay mounts: what is asked of the kernel (pure) and the asking.
//!
//! Features are chosen here and nowhere else, because a chain must be mounted the same way in every run:
//!
//! | option | why |
//! |---|---|
//! | `index=off` | a lower of ours may be rebuilt from its pack; with an index that is ESTALE |
//! | `metacopy=off` | every file in an upper is whole, so that a layer can be packed alone |
//! | `redirect_dir=nofollow` | a layer means the same to every tool; programs see EXDEV when they rename a directory of an earlier run, as they do for directories of an image under other engines |
//! | `xino=auto` | stable inode numbers where the file system has room for them |
//! | `volatile` | only for an upper that is thrown away: else the end of every container waits until all that anybody has written to the upper's file system is on its disk |
//! | `userxattr` | only inside a user namespace, where `trusted.` attributes cannot be written |

mod feature;
mod mount;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result, quote};
use crate::sys::xattr::OverlayClass;

pub use feature::missing_features;
pub use mount::{Detached, PrivateNamespace, is_held};

/// The most lower directories that the kernel stacks.
pub const LOWER_MAX: usize = 500;

/// What is stacked on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Read-only directories, uppermost first; the base is last.
    pub lowers: Vec<PathBuf>,
    /// Where changes go; `None` makes a read-only view.
    pub upper: Option<Upper>,
    /// How the attributes of all these directories are spelled.
    pub class: OverlayClass,
}

/// The writable part of a stack: two directories on one file system, used by one mount at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Takes the changes.
    pub directory: PathBuf,
    /// The kernel's scratch space, empty at first.
    pub work: PathBuf,
    /// What becomes of the changes.
    pub fate: Fate,
}

/// What becomes of the changes in an upper at its container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They are kept.
    Kept,
    /// They are thrown away, so that nothing of them need ever reach a disk.
    ThrownAway,
}

/// Whether the kernel keeps an index of copied-up files, which also makes it refuse an upper that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// How every container is mounted.
    Off,
    /// How a trial mount is made.
    On,
}

/// One key and value for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parameter {
    /// A feature switched by a word.
    Word(&'static str, &'static str),
    /// A feature that has no value.
    Flag(&'static str),
    /// A directory.
    Directory(&'static str, PathBuf),
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(key, value) => write!(f, "{key} to '{value}'"),
            Self::Flag(key) => f.write_str(key),
            Self::Directory(key, path) => write!(f, "{key} to {}", quote(path)),
        }
    }
}

/// The parameters of the mount, in the order in which the kernel takes them.
///
/// # Errors
/// [`Kind::Unsupported`] with more than [`LOWER_MAX`] lowers, [`Kind::Invalid`] with none.
pub(crate) fn plan_parameters(stack: &Stack, index: Index) -> Result<Vec<Parameter>> {
    if stack.lowers.is_empty() {
        return Err(Error::new(Kind::Invalid, "plan overlay", "no lower directory"));
    }
    if stack.lowers.len() > LOWER_MAX {
        let cause = format!("{} layers, the kernel takes {LOWER_MAX}", stack.lowers.len());
        return Err(Error::new(Kind::Unsupported, "plan overlay", cause)
            .next("run 'regen ring pack', which folds layers that no entry needs"));
    }
    let mut parameters = vec![
        Parameter::Word("redirect_dir", "nofollow"),
        Parameter::Word("metacopy", "off"),
        Parameter::Word("xino", "auto"),
        Parameter::Word("index", if index == Index::On { "on" } else { "off" }),
    ];
    if stack.class == OverlayClass::User {
        parameters.push(Parameter::Flag("userxattr"));
    }
    parameters.extend(stack.lowers.iter().map(|lower| Parameter::Directory("lowerdir+", lower.clone())));
    if let Some(upper) = &stack.upper {
        parameters.push(Parameter::Directory("upperdir", upper.directory.clone()));
        parameters.push(Parameter::Directory("workdir", upper.work.clone()));
        if upper.fate == Fate::ThrownAway {
            parameters.push(Parameter::Flag("volatile"));
        }
    }
    Ok(parameters)
}

impl Stack {
    /// A read-only view of `lowers`, uppermost first.
    #[must_use]
    pub fn view(lowers: Vec<PathBuf>, class: OverlayClass) -> Self {
        Self { lowers, upper: None, class }
    }

    /// The directory that takes the changes, if there is one.
    #[must_use]
    pub fn upper_directory(&self) -> Option<&Path> {
        self.upper.as_ref().map(|upper| upper.directory.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(lowers: usize) -> Stack {
        Stack {
            lowers: (0..lowers).map(|n| PathBuf::from(format!("/l/{n}"))).collect(),
            upper: Some(Upper { directory: "/u".into(), work: "/w".into(), fate: Fate::Kept }),
            class: OverlayClass::Trusted,
        }
    }

    #[test]
    fn lowers_are_given_uppermost_first_and_before_the_upper() {
        let parameters = plan_parameters(&stack(2), Index::Off).unwrap();
        let directories: Vec<_> =
            parameters.iter().filter(|parameter| matches!(parameter, Parameter::Directory(..))).cloned().collect();
        assert_eq!(
            directories,
            [
                Parameter::Directory("lowerdir+", "/l/0".into()),
                Parameter::Directory("lowerdir+", "/l/1".into()),
                Parameter::Directory("upperdir", "/u".into()),
                Parameter::Directory("workdir", "/w".into()),
            ]
        );
        assert!(parameters.contains(&Parameter::Word("redirect_dir", "nofollow")));
        assert!(!parameters.iter().any(|parameter| matches!(parameter, Parameter::Flag(_))), "{parameters:?}");
    }

    #[test]
    fn only_what_is_thrown_away_is_not_synced() {
        let mut stack = stack(1);
        stack.upper.as_mut().unwrap().fate = Fate::ThrownAway;
        assert!(plan_parameters(&stack, Index::Off).unwrap().contains(&Parameter::Flag("volatile")));
    }

    #[test]
    fn more_layers_than_the_kernel_takes_are_refused_before_it_is_asked() {
        assert!(plan_parameters(&stack(500), Index::Off).is_ok());
        let error = plan_parameters(&stack(501), Index::Off).unwrap_err();
        assert!(error.to_string().contains("501 layers, the kernel takes 500"), "{error}");
    }
}
