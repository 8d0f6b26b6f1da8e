//! The `regen` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    regen::command::main()
}
