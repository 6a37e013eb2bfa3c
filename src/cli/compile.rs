//! `polygate compile`: compiles a guest in a process of its own. Internal: started by `serve` only.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::ValueHint;

use crate::error::report;
use crate::handler::wasm::{Options, Runtime, bound_this_process};
use crate::telemetry::Telemetry;

/// Compiles a guest to stdout, with resource limits; the gateway runs it
///
/// Exits with 0 when the code is written, with 1 and a reason when it is refused, and by a signal at a limit.
#[derive(Debug, clap::Args)]
#[command(
    hide = true,
    after_help = "Example:\n  polygate compile --handler=h --component=h.wasm --known-as=h.wasm \\\n      --instance-memory=16777216 --memory=4294967296 --seconds=300"
)]
pub(crate) struct Args {
    /// The handler's name, for errors
    #[arg(long, value_name = "NAME")]
    handler: Arc<str>,
    /// The component
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    component: PathBuf,
    /// Its name in errors
    #[arg(long, value_name = "FILE")]
    known_as: PathBuf,
    /// Maximum linear memory of one instance, in bytes, which decides how it is compiled
    #[arg(long, value_name = "BYTES")]
    instance_memory: usize,
    /// Whether the gateway has the engine for small guests, which also decides that
    #[arg(long)]
    small_engine: bool,
    /// Maximum memory of this process, in bytes
    #[arg(long, value_name = "BYTES")]
    memory: u64,
    /// Maximum CPU time of this process on each core, in seconds
    #[arg(long, value_name = "SECONDS")]
    seconds: u64,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> ExitCode {
    if let Err(error) = bound_this_process(args.memory, args.seconds) {
        eprintln!("handler {:?}: cannot bound the compiler: {error}", args.handler);
        return ExitCode::FAILURE;
    }
    let metrics = Telemetry::new().instances(&args.handler);
    let options = Options { memory_bytes_max: args.instance_memory, ..Options::new(args.handler, args.component) };
    let host = match Runtime::start_compiler(args.small_engine) {
        Ok(host) => host,
        Err(error) => {
            eprintln!("{}", report(&error));
            return ExitCode::FAILURE;
        }
    };
    match host.compile(options, metrics) {
        Ok(code) => match io::stdout().write_all(&code) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cannot hand the compiled code back: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("{}", report(&error.about(&args.known_as)));
            ExitCode::FAILURE
        }
    }
}
