//! Status of handlers and versions, for the admin API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Swap;
use super::index::{Artifact, Origin, Record};
use super::managed_handler::ManagedHandler;
use crate::dispatch::{TrialKind, Version};
use crate::handler::Handler;

/// Status of one handler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandlerStatus {
    pub name: String,
    /// `wasm` or `grpc`, of the active version.
    pub kind: String,
    /// The active version.
    pub active: u32,
    /// Target of `rollback`.
    pub previous: Option<u32>,
    /// The version on trial.
    pub trial: Option<TrialStatus>,
    /// Whether it gets new connections.
    pub healthy: bool,
    /// Whether a change is running.
    pub busy: bool,
    /// Number of versions in memory.
    pub loaded: usize,
    /// Live connections of all versions.
    pub connections: usize,
}

impl HandlerStatus {
    pub(super) fn of(handler: &ManagedHandler) -> Self {
        let plan = handler.versions.plan();
        let loaded = handler.versions.loaded();
        let index = handler.state.lock().index.clone();
        let kind = match plan.active.handler() {
            Handler::Grpc(_) => "grpc",
            Handler::Wasm(_) => "wasm",
        };
        let trial = plan.trial.as_ref().map(|trial| {
            let how = match trial.how {
                TrialKind::Canary(share) => Swap::Canary(share),
                TrialKind::Shadow => Swap::Shadow,
            };
            TrialStatus { version: trial.version.number(), how: how.to_string() }
        });
        Self {
            name: handler.name().to_string(),
            kind: kind.to_owned(),
            active: plan.active.number(),
            previous: index.previous,
            trial,
            healthy: handler.versions.is_healthy(),
            busy: handler.is_busy(),
            loaded: loaded.len(),
            connections: loaded.iter().map(|version| version.connections()).sum(),
        }
    }
}

/// A version on trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrialStatus {
    pub version: u32,
    /// `canary:SHARE` or `shadow`.
    pub how: String,
}

/// State of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// Serves new connections.
    Active,
    /// On trial.
    Trial,
    /// In memory for its remaining connections.
    Leaving,
    /// On disk only.
    Kept,
}

impl VersionState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Trial => "trial",
            Self::Leaving => "leaving",
            Self::Kept => "kept",
        }
    }
}

/// Status of one version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionStatus {
    pub number: u32,
    pub state: VersionState,
    pub origin: Origin,
    /// Initiator.
    pub by: String,
    /// Creation time (RFC 3339).
    pub at: String,
    #[serde(flatten)]
    pub what: Artifact,
    pub connections: usize,
    /// Events since it was loaded.
    pub events: u64,
    /// Failed events.
    pub failures: u64,
}

impl VersionStatus {
    /// Newest first.
    pub(super) fn all_of(handler: &ManagedHandler) -> Vec<Self> {
        let plan = handler.versions.plan();
        let loaded: BTreeMap<u32, Arc<Version>> =
            handler.versions.loaded().into_iter().map(|version| (version.number(), version)).collect();
        let state_of = |number: u32| {
            let is_tried = plan.trial.as_ref().is_some_and(|trial| trial.version.number() == number);
            match (number == plan.active.number(), is_tried, loaded.contains_key(&number)) {
                (true, _, _) => VersionState::Active,
                (false, true, _) => VersionState::Trial,
                (false, false, true) => VersionState::Leaving,
                (false, false, false) => VersionState::Kept,
            }
        };
        let records = handler.state.lock().index.versions.clone();
        let status = |record: Record| {
            let version = loaded.get(&record.number);
            let (events, failures) = version.map_or((0, 0), |version| version.outcomes());
            let at = UNIX_EPOCH.checked_add(Duration::from_secs(record.at_s)).unwrap_or(UNIX_EPOCH);
            Self {
                number: record.number,
                state: state_of(record.number),
                origin: record.origin,
                by: record.by,
                at: humantime::format_rfc3339_seconds(at).to_string(),
                what: record.what,
                connections: version.map_or(0, |version| version.connections()),
                events,
                failures,
            }
        };
        records.into_iter().rev().map(status).collect()
    }
}
