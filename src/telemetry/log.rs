use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterFn, LevelFilter, ParseError};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("log filter {filter:?} is not of the form \"info\" or \"info,polygate::connection=trace\"")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Another log is running in this process.
    #[error("a log is running already")]
    Running(#[source] TryInitError),
}

/// The WebSocket library of the embedded broker; each of its targets begins with this.
const WEBSOCKET_LIBRARY: &str = "tungstenite";

/// Starts writing the log to stderr.
///
/// `filter` is a level or a list of `target=level`, as in `RUST_LOG`. The lines of the WebSocket
/// library are let through from `warn` on, or from `info` on when the filter names `tungstenite`; never below, because
/// there the library writes down the frames of MQTT clients, with passwords and payloads.
///
/// # Errors
///
/// [`LogError`], when the filter is malformed or a log is running already.
pub fn start_log(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let colours = io::stderr().is_terminal();
    // Who reads stderr may go away first; saying so on stderr would end the task that wanted to log.
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(colours).log_internal_errors(false);
    let log = tracing_subscriber::registry().with(chosen(filter)?).with(quiet_library(filter));
    match format {
        LogFormat::Text => log.with(lines.with_target(false)).try_init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(LogError::Running)?;
    if asks_for_packets(filter) {
        // Under the library's name, so that a filter which lets nothing else through shows it too.
        tracing::warn!(
            target: WEBSOCKET_LIBRARY,
            "lines of {WEBSOCKET_LIBRARY} are logged from info on: below, they hold the passwords of MQTT clients"
        );
    }
    Ok(())
}

/// What the user wants to see.
fn chosen(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

/// Keeps the WebSocket library quiet unless it is named, and always from writing frames down.
fn quiet_library(filter: &str) -> FilterFn<impl Fn(&Metadata<'_>) -> bool + use<>> {
    let level_max = if filter.contains(WEBSOCKET_LIBRARY) { Level::INFO } else { Level::WARN };
    FilterFn::new(move |line| *line.level() <= level_max || !line.target().starts_with(WEBSOCKET_LIBRARY))
}

/// Whether a filter names the WebSocket library with a level below `info`, or with none, which means all.
fn asks_for_packets(filter: &str) -> bool {
    let directives = filter.split(',').map(str::trim).filter(|directive| directive.starts_with(WEBSOCKET_LIBRARY));
    directives
        .map(|directive| directive.rsplit_once('=').map_or("trace", |(_, level)| level))
        .any(|level| level.parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;

    use super::*;

    /// Where the lines of a log under test go.
    #[derive(Clone, Default)]
    struct LogLimiter(Arc<Mutex<Vec<u8>>>);

    impl io::Write for LogLimiter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The messages that a filter lets through.
    fn logged(filter: &str) -> Vec<String> {
        let lines = LogLimiter::default();
        let writer = lines.clone();
        let text = fmt::layer().without_time().with_target(false).with_level(false).with_ansi(false);
        let log = tracing_subscriber::registry()
            .with(chosen(filter).unwrap())
            .with(quiet_library(filter))
            .with(text.with_writer(move || writer.clone()));
        with_default(log, || {
            tracing::debug!(target: "polygate::connection", "connection debug");
            tracing::trace!(target: "tungstenite::handshake", "tungstenite trace");
            tracing::debug!(target: "tungstenite::protocol", "tungstenite frame");
            tracing::info!(target: "tungstenite::server", "tungstenite info");
            tracing::warn!(target: "tungstenite::client", "tungstenite warn");
        });
        let lines = lines.0.lock().unwrap();
        String::from_utf8_lossy(&lines).lines().map(|line| line.trim().to_owned()).collect()
    }

    /// No filter brings out the lines with packets in them.
    #[test]
    fn packets_are_never_logged() {
        assert_eq!(logged("info"), ["tungstenite warn"]);
        assert_eq!(logged("trace"), ["connection debug", "tungstenite warn"]);
        assert_eq!(logged("error"), [""; 0], "the library is no louder than the rest");
        assert_eq!(
            logged("polygate=debug,tungstenite=info"),
            ["connection debug", "tungstenite info", "tungstenite warn"]
        );
        for filter in [
            "tungstenite",
            "tungstenite=trace",
            "tungstenite::handshake=trace,tungstenite=debug",
            "trace,tungstenite::protocol=5,tungstenite=5",
            "tungstenite[x]",
        ] {
            let lines = logged(filter);
            assert!(
                !lines.iter().any(|line| line.ends_with("trace") || line.ends_with("tungstenite frame")),
                "{lines:?}"
            );
        }
    }

    /// Who asks for them is told; who does not is not.
    #[test]
    fn asking_for_packets_is_noticed() {
        for filter in [
            "tungstenite",
            "tungstenite=debug",
            "info, tungstenite::handshake=trace",
            "tungstenite::net=TRACE",
            "tungstenite=5",
        ] {
            assert!(asks_for_packets(filter), "{filter}");
        }
        for filter in
            ["info", "trace", "tungstenite=info", "tungstenite=off", "tungstenite=3", "polygate::tungstenite=trace", ""]
        {
            assert!(!asks_for_packets(filter), "{filter}");
        }
    }

    /// A filter that is none is refused with its text.
    #[test]
    fn a_malformed_filter_is_refused() {
        let error = chosen("polygate=loud").unwrap_err();
        assert!(error.to_string().starts_with("log filter \"polygate=loud\" is not of the form"), "{error}");
    }
}
