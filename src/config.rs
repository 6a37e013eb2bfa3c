//! Configuration file: its schema, its checks, and the [`Config`] with the options of every module.
//!
//! Each table of the file has its own module, which declares the keys ([`mod@schema`]) and reads them into the options;
//! `check` puts the tables together and reports every fault with its line and its key. No module of a lower layer uses
//! [`Config`]: the gateway takes it apart and passes the options on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::topic::Mountpoint;

mod adapter;
mod admin;
mod auth;
mod binds;
mod broker;
mod check;
mod diagnostics;
mod diff;
mod gateway;
mod handler;
mod listener;
mod location;
mod read;
mod references;
pub(crate) mod schema;
mod suggest;
mod value;

pub use diagnostics::{Advice, Faults, Warning};
pub(crate) use diff::ConfigSnapshot;
pub use references::ExternalFiles;

pub use crate::rollout::{Options as Handler, Program};

/// A whole, valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: Arc<str>,
    /// The directory of compiled components, for example.
    pub data_dir: PathBuf,
    /// How long connections may take to end when the gateway stops.
    pub drain_timeout: Duration,
    /// Concurrent connections of tcp and tls, `1..`; none: as many as the limit on descriptors allows.
    pub connections_max: Option<usize>,
    /// Bytes in the queues of all connections; `None`: a quarter of the memory.
    pub queued_bytes_max: Option<usize>,
    /// The `ConnectionAdapter` service; none: no handler speaks gRPC, and the file has no `[adapter]`.
    pub adapter: Option<crate::exproto::service::Options>,
    pub admin: Option<crate::admin::Options>,
    /// The embedded broker; not started when there is an external one.
    pub broker: crate::pubsub::embedded::Options,
    /// The user's own broker.
    pub external_broker: Option<crate::pubsub::external::Options>,
    pub auth: crate::auth::Options,
    /// The handlers, in the order of the file.
    pub handlers: Vec<Handler>,
    /// The listeners, in the order of the file.
    pub listeners: Vec<Listener>,
    /// The keys and values of the file, for the differences that a reload logs.
    pub written: ConfigSnapshot,
}

/// A listener and the options of its connections.
#[derive(Clone, Debug)]
pub struct Listener {
    pub socket: crate::listener::Options,
    pub connection: crate::connection::Options,
    pub mountpoint: Mountpoint,
    /// Names of its handlers, in order, at least one; each is one of [`Config::handlers`].
    pub handlers: Vec<Arc<str>>,
    /// How long a message of QoS 1 or 2 may take to be acknowledged before anything is sent after it; none: no
    /// confirmation.
    pub confirm_timeout: Option<Duration>,
    /// The files with its certificates, keys and denied addresses.
    pub files: Vec<PathBuf>,
}

impl Config {
    /// Reads and checks a file. Paths in it are relative to its directory.
    ///
    /// It reads the files that the configuration names, so it belongs on a blocking thread.
    ///
    /// # Errors
    ///
    /// [`Faults`], all of them at once.
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), Faults> {
        let file = path.display().to_string();
        match references::read_text(path, references::CONFIG_BYTES_MAX) {
            Ok(text) => Self::parse(&text, path.parent().unwrap_or(Path::new("")), &file),
            Err(why) => Err(Faults::Unreadable { file, why }),
        }
    }

    /// Reads the data directory and the admin port of a file, for a client of its gateway. Files of other tables are not
    /// read, so it works without access to private keys.
    ///
    /// # Errors
    ///
    /// [`Faults`] of these tables.
    pub(crate) fn load_admin(path: &Path) -> Result<(PathBuf, Option<crate::admin::Options>), Faults> {
        let file = path.display().to_string();
        let text = references::read_text(path, references::CONFIG_BYTES_MAX)
            .map_err(|why| Faults::Unreadable { file: file.clone(), why })?;
        let base_dir = path.parent().unwrap_or(Path::new(""));
        check::check_admin(&text, &file, ExternalFiles { base_dir, env: &|name| std::env::var_os(name) })
    }

    /// Checks the text of a file that is called `file_name` in faults and lies in `base_dir`.
    ///
    /// # Errors
    ///
    /// [`Faults`], all of them at once.
    pub fn parse(text: &str, base_dir: &Path, file_name: &str) -> Result<(Self, Vec<Warning>), Faults> {
        Self::parse_with(text, file_name, ExternalFiles { base_dir, env: &|name| std::env::var_os(name) })
    }

    /// As [`parse`](Self::parse), with the environment as an argument.
    ///
    /// # Errors
    ///
    /// [`Faults`], all of them at once.
    pub fn parse_with(
        text: &str,
        file_name: &str,
        external: ExternalFiles<'_>,
    ) -> Result<(Self, Vec<Warning>), Faults> {
        check::check(text, file_name, external)
    }
}
