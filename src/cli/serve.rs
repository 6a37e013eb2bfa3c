//! `polygate serve`: runs the gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::gateway::Gateway;
use crate::handler::chain;

/// Runs the gateway until SIGTERM or SIGINT, then drains.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate serve -c /etc/polygate/polygate.toml")]
pub struct Args {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

/// Exit code 0 after a clean stop, 1 when the gateway could not start or connections had to be cut off.
pub async fn run(args: Args) -> ExitCode {
    let (config, warnings) = match Config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(config = %args.config.display(), "settings read");
    match serve_until_stopped(config).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_cut_off) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn serve_until_stopped(config: Config) -> Result<usize, Box<dyn std::error::Error>> {
    // Before the start: a signal that comes during a long compilation stops the gateway as well.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let gateway = tokio::select! {
        started = Gateway::start(config) => started?,
        () = either(&mut terminate, &mut interrupt) => return Ok(0),
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
