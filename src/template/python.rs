//! The Python side of a template, which is brought along: nothing has to be installed in an image.

use std::fs::{self, DirBuilder};
use std::path::Path;

use crate::error::{Context, Result, quote};
use crate::sys::fs::{Durability, replace_file};

/// The package and its files.
const PACKAGE: &str = "regen_zygote";
const FILES: [(&str, &str); 2] = [
    ("__init__.py", include_str!("../../zygote/python/regen_zygote/__init__.py")),
    ("__main__.py", include_str!("../../zygote/python/regen_zygote/__main__.py")),
];

/// Writes the package into a directory that Python then finds it in, readable for everybody.
///
/// # Errors
/// Those of mkdir, write and chmod.
pub fn write(directory: &Path) -> Result<()> {
    let package = directory.join(PACKAGE);
    for path in [directory, &package] {
        let operation = || format!("make {}", quote(path));
        DirBuilder::new().recursive(true).create(path).context(operation)?;
        let visible = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, visible).context(operation)?;
    }
    for (name, text) in FILES {
        let path = package.join(name);
        // What is there already may be in use.
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            continue;
        }
        replace_file(&package, name, text.as_bytes(), Durability::Volatile)?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, readable).context(|| format!("make {} readable", quote(&path)))?;
    }
    Ok(())
}
