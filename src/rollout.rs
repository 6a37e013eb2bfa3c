//! Rollout: hot swap of handlers while devices stay connected; canary, shadow, rollback.
//!
//! A new version is loaded beside the others, off the data path, and checked; then connections migrate to it as the
//! handler's [`Swap`] says. Its failures are watched for a while, and if too many events fail, the previous version
//! becomes active again. Versions are kept on disk, so any of the last ones can be activated, also after a restart.
//!
//! [`RolloutManager`] does this for all handlers, in steps with a file each: `prepare` loads and checks, `commit` makes
//! the change, `watch_change` migrates connections and watches the new version. Decisions without a clock or a disk are
//! in the pure files beside.

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

/// Configuration of one handler.
#[derive(Clone, Debug)]
pub struct Options {
    pub program: Program,
    pub policy: Policy,
    pub swap: Swap,
    /// Automatic rollback.
    pub rollback: Rollback,
    /// Limits of compilation.
    pub compile: wasm::Bounds,
    /// Files and folders of conversations that a new version must pass, if it is a guest.
    pub conversations: Vec<PathBuf>,
}

impl Options {
    pub fn name(&self) -> &Arc<str> {
        self.program.name()
    }
}

/// A handler of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A gRPC server that speaks ExProto.
    Grpc(grpc::Options),
    Wasm(wasm::Options),
}

impl Program {
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Grpc(options) => &options.name,
            Self::Wasm(options) => &options.name,
        }
    }
}

/// Swap mode of a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Connections migrate to it between two events. One that cannot keeps its version until it closes or the drain
    /// timeout has passed.
    Live,
    /// It gets new connections; existing ones keep their version until they close.
    NewConnections,
    /// It gets this percentage of the new connections on trial.
    Canary(Percent),
    /// It gets the same events in a dry run; differences are counted.
    Shadow,
}

impl fmt::Display for Swap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live => f.write_str("live"),
            Self::NewConnections => f.write_str("new-connections"),
            Self::Canary(percent) => write!(f, "canary:{percent}"),
            Self::Shadow => f.write_str("shadow"),
        }
    }
}

/// The text is not a [`Swap`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{found:?} is not a swap mode; expected live, new-connections, shadow or canary:SHARE with a SHARE such as 5%, in 0.01%..=100%"
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
                .filter(|percent| percent.basis_points() > 0)
                .map(Self::Canary)
                .ok_or_else(|| MalformedSwap { found: text.chars().take(80).collect() }),
        }
    }
}

/// Automatic rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// Failed events of the new version, above which it is rolled back; 100% disables the rollback.
    pub threshold: Percent,
    /// How long failures are watched.
    pub window: Duration,
}

/// Initiator of a change; logged and stored with the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// Gateway start.
    Start,
    /// Reload of the configuration.
    Reload,
    /// Call of the admin API, from this address.
    Admin(SocketAddr),
    /// Automatic rollback.
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
    fn swaps_round_trip() {
        for text in ["live", "new-connections", "shadow", "canary:5%", "canary:0.25%"] {
            assert_eq!(text.parse::<Swap>().unwrap().to_string(), text);
        }
        for text in ["", "Live", "canary", "canary:", "canary:0%", "canary:101%", "canary:5"] {
            let error = text.parse::<Swap>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a swap mode; expected live")), "{error}");
        }
    }
}
