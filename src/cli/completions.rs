//! `polygate completions` and `polygate man`: shell completions and man pages.

use std::io::{self, Write};
use std::process::ExitCode;

use clap_complete::Shell;

use super::definition;
use crate::error::report;

/// Prints the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate completions bash > /usr/share/bash-completion/completions/polygate")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the man page
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  polygate man > /usr/share/man/man1/polygate.1\n  polygate man serve | man -l -")]
pub(crate) struct ManArgs {
    /// A subcommand, optionally with its own subcommand; default: the page of polygate
    #[arg(value_name = "COMMAND")]
    commands: Vec<String>,
}

/// Writes the completions to stdout.
pub(crate) fn run(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "polygate", &mut script);
    print("completions", &script)
}

/// Writes the man page to stdout; exit code 2 for an unknown subcommand.
pub(crate) fn run_man(args: &ManArgs) -> ExitCode {
    let mut command = definition();
    // Sets the full name and the global options of every subcommand.
    command.build();
    for name in &args.commands {
        match command.find_subcommand(name) {
            Some(found) => command = found.clone(),
            None => {
                let names: Vec<&str> = command
                    .get_subcommands()
                    .filter(|command| !command.is_hide_set())
                    .map(clap::Command::get_name)
                    .collect();
                eprintln!("polygate: expected one of the commands {}, found {name:?}", names.join(", "));
                return ExitCode::from(2);
            }
        }
    }
    let mut page = Vec::new();
    match clap_mangen::Man::new(command).render(&mut page) {
        Ok(()) => print("man page", &page),
        Err(error) => {
            eprintln!("polygate: cannot make the man page: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

/// Writes the text, or reports why not: a closed pipe must not panic.
fn print(what: &str, text: &[u8]) -> ExitCode {
    let mut stdout = io::stdout();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polygate: cannot write the {what}: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}
