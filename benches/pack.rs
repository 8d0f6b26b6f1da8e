//! Packing against `tar | zstd -1 -T2` with both streams hashed, in turns: `cargo bench --bench pack [DIRECTORY]`.
//!
//! Without a directory, 2 GiB of mixed files are made: 20,000 small text-like ones, a few large ones, and one that
//! does not compress. Prints a table; the ratio of the best times is what counts on a noisy machine.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints a table")]
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "rounded numbers of a table")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use regen::pack::{Compression, pack_layer};
use regen::sys::xattr::OverlayClass;

const ROUNDS: usize = 5;
const MIB: u64 = 1 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pack-once", directory, blob] => pack_once(directory, blob),
        [directory] => compare(Path::new(directory)),
        _ => {
            let made = tempfile::tempdir().unwrap();
            fill(made.path());
            compare(made.path());
        }
    }
}

/// Runs in a process of its own, whose peak of memory is then that of packing.
fn pack_once(directory: &str, blob: &str) {
    let mut blob = File::create(blob).unwrap();
    let started = Instant::now();
    let packed =
        pack_layer(Path::new(directory), OverlayClass::Trusted, Compression::Zstd, &mut blob, &mut |_| {}).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
    println!("{seconds} {} {} {peak}", packed.tar_bytes / MIB, packed.packed_bytes / MIB);
}

fn compare(directory: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let blob = scratch.path().join("blob");
    let pipe = format!(
        "tar -C '{0}' -c . | tee >(sha256sum >'{1}.a') | zstd -1 -T2 -q | tee >(sha256sum >'{1}.b') >'{1}'; wait",
        directory.display(),
        blob.display()
    );
    let (mut theirs, mut ours, mut said) = (Vec::new(), Vec::new(), String::new());
    println!("round   tar|zstd s    regen s");
    for round in 0..ROUNDS {
        let started = Instant::now();
        assert!(Command::new("bash").args(["-o", "pipefail", "-c", &pipe]).status().unwrap().success());
        theirs.push(started.elapsed());
        let size = fs::metadata(&blob).unwrap().len() / MIB;
        let output =
            Command::new(std::env::current_exe().unwrap()).arg("pack-once").args([directory, &blob]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let output = String::from_utf8(output.stdout).unwrap();
        ours.push(Duration::from_secs_f64(output.split_whitespace().next().unwrap().parse().unwrap()));
        println!("{round:5}   {:10.2} {:10.2}", theirs[round].as_secs_f64(), ours[round].as_secs_f64());
        said = format!(
            "packed MiB {size} theirs, tar MiB / packed MiB / peak ours:{}",
            &output[output.find(' ').unwrap()..]
        );
    }
    let (theirs, ours) = (theirs.iter().min().unwrap(), ours.iter().min().unwrap());
    println!(
        " best   {:10.2} {:10.2}   ratio {:.2}",
        theirs.as_secs_f64(),
        ours.as_secs_f64(),
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
    println!("{}", said.trim());
}

/// A generator of numbers that needs no seed from outside: every run packs the same bytes.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn fill(root: &Path) {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let words: Vec<Vec<u8>> =
        (0..4096).map(|_| (0..2 + numbers.next() % 9).map(|_| b'a' + (numbers.next() % 26) as u8).collect()).collect();
    for index in 0..20_000u64 {
        let directory: PathBuf = root.join(format!("d{:02}/e{:02}", index % 40, index / 40 % 25));
        fs::create_dir_all(&directory).unwrap();
        let size = 1024 + numbers.next() % (80 * 1024);
        text(&directory.join(format!("file-{index}.txt")), size, &words, &mut numbers);
    }
    for index in 0..2 {
        text(&root.join(format!("large-{index}")), 400 * MIB, &words, &mut numbers);
    }
    let mut random = BufWriter::new(File::create(root.join("random")).unwrap());
    for _ in 0..448 * MIB / 8 {
        random.write_all(&numbers.next().to_le_bytes()).unwrap();
    }
}

fn text(path: &Path, size: u64, words: &[Vec<u8>], numbers: &mut Numbers) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut written = 0;
    while written < size {
        // Some words are much more frequent than others, as in any text.
        let number = numbers.next();
        let word = &words[(number % (1 << (number >> 32 & 0xf).min(12))) as usize];
        file.write_all(word).unwrap();
        file.write_all(if number >> 60 == 0 { b"\n" } else { b" " }).unwrap();
        written += word.len() as u64 + 1;
    }
}
