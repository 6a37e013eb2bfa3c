//! How often the instances of a handler fail, and what follows from it.
//!
//! A failure costs far more than an event: the guest's stack is unwound and given names, a line is written, an instance is made
//! and another one given back. Devices that make their guest fail and connect again would take that from the threads that all
//! others wait for. So while a handler keeps failing, its new instances run aside until they have handled an event, and of its
//! failures only some are told. What is known of an instance that works is not touched by it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::log::of_failures;
use crate::handler::CallError;
use crate::telemetry::{Lines, MaySay};

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
pub(super) struct Failures {
    /// There was one that is not forgotten. Without, a new connection costs one look.
    any: AtomicBool,
    recent: Mutex<Recent>,
    told: Lines,
}

impl Failures {
    /// Nothing has failed yet.
    pub(super) fn new() -> Self {
        let recent = Mutex::new(Recent { forgotten_at: Instant::now() });
        Self { any: AtomicBool::new(false), recent, told: of_failures() }
    }

    /// An instance has failed in an event that took so much CPU time. One that could not be made because there are too many
    /// is not at fault.
    pub(super) fn handle(&self, error: &CallError, cpu_time: Duration) {
        match error {
            CallError::Fault(_) | CallError::Timeout(_) => {
                self.recent.lock().handle_failure(Instant::now(), cpu_time);
                self.any.store(true, Ordering::Relaxed);
            }
            CallError::Unavailable(_) | CallError::Unfit(_) => {}
        }
    }

    /// Whether there were many lately.
    pub(super) fn are_many(&self) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let (recent, now) = (self.recent.lock(), Instant::now());
        if recent.forgotten_at <= now {
            self.any.store(false, Ordering::Relaxed);
        }
        recent.are_many(now)
    }

    /// Whether one more may be told with its backtrace.
    pub(super) fn may_be_told(&self) -> bool {
        self.told.handle_line() != MaySay::No
    }
}

/// The failures that are remembered. Pure: `now` is an argument.
#[derive(Debug)]
struct Recent {
    /// When the last one is forgotten; they are forgotten one after the other.
    forgotten_at: Instant,
}

impl Recent {
    fn handle_failure(&mut self, now: Instant, cpu_time: Duration) {
        let forgotten_in = FORGOTTEN_AFTER.saturating_add(cpu_time.saturating_mul(CPU_TIME_COUNTS)).min(REMEMBERED_MAX);
        let forgotten_at = self.forgotten_at.max(now) + forgotten_in;
        self.forgotten_at = forgotten_at.min(now + FORGOTTEN_AFTER * FEW_MAX + REMEMBERED_MAX);
    }

    fn are_many(&self, now: Instant) -> bool {
        self.forgotten_at > now + FORGOTTEN_AFTER * FEW_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::ZERO;

    fn none(now: Instant) -> Recent {
        Recent { forgotten_at: now }
    }

    /// Few at once are few, one more is many, and they are few again as soon as one is forgotten.
    #[test]
    fn many_at_once() {
        let start = Instant::now();
        let mut recent = none(start);
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
        let mut recent = none(start);
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
            let mut recent = none(start);
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
        let failures = Failures::new();
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
