//! File systems that can share blocks, in files.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// A mounted one.
pub struct Disk {
    home: tempfile::TempDir,
    pub point: PathBuf,
}

impl Disk {
    /// One of each kind that the kernel knows.
    pub fn all() -> Vec<Self> {
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        let makers = [("btrfs", &["--quiet", "--mixed"][..]), ("xfs", &["-q"])];
        let here = makers.into_iter().filter(|(kind, _)| known.contains(&format!("\t{kind}")));
        here.map(|(kind, flags)| Self::new(kind, flags)).collect()
    }

    fn new(kind: &str, flags: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (image, point) = (home.path().join("image"), home.path().join("point"));
        File::create(&image).unwrap().set_len(320 << 20).unwrap();
        fs::create_dir(&point).unwrap();
        let image = image.to_str().unwrap();
        run(&format!("mkfs.{kind}"), &[flags, &[image]].concat());
        run("mount", &["-o", "loop", image, point.to_str().unwrap()]);
        Self { home, point }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what is in it goes with the last descriptor, also after a failed test.
        run("umount", &["--lazy", self.point.to_str().unwrap()]);
        assert!(self.home.path().exists());
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
