//! `polygate guest`: tools for authors of guests, without a gateway.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;

use crate::conversation::{FolderError, ReadError};
use crate::error::report;
use crate::handler::CallError;
use crate::handler::wasm::{LoadError, RuntimeError};

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod loading;
pub(crate) mod new;
pub(crate) mod test;

use loading::SettingsError;

/// Creates, checks, tests and measures handlers that run inside the gateway
///
/// A guest is a WebAssembly component that turns a device's bytes into messages. These commands run it in the gateway's
/// own host, without a gateway: they open no socket and need no broker.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polygate guest new meter --lang rust\n  polygate guest check meter/handler.wasm\n  polygate guest test meter/handler.wasm meter/conversations"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(new::Args),
    Check(check::Args),
    Test(test::Args),
    Bench(bench::Args),
}

/// A command for guests failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The new project.
    #[error(transparent)]
    New(#[from] new::NewError),
    /// The guest's file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// This machine.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// All files that cannot be read or parsed.
    #[error("{}", .0.iter().map(|error| report(error)).collect::<Vec<_>>().join("\n"))]
    Conversations(Vec<ReadError>),
    /// A folder without conversations.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The settings of a configuration.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A conversation could not be recorded; its file is unchanged.
    #[error("{name}: {why}")]
    Record {
        /// The file.
        name: String,
        /// Why.
        why: String,
    },
    /// The guest failed while it was measured.
    #[error("the guest failed in {event}: {why}")]
    Failed {
        /// The event.
        event: &'static str,
        /// The error.
        why: CallError,
    },
    /// A file or a folder.
    #[error("{path}", path = .path.display())]
    File {
        /// Which one.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("cannot write the result")]
    Output(#[from] io::Error),
}

/// Runs the subcommand; results go to standard output. Exit code 1: the command failed, or its answer is no.
///
/// # Errors
///
/// See [`Error`].
pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    let mut out = io::stdout();
    let code = match args.command {
        Command::New(args) => new::run(&args, &mut out)?,
        Command::Check(args) => check::run(&args, &mut out).await?,
        Command::Test(args) => test::run(&args, &mut out).await?,
        Command::Bench(args) => bench::run(&args, &mut out).await?,
    };
    out.flush()?;
    Ok(code)
}

/// A size with about three digits.
fn bytes_text(bytes: u64) -> String {
    // Far below 2^53; the lost digits are not printed.
    let number = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", number / 1024.0),
        _ => format!("{:.1} MiB", number / 1_048_576.0),
    }
}

/// A duration with about three digits.
fn time_text(time: std::time::Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..10.0 => format!("{micros:.2} us"),
        10.0..1_000.0 => format!("{micros:.0} us"),
        1_000.0..100_000.0 => format!("{:.1} ms", micros / 1e3),
        100_000.0..1_000_000.0 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

/// A number with thousands separators.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 event`, `2 events`.
fn count(number: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(number as u64), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 1023, 1024, 1 << 20].map(bytes_text), ["0 B", "1023 B", "1.0 KiB", "1.0 MiB"]);
        assert_eq!(
            [1, 999, 1_500, 250_000, 2_000_000].map(|us| time_text(Duration::from_micros(us))),
            ["1.00 us", "999 us", "1.5 ms", "250 ms", "2.00 s"]
        );
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 2].map(|number| count(number, "event")), ["1 event", "2 events"]);
    }
}
