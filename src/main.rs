//! The `regen` binary.

fn main() {}
