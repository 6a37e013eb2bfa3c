//! `polygate serve`: runs the gateway.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueHint;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{Config, Program};
use crate::error::report;
use crate::gateway::{Gateway, ListenersChanged, Reloaded};
use crate::handler::wasm::Compiler;
use crate::listener::ActivatedSockets;
use crate::telemetry::LogFormat;

mod watching;

use watching::Watcher;

/// This executable, also after its file was replaced by another version.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Runs the gateway until SIGTERM or SIGINT, then drains
///
/// Draining: no new connections, queued bytes are written, and the handlers get the end of each connection, within
/// `drain_timeout`. A second signal ends the process at once. Exits with 0 after a complete drain, with 1 when the
/// gateway could not start or connections had to be closed at the timeout.
///
/// SIGHUP reads the configuration again: listeners are added, removed and changed for new connections, handlers get new
/// versions, and connected devices stay; the log names keys that need a restart. A configuration with faults is
/// rejected as a whole. Sockets passed by systemd (LISTEN_FDS) are used.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate serve -c /etc/polygate/polygate.toml")]
pub(crate) struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: PathBuf,
    /// Reload when the configuration file, a component, a certificate or a list of addresses has changed
    #[arg(long)]
    watch: bool,
}

/// Exit code 0 after a complete drain, 1 when the gateway could not start or connections had to be closed at the
/// timeout.
pub(crate) async fn run(args: Args, log_format: LogFormat, activated: ActivatedSockets) -> ExitCode {
    let (config, warnings) = match Config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(faults) => {
            match log_format {
                LogFormat::Text => eprintln!("{faults}"),
                // With a JSON log, the report is one line of it.
                LogFormat::Json => tracing::error!("{faults}"),
            }
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    forbid_core_dumps();
    tracing::info!(config = %args.config.display(), descriptors_max = raise_descriptors_max(), "settings read");
    match serve_until_stopped(config, args, activated).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_cut_off) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{}", report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Keys, passwords and payloads are in the memory of this process: it leaves no core dump, and no other process of its user can
/// attach to it.
fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};

    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps of this process cannot be prevented");
    }
}

/// Raises the soft limit of descriptors to the hard limit: each device needs one, and the usual soft limit of 1,024 is
/// for programs with select(2). Returns the limit; `None` is unlimited.
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

async fn serve_until_stopped(
    config: Config,
    args: Args,
    activated: ActivatedSockets,
) -> Result<usize, Box<dyn std::error::Error>> {
    // Before the start: a signal during a long compilation stops the gateway as well.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let watcher = args.watch.then(|| Watcher::new(files(&args.config, &config)));
    let gateway = tokio::select! {
        started = Gateway::start_with(config, Compiler::Subprocess(THIS_PROGRAM.into()), activated) => started?,
        () = either(&mut terminate, &mut interrupt) => {
            tracing::info!("stopped before the gateway had started");
            return Ok(0);
        }
    };
    tokio::select! {
        () = either(&mut terminate, &mut interrupt) => {}
        () = reload_when_asked(&gateway, args.config, hangup, watcher) => {}
    }
    tokio::select! {
        cut_off = gateway.stop() => Ok(cut_off),
        () = either(&mut terminate, &mut interrupt) => Err("stopped by a second signal, before the connections had ended".into()),
    }
}

/// The files whose changes trigger a reload.
fn files(path: &Path, config: &Config) -> Vec<PathBuf> {
    let components = config.handlers.iter().filter_map(|handler| match &handler.program {
        Program::Wasm(options) => Some(options.component.clone()),
        Program::Grpc(_) => None,
    });
    let of_devices = config.listeners.iter().map(|listener| &listener.files);
    let of_mqtt_clients = config.broker.listeners.iter().map(|listener| &listener.files);
    let certificates = of_devices.chain(of_mqtt_clients).flatten().cloned();
    components.chain(certificates).chain([path.to_owned()]).collect()
}

/// Reloads at each SIGHUP and, with a watcher, at each change of a file; for ever.
async fn reload_when_asked(gateway: &Gateway, path: PathBuf, mut hangup: Signal, mut watcher: Option<Watcher>) {
    loop {
        let changed = async {
            match &mut watcher {
                Some(watcher) => watcher.changed().await,
                None => std::future::pending().await,
            }
        };
        let why = tokio::select! {
            _ = hangup.recv() => "SIGHUP",
            () = changed => "a file has changed",
        };
        tracing::info!(why, "reading the configuration again");
        let reading = path.clone();
        let (config, warnings) = match tokio::task::spawn_blocking(move || Config::load(&reading)).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(faults)) => {
                tracing::error!(report = %faults, "configuration rejected");
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "reading the configuration panicked");
                continue;
            }
        };
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        if let Some(watcher) = &mut watcher {
            watcher.follow(files(&path, &config));
        }
        match gateway.reload(config).await {
            Ok(Reloaded { listeners, changed, needs_restart }) => {
                if !needs_restart.is_empty() {
                    let keys = needs_restart.join(", ");
                    tracing::warn!(keys, "changes of these keys take effect with the next start only");
                }
                let handlers: Vec<String> = changed.into_iter().map(|done| done.handler).collect();
                let ListenersChanged { added, removed, moved } = listeners;
                tracing::info!(?handlers, ?added, ?removed, ?moved, "configuration reloaded");
            }
            Err(errors) => {
                for error in errors {
                    tracing::error!(report = %report(&error), "configuration rejected");
                }
            }
        }
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{DumpableBehavior, dumpable_behavior};

    /// The kernel has taken the setting.
    #[test]
    fn no_core_dump() {
        super::forbid_core_dumps();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
