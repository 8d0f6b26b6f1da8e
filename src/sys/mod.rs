//! The only room with `unsafe`, `libc` and raw file descriptors; everything above it forbids unsafe code.
//!
//! What rustix and nix offer safely is used directly by the rooms above; here is only what they lack, and what
//! must be done in one way everywhere (a file that appears whole, a lock, a mount).

pub mod alarm;
pub mod bell;
pub mod bpf;
pub mod channel;
pub mod clone;
pub mod credential;
pub mod detach;
pub mod doorbell;
pub mod exe;
pub mod fs;
pub mod keyring;
pub mod lock;
pub mod mount;
pub mod mount_table;
pub mod namespace;
pub mod notification;
pub mod open_files;
pub mod process;
pub mod reaper;
pub mod schedule;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod socket_table;
pub mod steer;
pub mod stream;
pub mod supervisor;
pub mod trace;
pub mod tty;
pub mod user;
pub mod user_namespace;

pub mod xattr;
