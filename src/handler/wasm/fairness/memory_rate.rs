//! What memory the events of a handler that keeps failing may take, and how fast.
//!
//! Threads that get spare time only keep a failing guest from the processors, and not from what processors share: the kernel
//! zeroes the guest's pages and takes them back, and the caches forget what the others have there. So where a handler fails
//! again and again, the events of its instances that have handled nothing yet wait for the memory that they take, so that all of
//! it together costs a fixed share of the processors. What an event has taken is given back when it succeeds: only failures
//! cost, and an event that takes little waits for nobody.

use std::num::NonZeroU64;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::rate::{Rate, TokenBucket};

/// What such a handler gets of memory in a second for each processor: a mebibyte that is zeroed, used and taken back takes a
/// processor about a millisecond, so it is a fiftieth of them. With a twentieth, guests that took all their memory made the
/// others' p99 1.2 times as long.
const BYTES_EACH_SECOND: u64 = 20 << 20;

/// The share of one handler.
#[derive(Debug)]
pub(in crate::handler::wasm) struct MemoryRateLimit {
    /// In bytes.
    rate: Rate,
    left: Mutex<TokenBucket>,
    /// Who gets memory next; the others wait behind it, in order.
    next: Semaphore,
}

impl MemoryRateLimit {
    /// A fiftieth of the processors, all of it there.
    pub(in crate::handler::wasm) fn new() -> Self {
        Self::of(available_parallelism().map_or(1, usize::from) as u64)
    }

    fn of(processors: u64) -> Self {
        let bytes = NonZeroU64::new(processors.saturating_mul(BYTES_EACH_SECOND)).unwrap_or(NonZeroU64::MIN);
        Self {
            rate: Rate::smooth(bytes, Duration::from_secs(1)),
            left: Mutex::new(TokenBucket::full(Instant::now())),
            next: Semaphore::new(1),
        }
    }

    /// Waits until an event may have so many bytes more, and takes them. Whether it had to wait comes back.
    pub(in crate::handler::wasm) async fn take(&self, bytes: usize) -> bool {
        // The semaphore is never closed.
        let _next = self.next.acquire().await.ok();
        let mut has_waited = false;
        while let Err(ready) = self.try_take(Instant::now(), bytes) {
            tokio::time::sleep_until(ready.into()).await;
            has_waited = true;
        }
        has_waited
    }

    /// Takes so many bytes, or tells when there will be some.
    fn try_take(&self, now: Instant, bytes: usize) -> Result<(), Instant> {
        self.left.lock().take(&self.rate, now, bytes as u64)
    }

    /// Gives back what an event has taken that succeeded.
    pub(in crate::handler::wasm) fn give_back(&self, bytes: usize) {
        self.left.lock().give_back(&self.rate, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: usize = 1 << 20;

    /// Events that fail get memory as slowly as the share says, however much each takes.
    #[test]
    fn failures_share_what_there_is() {
        let memory_rate = MemoryRateLimit::of(2);
        let started = Instant::now();
        let mut now = started;
        for event in 0..10 {
            match memory_rate.try_take(now, 16 * MEBIBYTE) {
                Ok(()) => assert_eq!(event, 0, "a tenth of a second's share is there at once, and less than this"),
                Err(ready) => {
                    now = ready;
                    memory_rate.try_take(now, 16 * MEBIBYTE).unwrap();
                }
            }
        }
        let waited = now.duration_since(started);
        assert!((3_400..=3_600).contains(&waited.as_millis()), "9 times 16 MiB within {waited:?}");
    }

    /// Once more than there is has been taken, the next one waits.
    #[tokio::test]
    async fn memory_is_waited_for() {
        let memory_rate = MemoryRateLimit::of(2);
        assert!(!memory_rate.take(1 << 40).await);
        assert!(futures::poll!(Box::pin(memory_rate.take(1))).is_pending());
    }

    /// Successes wait for nobody, however many there are.
    #[tokio::test]
    async fn successes_are_free() {
        let memory_rate = MemoryRateLimit::of(1);
        for _ in 0..1000 {
            assert!(!memory_rate.take(16 * MEBIBYTE).await);
            memory_rate.give_back(16 * MEBIBYTE);
        }
    }
}
