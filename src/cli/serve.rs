//! `polygate serve`: runs the gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueHint;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::gateway::Gateway;
use crate::handler::chain;
use crate::telemetry::LogFormat;

/// Runs the gateway until SIGTERM or SIGINT, then drains
///
/// To drain is to accept no more devices, tell the handlers of the end of each connection and write what was sent,
/// for as long as `drain_timeout` allows. A second signal ends the process at once. Exits with 0 after a clean stop, with 1
/// when the gateway could not start or connections had to be cut off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate serve -c /etc/polygate/polygate.toml")]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: PathBuf,
}

/// Exit code 0 after a clean stop, 1 when the gateway could not start or connections had to be cut off.
pub async fn run(args: Args, log_format: LogFormat) -> ExitCode {
    let (config, warnings) = match Config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(faults) => {
            match log_format {
                LogFormat::Text => eprintln!("{faults}"),
                // Whoever reads JSON reads nothing else, so there the report is one line of the log.
                LogFormat::Json => tracing::error!("{faults}"),
            }
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(config = %args.config.display(), descriptors_max = raise_descriptors_max(), "settings read");
    match serve_until_stopped(config).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_cut_off) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Takes as many descriptors as the process may have: each device needs one, and the usual soft limit of 1,024 is there
/// for programs that select(2). Gives the limit; `None` means that there is none.
fn raise_descriptors_max() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit on descriptors");
            current
        }
    }
}

async fn serve_until_stopped(config: Config) -> Result<usize, Box<dyn std::error::Error>> {
    // Before the start: a signal that comes during a long compilation stops the gateway as well.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let gateway = tokio::select! {
        started = Gateway::start(config) => started?,
        () = either(&mut terminate, &mut interrupt) => {
            tracing::info!("stopped before the gateway had started");
            return Ok(0);
        }
    };
    either(&mut terminate, &mut interrupt).await;
    tokio::select! {
        cut_off = gateway.stop() => Ok(cut_off),
        () = either(&mut terminate, &mut interrupt) => Err("stopped by a second signal, before the connections had ended".into()),
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
