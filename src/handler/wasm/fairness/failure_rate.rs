//! Failure rate of a handler's instances: a token bucket (GCRA) of traps and timeouts, weighted by their CPU time.
//!
//! A failure costs far more than an event: a backtrace with symbols, a log line, a new instance and the drop of the old
//! one. Devices that make their guest fail and then reconnect would put that load on the worker threads of all
//! connections. While a handler keeps failing, its new instances are therefore quarantined until their first successful
//! event, and backtraces are rate-limited. Instances without a failure are not affected.

use std::num::NonZeroU64;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::handler::CallError;
use crate::handler::wasm::log::failure_limiter;
use crate::rate::{Rate, TokenBucket};
use crate::telemetry::{LogDecision, LogLimiter};

/// Burst: more failures than this at once are many. A device that retries a few times stays below.
const BURST_FAILURES: u32 = 10;

/// Refill time of one failure: a steady rate of one failure in this interval is not many.
const REFILL_INTERVAL: Duration = Duration::from_millis(200);

/// Weight of the CPU time of a failure: its refill takes this many times as long. 4 ms of CPU time weigh as much as the
/// failure itself, and an endless loop as much as a few hundred traps.
const CPU_TIME_WEIGHT: u32 = 50;

/// Maximum debt: this long after the last failure, the failures are few again, whatever their number. An event that
/// waits longer has failed.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(in crate::handler::wasm) struct FailureRate {
    /// Whether the bucket may not be full. While false, a new connection costs one atomic load.
    has_recent: AtomicBool,
    recent: Mutex<RecentFailures>,
    log_limiter: LogLimiter,
}

impl FailureRate {
    pub(in crate::handler::wasm) fn new() -> Self {
        let recent = Mutex::new(RecentFailures::none(Instant::now()));
        Self { has_recent: AtomicBool::new(false), recent, log_limiter: failure_limiter() }
    }

    /// Counts the failure of an event with this CPU time. A reached instance limit is not a failure of the guest and is
    /// not counted.
    pub(in crate::handler::wasm) fn handle(&self, error: &CallError, cpu_time: Duration) {
        match error {
            CallError::Fault(_) | CallError::Timeout(_) => {
                self.recent.lock().handle_failure(Instant::now(), cpu_time);
                self.has_recent.store(true, Ordering::Relaxed);
            }
            CallError::Unavailable(_) | CallError::Unfit(_) => {}
        }
    }

    /// Whether the handler keeps failing: the bucket is in debt.
    pub(in crate::handler::wasm) fn are_many(&self) -> bool {
        if !self.has_recent.load(Ordering::Relaxed) {
            return false;
        }
        let (recent, now) = (self.recent.lock(), Instant::now());
        if recent.is_full(now) {
            self.has_recent.store(false, Ordering::Relaxed);
        }
        recent.are_many(now)
    }

    /// Whether the log limit admits another backtrace.
    pub(in crate::handler::wasm) fn should_log(&self) -> bool {
        self.log_limiter.handle_line() != LogDecision::No
    }
}

/// Token bucket with nanoseconds as tokens: a failure takes its refill time. Pure: `now` is an argument.
#[derive(Debug)]
struct RecentFailures(TokenBucket);

/// [`BURST_FAILURES`] failures empty the bucket, which refills in their refill time.
static RATE: LazyLock<Rate> = LazyLock::new(|| {
    let burst = REFILL_INTERVAL * BURST_FAILURES;
    Rate::smooth(NonZeroU64::new(nanos(burst)).unwrap_or(NonZeroU64::MIN), burst).with_full_burst()
});

impl RecentFailures {
    fn none(now: Instant) -> Self {
        Self(TokenBucket::full(now))
    }

    fn handle_failure(&mut self, now: Instant, cpu_time: Duration) {
        let refill_time = REFILL_INTERVAL.saturating_add(cpu_time.saturating_mul(CPU_TIME_WEIGHT)).min(RECOVERY_MAX);
        self.0.charge(&RATE, now, nanos(refill_time));
        self.0.cap_debt(&RATE, now, nanos(RECOVERY_MAX));
    }

    fn are_many(&self, now: Instant) -> bool {
        self.0.is_in_debt(&RATE, now)
    }

    fn is_full(&self, now: Instant) -> bool {
        self.0.is_full(now)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::ZERO;

    /// A burst of the allowed size is not many; one more is, until one has refilled.
    #[test]
    fn a_burst_is_limited() {
        let start = Instant::now();
        let mut recent = RecentFailures::none(start);
        for _ in 0..BURST_FAILURES {
            recent.handle_failure(start, QUICK);
        }
        assert!(!recent.are_many(start));
        recent.handle_failure(start, QUICK);
        assert!(recent.are_many(start + REFILL_INTERVAL - Duration::from_millis(1)));
        assert!(!recent.are_many(start + REFILL_INTERVAL));
    }

    /// Failures at the refill rate never become many; twice the rate does, and recovers within the maximum debt.
    #[test]
    fn a_steady_rate_is_limited() {
        let start = Instant::now();
        let mut recent = RecentFailures::none(start);
        for number in 0..1000 {
            recent.handle_failure(start + REFILL_INTERVAL * number, QUICK);
            assert!(!recent.are_many(start + REFILL_INTERVAL * number));
        }
        let mut now = start + REFILL_INTERVAL * 1000;
        for _ in 0..1000 {
            now += REFILL_INTERVAL / 2;
            recent.handle_failure(now, QUICK);
        }
        assert!(recent.are_many(now + RECOVERY_MAX - Duration::from_millis(1)));
        assert!(!recent.are_many(now + RECOVERY_MAX));
    }

    /// A single failure is many if its CPU time was long.
    #[test]
    fn cpu_time_is_weighted() {
        let start = Instant::now();
        let are_many_after = |cpu_time| {
            let mut recent = RecentFailures::none(start);
            recent.handle_failure(start, cpu_time);
            recent.are_many(start)
        };
        assert!(!are_many_after(Duration::from_millis(36)));
        assert!(are_many_after(Duration::from_millis(37)));
        assert!(are_many_after(Duration::MAX));
    }

    /// A reached instance limit is not counted as a failure.
    #[test]
    fn the_instance_limit_is_no_failure() {
        let failures = FailureRate::new();
        for _ in 0..100 {
            failures.handle(&CallError::Unavailable("full".to_owned()), Duration::ZERO);
            failures.handle(&CallError::Unfit("no".to_owned()), Duration::ZERO);
        }
        assert!(!failures.are_many());
        for _ in 0..100 {
            failures.handle(&CallError::Fault("trap".to_owned()), Duration::ZERO);
        }
        assert!(failures.are_many());
    }
}
