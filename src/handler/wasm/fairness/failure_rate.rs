//! How often the instances of a handler fail, and what follows from it.
//!
//! A failure costs far more than an event: the guest's stack is unwound and given names, a line is written, an instance is made
//! and another one given back. Devices that make their guest fail and connect again would take that from the threads that all
//! others wait for. So while a handler keeps failing, its new instances run aside until they have handled an event, and of its
//! failures only some are told. What is known of an instance that works is not touched by it.

use std::num::NonZeroU64;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::handler::CallError;
use crate::handler::wasm::log::of_failures;
use crate::rate::{Rate, TokenBucket};
use crate::telemetry::{LogDecision, LogLimiter};

/// More failures than this at once are many. One device that fails some times before it gives up is below.
const FEW_MAX: u32 = 10;

/// One failure in this time, on and on, is few.
const FORGOTTEN_AFTER: Duration = Duration::from_millis(200);

/// The CPU time that a failure took is forgotten in so many times its length: 4 ms of it are as bad as the failure, and an
/// endless loop is as bad as some hundred traps.
const CPU_TIME_COUNTS: u32 = 50;

/// So long after the last failure there are few again, however many there were. An event that is waited for longer has failed.
const REMEMBERED_MAX: Duration = Duration::from_secs(30);

/// The failures of one handler's instances.
#[derive(Debug)]
pub(in crate::handler::wasm) struct FailureRate {
    /// There was one that is not forgotten. Without, a new connection costs one look.
    any: AtomicBool,
    recent: Mutex<RecentFailures>,
    reported: LogLimiter,
}

impl FailureRate {
    /// Nothing has failed yet.
    pub(in crate::handler::wasm) fn new() -> Self {
        let recent = Mutex::new(RecentFailures::none(Instant::now()));
        Self { any: AtomicBool::new(false), recent, reported: of_failures() }
    }

    /// An instance has failed in an event that took so much CPU time. One that could not be made because there are too many
    /// is not at fault.
    pub(in crate::handler::wasm) fn handle(&self, error: &CallError, cpu_time: Duration) {
        match error {
            CallError::Fault(_) | CallError::Timeout(_) => {
                self.recent.lock().handle_failure(Instant::now(), cpu_time);
                self.any.store(true, Ordering::Relaxed);
            }
            CallError::Unavailable(_) | CallError::Unfit(_) => {}
        }
    }

    /// Whether there were many lately.
    pub(in crate::handler::wasm) fn are_many(&self) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let (recent, now) = (self.recent.lock(), Instant::now());
        if recent.are_forgotten(now) {
            self.any.store(false, Ordering::Relaxed);
        }
        recent.are_many(now)
    }

    /// Whether one more may be told with its backtrace.
    pub(in crate::handler::wasm) fn should_log(&self) -> bool {
        self.reported.handle_line() != LogDecision::No
    }
}

/// Failures that are not forgotten yet, as a token bucket whose unit is a nanosecond: a failure takes the time in which it is
/// forgotten. Pure: `now` is an argument.
#[derive(Debug)]
struct RecentFailures(TokenBucket);

/// Ten failures at once empty the bucket; it refills in the time in which they are forgotten.
static FORGETTING: LazyLock<Rate> = LazyLock::new(|| {
    let burst = FORGOTTEN_AFTER * FEW_MAX;
    Rate::smooth(NonZeroU64::new(nanos(burst)).unwrap_or(NonZeroU64::MIN), burst).with_full_burst()
});

impl RecentFailures {
    fn none(now: Instant) -> Self {
        Self(TokenBucket::full(now))
    }

    fn handle_failure(&mut self, now: Instant, cpu_time: Duration) {
        let forgotten_in = FORGOTTEN_AFTER.saturating_add(cpu_time.saturating_mul(CPU_TIME_COUNTS)).min(REMEMBERED_MAX);
        self.0.charge(&FORGETTING, now, nanos(forgotten_in));
        self.0.cap_debt(&FORGETTING, now, nanos(REMEMBERED_MAX));
    }

    fn are_many(&self, now: Instant) -> bool {
        self.0.is_in_debt(&FORGETTING, now)
    }

    fn are_forgotten(&self, now: Instant) -> bool {
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

    /// Few at once are few, one more is many, and they are few again as soon as one is forgotten.
    #[test]
    fn many_at_once() {
        let start = Instant::now();
        let mut recent = RecentFailures::none(start);
        for _ in 0..FEW_MAX {
            recent.handle_failure(start, QUICK);
        }
        assert!(!recent.are_many(start));
        recent.handle_failure(start, QUICK);
        assert!(recent.are_many(start + FORGOTTEN_AFTER - Duration::from_millis(1)));
        assert!(!recent.are_many(start + FORGOTTEN_AFTER));
    }

    /// As many as are forgotten never become many; twice as many do, and are few again within the time that is promised.
    #[test]
    fn many_in_a_row() {
        let start = Instant::now();
        let mut recent = RecentFailures::none(start);
        for turn in 0..1000 {
            recent.handle_failure(start + FORGOTTEN_AFTER * turn, QUICK);
            assert!(!recent.are_many(start + FORGOTTEN_AFTER * turn));
        }
        let mut now = start + FORGOTTEN_AFTER * 1000;
        for _ in 0..1000 {
            now += FORGOTTEN_AFTER / 2;
            recent.handle_failure(now, QUICK);
        }
        assert!(recent.are_many(now + REMEMBERED_MAX - Duration::from_millis(1)));
        assert!(!recent.are_many(now + REMEMBERED_MAX));
    }

    /// A single one is many where it took the processors for long, and not where it took them a little longer than most.
    #[test]
    fn a_long_one_is_many() {
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

    /// A ceiling that is reached says nothing against a guest.
    #[test]
    fn a_full_gateway_is_no_failure() {
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
