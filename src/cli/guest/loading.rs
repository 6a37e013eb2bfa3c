//! Common arguments of the commands for guests: component, limits, settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::ValueHint;
use tempfile::TempDir;
use tracing::subscriber::NoSubscriber;

use super::Error;
use crate::config::{Config, Faults, Program};
use crate::handler::wasm::{Handler, Isolation, Options, Runtime};
use crate::telemetry::Telemetry;

/// The guest, its limits and its settings
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Loading {
    /// The guest: a component, or a core module with component metadata
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,

    /// A setting for the guest; may be repeated
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(String, String)>,

    /// Takes settings and limits from a handler of a configuration file; options on the command line take precedence
    #[arg(long, value_name = "FILE:HANDLER", value_parser = parse_settings_from)]
    pub settings_from: Option<(PathBuf, String)>,

    /// Linear memory of one instance; default: 16MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_max: Option<usize>,

    /// CPU time of one event; default: 1s
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub event_timeout: Option<Duration>,

    /// Directory of compiled guests, to compile each only once; default: none
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cache_dir: Option<PathBuf>,
}

/// The settings of a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The configuration has faults.
    #[error("{0}")]
    Config(#[from] Faults),
    /// It has no such guest.
    #[error("expected a handler of kind \"wasm\" in {path}, found {found:?}; there are {there}", path = .path.display())]
    NoHandler {
        /// The file.
        path: PathBuf,
        /// The given name.
        found: String,
        /// The existing names.
        there: String,
    },
}

/// A loaded guest.
pub(crate) struct Loaded {
    /// The guest.
    pub handler: Handler,
    /// Its limits and settings.
    pub options: Options,
    /// The duration of its compilation, or of its loading from the cache.
    pub took: Duration,
    /// Keeps the compiled guest until the end.
    _dir: Option<TempDir>,
}

/// Whether instances count fuel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metered {
    /// They run as in the gateway.
    No,
    /// They count fuel.
    Yes,
}

impl Loading {
    /// Compiles the guest.
    ///
    /// # Errors
    ///
    /// The file is no guest, the configuration has no such handler, or this machine cannot run guests.
    pub(crate) async fn load(&self, metered: Metered) -> Result<Loaded, Error> {
        let options = self.options()?;
        let (dir, cache_dir) = match &self.cache_dir {
            Some(dir) => (None, dir.clone()),
            None => {
                let made = TempDir::with_prefix("polygate-guest-");
                let dir = made.map_err(|source| Error::File { path: std::env::temp_dir(), source })?;
                let path = dir.path().join("components");
                (Some(dir), path)
            }
        };
        let host = match metered {
            Metered::No => Runtime::start(cache_dir)?,
            Metered::Yes => Runtime::start_metered(cache_dir)?,
        };
        let begun = Instant::now();
        let metrics = Telemetry::new().instances(&options.name);
        let to_load = options.clone();
        let loading = tokio::task::spawn_blocking(move || {
            // The log line about a loaded guest is for a gateway, not for this command.
            tracing::subscriber::with_default(NoSubscriber::new(), || host.load(to_load, metrics))
        });
        // The task is neither aborted nor does it panic; if it did, the command could not continue.
        let handler = loading.await.map_err(|error| Error::Output(std::io::Error::other(error)))??;
        Ok(Loaded { handler, options, took: begun.elapsed(), _dir: dir })
    }

    /// The name of the guest in messages: its file name.
    pub(crate) fn name(&self) -> Arc<str> {
        self.file.file_stem().map_or_else(|| "guest".into(), |stem| stem.to_string_lossy().into())
    }

    fn options(&self) -> Result<Options, SettingsError> {
        let mut options = match &self.settings_from {
            Some((path, handler)) => configured(path, handler)?,
            None => Options::new(self.name(), self.file.clone()),
        };
        options.name = self.name();
        options.component.clone_from(&self.file);
        // With one instance for each connection, its cost can be measured.
        options.isolation = Isolation::Connection;
        options.memory_bytes_max = self.memory_max.unwrap_or(options.memory_bytes_max);
        options.event_timeout = self.event_timeout.unwrap_or(options.event_timeout);
        options.settings.extend(self.settings.iter().cloned());
        Ok(options)
    }
}

fn configured(path: &Path, handler: &str) -> Result<Options, SettingsError> {
    let (config, _) = Config::load(path)?;
    let guests: Vec<Options> = config
        .handlers
        .into_iter()
        .filter_map(|handler| match handler.program {
            Program::Wasm(options) => Some(options),
            Program::Grpc(_) => None,
        })
        .collect();
    let names: Vec<String> = guests.iter().map(|options| format!("{:?}", options.name)).collect();
    guests.into_iter().find(|options| &*options.name == handler).ok_or_else(|| SettingsError::NoHandler {
        path: path.to_owned(),
        found: handler.to_owned(),
        there: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
    })
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, for example timezone=+08:00".to_owned()),
    }
}

fn parse_settings_from(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((path, handler)) if !path.is_empty() && !handler.is_empty() => Ok((path.into(), handler.to_owned())),
        _ => Err("expected FILE:HANDLER, for example polygate.toml:meter".to_owned()),
    }
}

fn parse_size(text: &str) -> Result<usize, String> {
    const EXPECTED: &str = "expected a size between 64KiB and 4GiB, for example 16MiB";
    let bytes = text.parse::<ByteSize>().map_err(|_| EXPECTED.to_owned())?.as_u64();
    match usize::try_from(bytes) {
        Ok(fits) if ((64 << 10)..=(4 << 30)).contains(&bytes) => Ok(fits),
        _ => Err(EXPECTED.to_owned()),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time between 10ms and 10m, for example 1s";
    let time = humantime::parse_duration(text).map_err(|_| EXPECTED.to_owned())?;
    let range = Duration::from_millis(10)..=Duration::from_secs(600);
    if range.contains(&time) { Ok(time) } else { Err(EXPECTED.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_values() {
        assert_eq!(parse_setting("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(parse_settings_from("C:/x.toml:h"), Ok(("C:/x.toml".into(), "h".to_owned())));
        assert_eq!((parse_size("64KiB"), parse_size("4GiB")), (Ok(64 << 10), Ok(4 << 30)));
        assert!([parse_size("1KiB"), parse_size("5GiB"), parse_size("much")].iter().all(Result::is_err));
        assert!(parse_setting("=b").is_err() && parse_setting("a").is_err() && parse_settings_from("a").is_err());
        assert!(parse_time("1ms").is_err() && parse_time("1h").is_err() && parse_time("2s").is_ok());
    }
}
