//! Loaded guest: the linked component and everything that its instances share.

use std::sync::Arc;

use wasmtime::Engine;
use wasmtime::component::InstancePre;

use super::fairness::{BackgroundPools, MemoryRateLimit};
use super::limits::InstanceLimit;
use super::store::{GuestConfig, GuestState};
use super::ticker::Ticker;
use crate::telemetry::LogLimiter;
use crate::wit::bindings::ConnectionHandlerIndices;
use crate::wit::migration::MigrationIndices;

pub(super) struct LoadedGuest {
    pub(super) config: Arc<GuestConfig>,
    pub(super) engine: Engine,
    pub(super) pre: InstancePre<GuestState>,
    pub(super) handler_exports: ConnectionHandlerIndices,
    /// Present if the guest migrates the state of its connections during a hot swap.
    pub(super) migration_exports: Option<MigrationIndices>,
    /// Log rate limit over all instances.
    pub(super) log: LogLimiter,
    pub(super) memory_rate: Arc<MemoryRateLimit>,
    pub(super) engine_name: &'static str,
    pub(super) instance_limit: InstanceLimit,
    pub(super) background: Arc<BackgroundPools>,
    /// Keeps the ticker running, which limits CPU time, even after the runtime is dropped.
    pub(super) _ticker: Arc<Ticker>,
}

impl std::fmt::Debug for LoadedGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedGuest").field("options", &self.config.options).finish_non_exhaustive()
    }
}
