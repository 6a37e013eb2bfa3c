//! Command line: one file for each subcommand.

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::report;
use crate::listener::ActivatedSockets;
use crate::telemetry::{LogFormat, start_log};

mod admin_client;
pub(crate) mod check;
pub(crate) mod compile;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod guest;
pub(crate) mod handler;
pub(crate) mod replay;
pub(crate) mod serve;
pub(crate) mod tap;

/// One gate for every device protocol, in any language.
///
/// A gateway between devices and MQTT: it accepts devices over TCP, TLS, UDP and DTLS, and passes their bytes to your
/// handler, a WebAssembly component or a gRPC server, which turns them into messages and back.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "Start with:\n  polygate demo\n\nExit codes: 0 success, 1 failure, 2 wrong usage"
)]
pub(crate) struct Cli {
    /// Format of the log lines on stderr
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "POLYGATE_LOG_FORMAT",
        value_name = "FORMAT",
        help_heading = "Log",
        display_order = 1000
    )]
    log_format: LogFormat,
    /// Log filter: off, error, warn, info, debug or trace, or a list such as "info,polygate::guest=debug"
    #[arg(
        long,
        global = true,
        default_value = "info",
        env = "POLYGATE_LOG",
        value_name = "FILTER",
        help_heading = "Log",
        display_order = 1000
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Check(check::Args),
    Demo(demo::Args),
    Replay(replay::Args),
    Guest(guest::Args),
    Handler(handler::Args),
    Tap(tap::Args),
    Compile(compile::Args),
    Completions(completions::Args),
    Man(completions::ManArgs),
}

/// The definition of the command line, for completions and the man page.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs the command of argv. Exit code 0: success, 1: failure, 2: wrong usage.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = start_log(cli.log_format, &cli.log) {
        eprintln!("polygate: {}", report(&error));
        return ExitCode::from(2);
    }
    // Before any other descriptor is opened that could be mistaken for a passed socket.
    let activated = match matches!(cli.command, Command::Serve(_)) {
        true => ActivatedSockets::from_environment(),
        false => Ok(ActivatedSockets::default()),
    };
    let activated = match activated {
        Ok(activated) => activated,
        Err(error) => {
            eprintln!("polygate: LISTEN_FDS contains a descriptor that is not a socket: {}", report(&error));
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("polygate: cannot start the runtime: {}", report(&error));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(args, cli.log_format, activated).await,
            Command::Check(args) => match check::run(&args, &mut io::stdout(), &mut io::stderr()) {
                Ok(code) => code,
                Err(error) => {
                    eprintln!("polygate: cannot write the result: {}", report(&error));
                    ExitCode::FAILURE
                }
            },
            Command::Demo(args) => demo::run(args).await,
            Command::Replay(args) => match replay::run(args).await {
                Ok(code) => code,
                Err(error) => {
                    eprintln!("polygate: {}", report(&error));
                    error.exit_code()
                }
            },
            Command::Guest(args) => match guest::run(args).await {
                Ok(code) => code,
                Err(error) => {
                    eprintln!("polygate: {}", report(&error));
                    ExitCode::FAILURE
                }
            },
            Command::Handler(args) => handler::run(args).await,
            Command::Tap(args) => tap::run(args).await,
            Command::Compile(args) => compile::run(args),
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => completions::run_man(&args),
        }
    });
    // A compilation that is still running would delay the exit.
    runtime.shutdown_background();
    code
}
