//! Event clock: CPU time of the current event of an instance, measured from tick to tick by the CPU clock of its
//! thread.
//!
//! It also counts the memory that the event has taken from the memory rate limit. It resets at the end of each event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::memory_rate::MemoryRateLimit;
use crate::handler::wasm::ticker::{FIRST_TICKS, TICK};

/// CPU time above which an event is very long. The first event of a Python guest, which imports its modules, is below.
const SLOW_MAX: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(in crate::handler::wasm) struct EventClock {
    /// CPU clock of the thread at the last tick, in nanoseconds; zero while the event is not long.
    last_tick_ns: AtomicU64,
    /// CPU time up to the last tick, in nanoseconds.
    used_ns: AtomicU64,
    /// Whether memory growth of the event is subject to the memory rate limit.
    waits: AtomicBool,
    /// Tokens taken from the handler's [`MemoryRateLimit`], in bytes.
    taken: AtomicUsize,
}

impl EventClock {
    /// Whether the event has seen a tick.
    pub(in crate::handler::wasm) fn is_long(&self) -> bool {
        self.last_tick_ns.load(Ordering::Relaxed) != 0
    }

    /// Whether the event has used more CPU time than [`SLOW_MAX`].
    pub(in crate::handler::wasm) fn is_very_long(&self) -> bool {
        self.used_ns.load(Ordering::Relaxed) > nanos(SLOW_MAX)
    }

    /// Resets the CPU time at the end of an event.
    pub(in crate::handler::wasm) fn end(&self) {
        self.last_tick_ns.store(0, Ordering::Relaxed);
        self.used_ns.store(0, Ordering::Relaxed);
    }

    /// Returns the CPU time since the last tick. The time before the first tick is not measured, because the
    /// measurement would slow down ordinary events; it counts as its number of ticks. If the event has waited for a
    /// host function and moved to another thread, the CPU clocks do not match; the result is then clamped between zero
    /// and two ticks.
    pub(in crate::handler::wasm) fn handle_tick(&self) -> Duration {
        let cpu_time = match self.last_tick_ns.load(Ordering::Relaxed) {
            0 => TICK * FIRST_TICKS as u32,
            last_tick_ns => thread_time().saturating_sub(Duration::from_nanos(last_tick_ns)).min(2 * TICK),
        };
        self.used_ns.fetch_add(nanos(cpu_time), Ordering::Relaxed);
        cpu_time
    }

    /// Yields to other tasks, and restarts the measurement. Tokio's `yield_now` lets the runtime poll its sockets
    /// first.
    pub(in crate::handler::wasm) async fn yield_now(self: Arc<Self>) {
        self.restart();
        tokio::task::yield_now().await;
        self.restart();
    }

    fn restart(&self) {
        self.last_tick_ns.store(nanos(thread_time()).max(1), Ordering::Relaxed);
    }

    /// From now on, memory growth of the event is subject to the memory rate limit.
    pub(in crate::handler::wasm) fn begin_waiting(&self) {
        self.waits.store(true, Ordering::Relaxed);
    }

    /// Whether memory growth of the event is subject to the memory rate limit.
    pub(in crate::handler::wasm) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Takes tokens of the memory rate limit. Returns whether it had to wait.
    pub(in crate::handler::wasm) async fn take(&self, memory_rate: &MemoryRateLimit, bytes: usize) -> bool {
        let has_waited = memory_rate.take(bytes).await;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        has_waited
    }

    /// Ends the rate limit of the event; returns the number of taken tokens.
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
    // The CPU clock is never negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
