//! How an event runs that is long: its stretches between two ticks, and the memory that it waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::memory_rate::MemoryRateLimit;
use crate::handler::wasm::ticker::{FIRST_TICKS, TICK};

/// An event that has taken more CPU time than this is very long. A guest in Python that imports its modules in its first event is
/// below.
const SLOW_MAX: Duration = Duration::from_millis(50);

/// How the event in progress of one instance runs.
#[derive(Debug, Default)]
pub(in crate::handler::wasm) struct EventClock {
    /// Since when, by the CPU time of its thread, the stretch lasts, in nanoseconds; zero while the event is not long.
    since_ns: AtomicU64,
    /// CPU time of the stretches that are over, in nanoseconds.
    used_ns: AtomicU64,
    /// Whether the event waits for the memory that it takes.
    waits: AtomicBool,
    /// What it has taken of its handler's [`MemoryRateLimit`], in bytes.
    taken: AtomicUsize,
}

impl EventClock {
    /// Whether the event has seen a tick.
    pub(in crate::handler::wasm) fn is_long(&self) -> bool {
        self.since_ns.load(Ordering::Relaxed) != 0
    }

    /// Whether the event has seen so many that nobody knows when it ends.
    pub(in crate::handler::wasm) fn is_very_long(&self) -> bool {
        self.used_ns.load(Ordering::Relaxed) > nanos(SLOW_MAX)
    }

    /// The event is over.
    pub(in crate::handler::wasm) fn end(&self) {
        self.since_ns.store(0, Ordering::Relaxed);
        self.used_ns.store(0, Ordering::Relaxed);
    }

    /// Ends a stretch at a tick, and gives its CPU time. The first one is not measured, since ordinary events would pay for
    /// that, and counts as its ticks. Where the event has waited for the host and gone on in another thread, nobody knows; then
    /// it is between nothing and what a stretch can take.
    pub(in crate::handler::wasm) fn handle_tick(&self) -> Duration {
        let cpu_time = match self.since_ns.load(Ordering::Relaxed) {
            0 => TICK * FIRST_TICKS as u32,
            since_ns => thread_time().saturating_sub(Duration::from_nanos(since_ns)).min(2 * TICK),
        };
        self.used_ns.fetch_add(nanos(cpu_time), Ordering::Relaxed);
        cpu_time
    }

    /// Lets others run, and begins the next stretch. The runtime's own way to yield lets it look at its sockets before.
    pub(in crate::handler::wasm) async fn yield_now(self: Arc<Self>) {
        self.begin();
        tokio::task::yield_now().await;
        self.begin();
    }

    fn begin(&self) {
        self.since_ns.store(nanos(thread_time()).max(1), Ordering::Relaxed);
    }

    /// From now on the event waits for memory.
    pub(in crate::handler::wasm) fn begin_waiting(&self) {
        self.waits.store(true, Ordering::Relaxed);
    }

    /// Whether the event waits for the memory that it takes.
    pub(in crate::handler::wasm) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Waits for memory of the handler's share. Whether it had to comes back.
    pub(in crate::handler::wasm) async fn take(&self, memory_rate: &MemoryRateLimit, bytes: usize) -> bool {
        let has_waited = memory_rate.take(bytes).await;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        has_waited
    }

    /// The event waits no more; what it has taken of the share comes back.
    pub(in crate::handler::wasm) fn end_waiting(&self) -> usize {
        self.waits.store(false, Ordering::Relaxed);
        self.taken.swap(0, Ordering::Relaxed)
    }
}

fn nanos(span: Duration) -> u64 {
    // 584 years.
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU time of this thread so far.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Both are never negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
