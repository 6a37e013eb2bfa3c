//! Memory rate limit of a handler that keeps failing: a token bucket of bytes of memory growth.
//!
//! Idle scheduling priority protects the CPU time of other guests from a failing guest, but not the resources that CPUs
//! share: the kernel zeroes and frees its pages, and caches are evicted. While a handler keeps failing, the memory
//! growth of its quarantined instances therefore waits for tokens, so that the total costs a fixed fraction of CPU
//! time. The tokens of an event are returned when it succeeds: only failures cost. An event with little growth takes no
//! tokens.

use std::num::NonZeroU64;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::rate::{Rate, TokenBucket};

/// Rate for each CPU, in bytes per second. To zero, use and free a mebibyte takes about a millisecond of CPU time, so
/// this is a fiftieth of the CPU time. With a twentieth, guests that exhausted their memory raised the p99 of other
/// guests by a factor of 1.2.
const BYTES_EACH_SECOND: u64 = 20 << 20;

#[derive(Debug)]
pub(in crate::handler::wasm) struct MemoryRateLimit {
    /// In bytes.
    rate: Rate,
    bucket: Mutex<TokenBucket>,
    /// One permit, so that events take tokens in order (FIFO).
    queue: Semaphore,
}

impl MemoryRateLimit {
    /// A full bucket, at the rate for all CPUs.
    pub(in crate::handler::wasm) fn new() -> Self {
        Self::of(available_parallelism().map_or(1, usize::from) as u64)
    }

    fn of(cpus: u64) -> Self {
        let bytes = NonZeroU64::new(cpus.saturating_mul(BYTES_EACH_SECOND)).unwrap_or(NonZeroU64::MIN);
        Self {
            rate: Rate::smooth(bytes, Duration::from_secs(1)),
            bucket: Mutex::new(TokenBucket::full(Instant::now())),
            queue: Semaphore::new(1),
        }
    }

    /// Waits for tokens and takes them. Returns whether it had to wait.
    pub(in crate::handler::wasm) async fn take(&self, bytes: usize) -> bool {
        // The semaphore is never closed.
        let _permit = self.queue.acquire().await.ok();
        let mut has_waited = false;
        while let Err(ready) = self.try_take(Instant::now(), bytes) {
            tokio::time::sleep_until(ready.into()).await;
            has_waited = true;
        }
        has_waited
    }

    /// Takes tokens, or returns the time of the next try.
    fn try_take(&self, now: Instant, bytes: usize) -> Result<(), Instant> {
        self.bucket.lock().take(&self.rate, now, bytes as u64)
    }

    /// Returns the tokens of a successful event.
    pub(in crate::handler::wasm) fn give_back(&self, bytes: usize) {
        self.bucket.lock().give_back(&self.rate, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: usize = 1 << 20;

    /// Failing events get memory at the limited rate, in amounts of any size.
    #[test]
    fn failing_events_are_rate_limited() {
        let memory_rate = MemoryRateLimit::of(2);
        let started = Instant::now();
        let mut now = started;
        for event in 0..10 {
            match memory_rate.try_take(now, 16 * MEBIBYTE) {
                Ok(()) => assert_eq!(event, 0, "the burst, a tenth of a second's tokens, admits only the first"),
                Err(ready) => {
                    now = ready;
                    memory_rate.try_take(now, 16 * MEBIBYTE).unwrap();
                }
            }
        }
        let waited = now.duration_since(started);
        assert!((3_400..=3_600).contains(&waited.as_millis()), "9 times 16 MiB within {waited:?}");
    }

    /// While the bucket is in debt, the next event waits.
    #[tokio::test]
    async fn events_wait_for_tokens() {
        let memory_rate = MemoryRateLimit::of(2);
        assert!(!memory_rate.take(1 << 40).await);
        assert!(futures::poll!(Box::pin(memory_rate.take(1))).is_pending());
    }

    /// Successful events never wait, at any rate.
    #[tokio::test]
    async fn successful_events_are_not_limited() {
        let memory_rate = MemoryRateLimit::of(1);
        for _ in 0..1000 {
            assert!(!memory_rate.take(16 * MEBIBYTE).await);
            memory_rate.give_back(16 * MEBIBYTE);
        }
    }
}
