//! The `sluice` binary; everything is in the library, where tests can reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
