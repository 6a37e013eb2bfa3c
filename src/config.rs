//! What the gateway is to be: checked settings, made of each module's own options.
//!
//! [`mod@schema`] says what the user may write; `check` turns it into a [`Config`] and finds every fault on the
//! way, with its line and its key. Nothing below this floor sees a [`Config`]: the gateway takes it apart
//! and hands out the options.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::topic::Mountpoint;
use crate::{admin, auth, connection, exproto, listener, pubsub};

mod check;
mod diagnostics;
mod diff;
mod fault;
mod location;
mod read;
mod references;
pub(crate) mod schema;
mod suggest;
mod value;
mod warning;

pub(crate) use diff::ConfigDiff;
pub use fault::Faults;
pub use warning::{Advice, Warning};

pub use crate::rollout::{Options as Handler, Program};

/// A whole, valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node, in `Message.node`.
    pub node: Arc<str>,
    /// What the gateway keeps, such as compiled components.
    pub data_dir: PathBuf,
    /// How long connections may take to end when the gateway stops.
    pub drain_timeout: Duration,
    /// Connections of tcp and tls at a time, `1..`; absent for as many as there are descriptors.
    pub connections_max: Option<usize>,
    /// The `ConnectionAdapter` service; absent when no handler speaks gRPC and none is asked for.
    pub adapter: Option<exproto::service::Options>,
    /// Health and metrics; absent for none.
    pub admin: Option<admin::Options>,
    /// The embedded broker; not started when there is an external one.
    pub broker: pubsub::embedded::Options,
    /// The user's own broker.
    pub external_broker: Option<pubsub::external::Options>,
    /// Who may authenticate, publish and subscribe.
    pub auth: auth::Options,
    /// The handlers, in the order of the file.
    pub handlers: Vec<Handler>,
    /// The listeners, in the order of the file.
    pub listeners: Vec<Listener>,
    /// The file as it was written, to find out later what another one changes.
    pub written: ConfigDiff,
}

/// A listener and what its connections get.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The socket.
    pub socket: listener::Options,
    /// The connections' bounds.
    pub connection: connection::Options,
    /// Put in front of the devices' topics.
    pub mountpoint: Mountpoint,
    /// Names of its handlers, in order, at least one; each is one of [`Config::handlers`].
    pub handlers: Vec<Arc<str>>,
    /// How long a message of QoS 1 or 2 may take to be acknowledged before anything is sent after it; absent without
    /// confirmation.
    pub confirm_timeout: Option<Duration>,
    /// The files with its certificates and keys.
    pub files: Vec<PathBuf>,
}

/// What a configuration file refers to outside of itself.
#[derive(Clone, Copy)]
pub struct ExternalFiles<'a> {
    /// What paths in the file are relative to.
    pub base_dir: &'a Path,
    /// The value of an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
}

impl std::fmt::Debug for ExternalFiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("base_dir", &self.base_dir).finish_non_exhaustive()
    }
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
