//! `polygate completions` and `polygate man`: the command line, for shells and for people.

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
    /// A subcommand, and one of its own, whose page is printed instead
    #[arg(value_name = "COMMAND")]
    commands: Vec<String>,
}

/// Writes the completions to stdout.
pub(crate) fn run(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "polygate", &mut script);
    print("completions", &script)
}

/// Writes the man page to stdout; exit code 2 when it is to be that of a subcommand that does not exist.
pub(crate) fn run_man(args: &ManArgs) -> ExitCode {
    let mut command = definition();
    // Gives every subcommand its full name and the options that all have in common.
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

/// Writes all of it or says why not: a reader that has read enough and gone is no reason to panic.
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
