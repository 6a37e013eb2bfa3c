//! argv to a subcommand, and its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    polygate::cli::run()
}
