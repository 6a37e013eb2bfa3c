//! What the operator is told of handlers and versions.

use serde::{Deserialize, Serialize};

use super::index::{Origin, What};

/// One handler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandlerStatus {
    /// Its name.
    pub name: String,
    /// `wasm` or `grpc`, of the active version.
    pub kind: String,
    /// The version that serves.
    pub active: u32,
    /// The one that `rollback` goes back to.
    pub previous: Option<u32>,
    /// The one that is tried.
    pub trial: Option<TrialStatus>,
    /// Whether it gets new connections.
    pub healthy: bool,
    /// Whether a change is under way.
    pub busy: bool,
    /// Versions that hold memory.
    pub loaded: usize,
    /// Live connections of all versions.
    pub connections: usize,
}

/// A version that is tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrialStatus {
    /// Its number.
    pub version: u32,
    /// `canary:SHARE` or `shadow`.
    pub how: String,
}

/// Where a version is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// Serves new connections.
    Active,
    /// Is tried.
    Trial,
    /// Holds memory for the connections that are still with it.
    Leaving,
    /// Is on the disk.
    Kept,
}

impl VersionState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Trial => "trial",
            Self::Leaving => "leaving",
            Self::Kept => "kept",
        }
    }
}

/// One version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Its number.
    pub number: u32,
    /// Where it is in its life.
    pub state: VersionState,
    /// Where it came from.
    pub origin: Origin,
    /// Who brought it.
    pub by: String,
    /// When, as RFC 3339 has it.
    pub at: String,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
    /// Live connections.
    pub connections: usize,
    /// Events that it was given since it was loaded.
    pub events: u64,
    /// Those of them that failed.
    pub failures: u64,
}
