//! Links the program statically where the machine can: it is executed twice for each container, and looking for four
//! libraries and binding them costs as much as the rest of a start.
//!
//! The flag that the compiler has for that (`crt-static`) would have to hold for procedural macros too, which cannot
//! be static, or need a target of its own, with another place for what is built. So the linker is told for the
//! program alone: by `-static-pie`, and by a directory that is searched first and has nothing but archives.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the standard library, libseccomp and the compiler's own support are linked from.
const ARCHIVES: [&str; 7] = ["libc.a", "libm.a", "libpthread.a", "libdl.a", "librt.a", "libutil.a", "libseccomp.a"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=REGEN_OCI_DYNAMIC");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let fits = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if !fits || env::var("HOST") != env::var("TARGET") || env::var_os("REGEN_OCI_DYNAMIC").is_some() {
        return;
    }
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    let directory = out.join("static");
    match prepare(&directory) {
        Ok(()) => {
            println!("cargo:rustc-link-arg-bins=-L{}", directory.display());
            println!("cargo:rustc-link-arg-bins=-static-pie");
            // Ten thousand addresses to correct at each start: packed, they are a few pages to read instead of sixty.
            if knows_packed_relocations() {
                println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
            }
        }
        Err(error) => println!("cargo:warning=linked dynamically: {error}"),
    }
}

/// The start-up code of the C library has to know them, from 2.36 on, which linkers did before.
fn knows_packed_relocations() -> bool {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut numbers = text.trim().trim_start_matches("glibc ").split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (2, 36)
}

fn prepare(directory: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).map_err(text)?;
    for archive in ARCHIVES {
        let output = Command::new("cc").arg(format!("-print-file-name={archive}")).output().map_err(text)?;
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !Path::new(&path).is_absolute() {
            return Err(format!("{archive} is not installed"));
        }
        symlink(path, directory.join(archive)).map_err(text)?;
    }
    // The shared library of unwinding that the standard library asks for, by its archives.
    fs::write(directory.join("libgcc_s.a"), "INPUT(-lgcc_eh -lgcc)\n").map_err(text)
}
