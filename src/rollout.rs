//! New versions of handlers, while devices stay connected.
//!
//! A version is loaded beside the others, off the data path, and looked at; then the connections go over to it as the
//! handler's [`Swap`] says; it is watched for a while, and if too much fails the last version comes back. What
//! was loaded is kept on disk, so that any of the last versions can be made active, also after a restart.
//!
//! [`RolloutManager`] does it, for all handlers, in steps that have a file each: `prepare` loads and looks, `commit` makes the
//! change, `watch_change` sees to what comes of it. What is decided without a clock or a disk is in the pure files beside.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::dispatch::Policy;
use crate::handler::{grpc, wasm};
use crate::percent::Percent;

mod commit;
mod conversations;
mod error;
mod health_window;
mod index;
mod loader;
mod managed_handler;
mod manager;
mod prepare;
mod start;
mod status;
mod store;
mod watch_change;

pub(crate) use conversations::ConversationsError;
pub use error::Error;
pub(crate) use error::LoadError;
pub use health_window::FAILURES_MIN;
pub(crate) use loader::Loader;
pub(crate) use managed_handler::COMPONENT_BYTES_MAX;
pub(crate) use manager::Services;
pub use manager::{Candidate, ChangeResult, RolloutManager};
pub use status::VersionState;
pub(crate) use status::{HandlerStatus, VersionStatus};

/// What the configuration says of one handler.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it is.
    pub program: Program,
    /// How its failures are met.
    pub policy: Policy,
    /// How a new version takes over.
    pub swap: Swap,
    /// When the last one comes back by itself.
    pub rollback: Rollback,
    /// What compiling a guest may take.
    pub compile: wasm::Bounds,
    /// Files and folders of conversations that a new version, if it is a guest, must do as recorded.
    pub conversations: Vec<PathBuf>,
}

impl Options {
    /// The handler's name.
    pub fn name(&self) -> &Arc<str> {
        self.program.name()
    }
}

/// A handler of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A gRPC server that speaks ExProto.
    Grpc(grpc::Options),
    /// A guest.
    Wasm(wasm::Options),
}

impl Program {
    /// The handler's name.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Grpc(options) => &options.name,
            Self::Wasm(options) => &options.name,
        }
    }
}

/// How a new version takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Connections go over to it between two events. One that cannot stays until it ends or the drain timeout is over.
    Live,
    /// It gets the new connections; the others stay until they end.
    NewConnections,
    /// It is tried on this part of the new connections.
    Canary(Percent),
    /// It is tried on the same events without effect; differences are counted.
    Shadow,
}

impl fmt::Display for Swap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live => f.write_str("live"),
            Self::NewConnections => f.write_str("new-connections"),
            Self::Canary(share) => write!(f, "canary:{share}"),
            Self::Shadow => f.write_str("shadow"),
        }
    }
}

/// A text that is no [`Swap`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{found:?} is no way to swap; expected live, new-connections, shadow or canary:SHARE with a SHARE such as 5%, in 0.01%..=100%"
)]
pub struct MalformedSwap {
    found: String,
}

/// As [`Display`](fmt::Display) writes it.
impl FromStr for Swap {
    type Err = MalformedSwap;

    fn from_str(text: &str) -> Result<Self, MalformedSwap> {
        match text {
            "live" => Ok(Self::Live),
            "new-connections" => Ok(Self::NewConnections),
            "shadow" => Ok(Self::Shadow),
            _ => text
                .strip_prefix("canary:")
                .and_then(Percent::parse)
                .filter(|share| share.basis_points() > 0)
                .map(Self::Canary)
                .ok_or_else(|| MalformedSwap { found: text.chars().take(80).collect() }),
        }
    }
}

/// When the last version comes back by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// Failures among the new version's events, over which it is taken out; all for never.
    pub threshold: Percent,
    /// How long it is watched.
    pub window: Duration,
}

/// Who asked for a change; told in the log and kept with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The gateway starts.
    Start,
    /// The configuration was read again.
    Reload,
    /// A call of the admin port, from this address.
    Admin(SocketAddr),
    /// Nobody: too much had failed.
    HealthWindow,
}

impl fmt::Display for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Reload => f.write_str("reload"),
            Self::Admin(address) => write!(f, "admin {address}"),
            Self::HealthWindow => f.write_str("rollback"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_are_read_as_they_are_written() {
        for text in ["live", "new-connections", "shadow", "canary:5%", "canary:0.25%"] {
            assert_eq!(text.parse::<Swap>().unwrap().to_string(), text);
        }
        for text in ["", "Live", "canary", "canary:", "canary:0%", "canary:101%", "canary:5"] {
            let told = text.parse::<Swap>().unwrap_err().to_string();
            assert!(told.starts_with(&format!("{text:?} is no way to swap; expected live")), "{told}");
        }
    }
}
