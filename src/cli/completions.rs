//! `polygate completions` and `polygate man`: the command line, for shells and for people.

use std::io;
use std::process::ExitCode;

use clap_complete::Shell;

use super::definition;

/// Prints the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate completions bash > /usr/share/bash-completion/completions/polygate")]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the man page
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate man > /usr/share/man/man1/polygate.1")]
pub struct ManArgs {}

/// Writes the completions to stdout.
pub fn run(args: &Args) -> ExitCode {
    clap_complete::generate(args.shell, &mut definition(), "polygate", &mut io::stdout());
    ExitCode::SUCCESS
}

/// Writes the man page to stdout.
pub fn run_man(_: &ManArgs) -> ExitCode {
    match clap_mangen::Man::new(definition()).render(&mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polygate: cannot write the man page: {error}");
            ExitCode::FAILURE
        }
    }
}
