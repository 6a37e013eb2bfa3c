//! What bounds a guest: its memory, its CPU time, and how many instances there may be.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::{Engine, ResourceLimiter, StoreContextMut, UpdateDeadline};

use super::instance::GuestState;
use crate::telemetry::InstanceMetrics;

/// How often a running guest is looked at: it yields to others that often, and its time is counted so exactly.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Elements of all tables of one instance. A table holds function references; guests have a few hundred.
const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Mappings that one instance may take: its memory, that memory's guards, its stack and the stack's guard.
const MAPPINGS_PER_INSTANCE: usize = 7;

/// Mappings allowed to a process where the system does not say (the kernel's default).
const MAPPINGS_MAX_DEFAULT: usize = 65_530;

/// The clock that looks at running guests; ends when dropped.
#[derive(Debug)]
pub(super) struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// A thread of its own, because a guest in an endless loop may hold a worker until the clock makes it yield.
    pub(super) fn start(engine: &Engine) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("guest-clock".to_owned()).spawn({
            let (engine, stop) = (engine.weak(), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::park_timeout(TICK);
                    match engine.upgrade() {
                        Some(engine) => engine.increment_epoch(),
                        None => break,
                    }
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that bounds guests' time had panicked");
            }
        }
    }
}

/// An event took more CPU time than it may.
#[derive(Debug, thiserror::Error)]
#[error("the event's CPU time is used up")]
pub(super) struct TimeUsedUp;

/// At every tick of a running guest: yields to other tasks, and ends the event once its ticks are used up.
///
/// Ticks that pass while the guest waits for the host are not its own: they count as one, when it goes on.
pub(super) fn on_tick(mut store: StoreContextMut<'_, GuestState>) -> wasmtime::Result<UpdateDeadline> {
    let ticks_left = &mut store.data_mut().ticks_left;
    match ticks_left.checked_sub(1) {
        Some(left) => {
            *ticks_left = left;
            Ok(UpdateDeadline::Yield(1))
        }
        None => Err(TimeUsedUp.into()),
    }
}

/// Bounds the memory of one instance, and tells the gauges of it.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    bytes_max: usize,
    bytes: usize,
    table_elements: usize,
    /// The guest asked for more than it may have; told with the trap that usually follows.
    pub(super) exceeded: bool,
    metrics: InstanceMetrics,
}

impl MemoryLimit {
    pub(super) fn new(bytes_max: usize, metrics: InstanceMetrics) -> Self {
        Self { bytes_max, bytes: 0, table_elements: 0, exceeded: false, metrics }
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        self.metrics.memory_bytes.dec_by(gauge(self.bytes));
    }
}

/// The limits hold for all memories and tables of the instance together.
impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if is_beyond(desired, maximum) {
            return Ok(false);
        }
        let grown = desired.saturating_sub(current);
        let bytes = self.bytes.saturating_add(grown);
        if bytes > self.bytes_max {
            self.exceeded = true;
            return Ok(false);
        }
        self.bytes = bytes;
        self.metrics.memory_bytes.inc_by(gauge(grown));
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if is_beyond(desired, maximum) {
            return Ok(false);
        }
        let elements = self.table_elements.saturating_add(desired.saturating_sub(current));
        if elements > TABLE_ELEMENTS_MAX {
            self.exceeded = true;
            return Ok(false);
        }
        self.table_elements = elements;
        Ok(true)
    }
}

/// Whether the guest's own declaration forbids the growth. The engine asks us first, and refuses it only after we
/// have counted it.
fn is_beyond(desired: usize, maximum: Option<usize>) -> bool {
    maximum.is_some_and(|maximum| desired > maximum)
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// How many instances may live at once.
///
/// At the system's limit on mappings not only the next instance fails: the next allocation of the gateway
/// itself may, and that ends the process. So the ceiling is well below.
#[derive(Clone, Debug)]
pub(super) struct Ceiling {
    live: Arc<AtomicUsize>,
    instances_max: usize,
}

impl Ceiling {
    pub(super) fn of_this_system() -> Self {
        let mappings_max = fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(MAPPINGS_MAX_DEFAULT);
        Self::new(mappings_max / MAPPINGS_PER_INSTANCE)
    }

    fn new(instances_max: usize) -> Self {
        Self { live: Arc::default(), instances_max }
    }

    pub(super) fn instances_max(&self) -> usize {
        self.instances_max
    }

    /// The right to hold one instance; `None` when there are as many as may be.
    pub(super) fn permit(&self, metrics: &InstanceMetrics) -> Option<InstancePermit> {
        let below = |live: usize| (live < self.instances_max).then_some(live + 1);
        self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        metrics.live.inc();
        Some(InstancePermit { live: Arc::clone(&self.live), metrics: metrics.clone() })
    }
}

/// The right to hold one instance; given back when dropped.
#[derive(Debug)]
pub(super) struct InstancePermit {
    live: Arc<AtomicUsize>,
    metrics: InstanceMetrics,
}

impl Drop for InstancePermit {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.metrics.live.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    /// The second instance gets no permit while the first lives, and one when it is gone.
    #[test]
    fn instances_are_bounded() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let ceiling = Ceiling::new(1);
        let first = ceiling.permit(&metrics).unwrap();
        assert!(ceiling.permit(&metrics).is_none());
        assert_eq!(metrics.live.get(), 1);
        drop(first);
        assert_eq!(metrics.live.get(), 0);
        assert!(ceiling.permit(&metrics).is_some());
    }

    /// What a guest has forbidden itself is not counted: it does not get it.
    #[test]
    fn growth_beyond_the_guests_own_maximum_is_not_counted() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let mut limit = MemoryLimit::new(100, metrics.clone());
        for _ in 0..10 {
            assert!(!limit.memory_growing(0, 30, Some(20)).unwrap());
            assert!(!limit.table_growing(0, 30_000, Some(20)).unwrap());
        }
        assert!(!limit.exceeded, "the gateway has refused nothing");
        assert_eq!(metrics.memory_bytes.get(), 0);
        assert!(limit.memory_growing(0, 20, Some(20)).unwrap());
        assert!(limit.table_growing(0, 20, Some(20)).unwrap());
    }

    /// Memory grows to the limit, not beyond, over all memories; the gauges follow and return to zero.
    #[test]
    fn memory_is_bounded() {
        let metrics = Telemetry::new().instances(&"guest".into());
        let mut limit = MemoryLimit::new(100, metrics.clone());
        assert!(limit.memory_growing(0, 60, None).unwrap());
        assert!(!limit.memory_growing(0, 41, None).unwrap(), "a second memory counts as well");
        assert!(limit.exceeded);
        assert!(limit.memory_growing(60, 100, None).unwrap());
        assert_eq!(metrics.memory_bytes.get(), 100);
        drop(limit);
        assert_eq!(metrics.memory_bytes.get(), 0);
    }
}
