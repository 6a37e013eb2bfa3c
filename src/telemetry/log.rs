use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

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
    Running(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Starts writing the log to stderr.
///
/// `filter` is a level or a list of `target=level`, as in `RUST_LOG`. The embedded broker's own lines are
/// let through from `warn` on unless the filter names `rmqtt`.
///
/// # Errors
///
/// [`LogError`], when the filter is malformed or a log is running already.
pub fn start_log(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let quiet = if filter.contains("rmqtt") { String::new() } else { ",rmqtt=warn".to_owned() };
    let parsed = EnvFilter::try_new(format!("{filter}{quiet}"))
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })?;
    let colours = io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(LogError::Running)
}
