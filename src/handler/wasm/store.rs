//! Host state in the wasmtime store of one instance, and its reaction to epoch ticks.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::{StoreContextMut, UpdateDeadline};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::fairness::{EventClock, FailureRate};
use super::limits::{BudgetUsed, InstancePermit, MemoryLimit};
use super::log::GuestLog;
use super::options::Options;
use super::wasi::Wasi;
use crate::adapter::Backend;
use crate::telemetry::InstanceMetrics;

/// Options and counters that all instances of a guest share.
#[derive(Debug)]
pub(super) struct GuestConfig {
    pub(super) options: Options,
    pub(super) metrics: InstanceMetrics,
    pub(super) failures: FailureRate,
    pub(super) metering: Metering,
}

/// Whether instances count the instructions that they execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metering {
    None,
    Fuel,
}

pub(super) struct GuestState {
    /// Backend of the guest's adapter calls; present during a call.
    pub(super) backend: Option<Backend>,
    pub(super) config: Arc<GuestConfig>,
    pub(super) limit: MemoryLimit,
    /// Shared with the output streams of WASI, which have tasks of their own.
    pub(super) log: Arc<Mutex<GuestLog>>,
    /// Remaining CPU time of the current event.
    pub(super) cpu_left: Duration,
    pub(super) clock: Arc<EventClock>,
    /// Budget used by the current event.
    pub(super) budget_used: BudgetUsed,
    /// Created at the first WASI call; most guests make none.
    pub(super) wasi: Option<Box<Wasi>>,
    pub(super) permit: Option<InstancePermit>,
}

impl std::fmt::Debug for GuestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestState").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let log = &self.log;
        self.wasi.get_or_insert_with(|| Box::new(Wasi::new(Arc::clone(log)))).view()
    }
}

/// The event exceeded its CPU time.
#[derive(Debug, thiserror::Error)]
#[error("the event exceeded its CPU time")]
pub(super) struct CpuTimeExceeded;

/// Epoch deadline callback, at every tick of a long event: yields to other tasks, and ends the event once it has
/// exceeded its CPU time.
pub(super) fn on_tick(mut store: StoreContextMut<'_, GuestState>) -> wasmtime::Result<UpdateDeadline> {
    let state = store.data_mut();
    let is_first = !state.clock.is_long();
    let Some(left) = state.cpu_left.checked_sub(state.clock.handle_tick()) else {
        state.cpu_left = Duration::ZERO;
        return Err(CpuTimeExceeded.into());
    };
    if is_first {
        state.config.metrics.deprioritized_by_time.inc();
    }
    state.cpu_left = left;
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(Arc::clone(&state.clock).yield_now())))
}
