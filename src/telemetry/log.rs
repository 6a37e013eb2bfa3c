//! Log set-up: format, filter, and the filter of the broker library's packet logs.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterFn, LevelFilter, ParseError};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::line_format::LineFields;

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error("log filter {filter:?} is not of the form \"info\" or \"info,polygate::connection=trace\"")]
    Filter { filter: String, source: ParseError },
    /// This process already has a log.
    #[error("a log is running already")]
    Running(#[source] TryInitError),
}

/// Prefix of the log targets of the embedded broker's library.
const BROKER_LIBRARY: &str = "rmqtt";

/// Starts writing the log to stderr.
///
/// `filter` is a level or a list of `target=level`, as in `RUST_LOG`. Lines of the embedded broker's library pass from
/// `warn` on, or from `info` on if the filter names `rmqtt`; never below, because there the library logs the packets of
/// MQTT clients, with passwords and payloads.
///
/// # Errors
///
/// [`LogError`], when the filter is malformed or a log is running already.
pub fn start_log(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let colours = io::stderr().is_terminal();
    // The reader of stderr may go away; reporting that on stderr would panic the task that logs.
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(colours).log_internal_errors(false);
    let log = tracing_subscriber::registry().with(chosen(filter)?).with(quiet_library(filter));
    match format {
        LogFormat::Text => log.with(lines.fmt_fields(LineFields).with_target(false)).try_init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(LogError::Running)?;
    if asks_for_packets(filter) {
        // With the library's target, so that a filter for that target alone shows it too.
        tracing::warn!(
            target: BROKER_LIBRARY,
            "lines of {BROKER_LIBRARY} are logged from info on: below, they hold the passwords of MQTT clients"
        );
    }
    Ok(())
}

/// Filter of the user.
fn chosen(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

/// Limits the broker's library to warnings, to info if it is named, and never lets packets pass.
fn quiet_library(filter: &str) -> FilterFn<impl Fn(&Metadata<'_>) -> bool + use<>> {
    let level_max = if filter.contains(BROKER_LIBRARY) { Level::INFO } else { Level::WARN };
    FilterFn::new(move |line| *line.level() <= level_max || !line.target().starts_with(BROKER_LIBRARY))
}

/// Whether a filter names the broker's library with a level below `info`, or with none, which means all.
fn asks_for_packets(filter: &str) -> bool {
    let directives = filter.split(',').map(str::trim).filter(|directive| directive.starts_with(BROKER_LIBRARY));
    directives
        .map(|directive| directive.rsplit_once('=').map_or("trace", |(_, level)| level))
        .any(|level| level.parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;

    use super::*;

    /// Writer of a log under test.
    #[derive(Clone, Default)]
    struct LogBuffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for LogBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Messages that pass a filter.
    fn logged(filter: &str) -> Vec<String> {
        let lines = LogBuffer::default();
        let writer = lines.clone();
        let text = fmt::layer().without_time().with_target(false).with_level(false).with_ansi(false);
        let log = tracing_subscriber::registry()
            .with(chosen(filter).unwrap())
            .with(quiet_library(filter))
            .with(text.with_writer(move || writer.clone()));
        with_default(log, || {
            tracing::debug!(target: "polygate::connection", "connection debug");
            tracing::trace!(target: "rmqtt::v5", "rmqtt trace");
            tracing::debug!(target: "rmqtt_codec::v5", "rmqtt_codec debug");
            tracing::info!(target: "rmqtt::server", "rmqtt info");
            tracing::warn!(target: "rmqtt::session", "rmqtt warn");
        });
        let lines = lines.0.lock().unwrap();
        String::from_utf8_lossy(&lines).lines().map(|line| line.trim().to_owned()).collect()
    }

    /// No filter lets packets pass.
    #[test]
    fn packets_are_never_logged() {
        assert_eq!(logged("info"), ["rmqtt warn"]);
        assert_eq!(logged("trace"), ["connection debug", "rmqtt warn"]);
        assert_eq!(logged("error"), [""; 0], "the library is no louder than the rest");
        assert_eq!(logged("polygate=debug,rmqtt=info"), ["connection debug", "rmqtt info", "rmqtt warn"]);
        for filter in ["rmqtt", "rmqtt=trace", "rmqtt::v5=trace,rmqtt=debug", "trace,rmqtt_codec=5,rmqtt=5", "rmqtt[x]"]
        {
            let lines = logged(filter);
            assert!(
                !lines.iter().any(|line| line.ends_with("trace") || line.ends_with("rmqtt_codec debug")),
                "{lines:?}"
            );
        }
    }

    /// A filter that asks for packets causes a warning; others do not.
    #[test]
    fn asking_for_packets_is_noticed() {
        for filter in ["rmqtt", "rmqtt=debug", "info, rmqtt::v5=trace", "rmqtt_net=TRACE", "rmqtt=5"] {
            assert!(asks_for_packets(filter), "{filter}");
        }
        for filter in ["info", "trace", "rmqtt=info", "rmqtt=off", "rmqtt=3", "polygate::rmqtt=trace", ""] {
            assert!(!asks_for_packets(filter), "{filter}");
        }
    }

    /// A malformed filter is refused with its text.
    #[test]
    fn a_malformed_filter_is_refused() {
        let error = chosen("polygate=loud").unwrap_err();
        assert!(error.to_string().starts_with("log filter \"polygate=loud\" is not of the form"), "{error}");
    }
}
