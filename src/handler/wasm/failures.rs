//! How often the instances of a handler fail, and what follows from it.
//!
//! A failure costs far more than an event: the guest's stack is unwound and given names, a line is written, an instance is made
//! and another one given back. Devices that make their guest fail and connect again would take that from the threads that all
//! others wait for. So while a handler keeps failing, its new instances run apart until they have handled an event, and of its
//! failures only some are told. What is known of an instance that works is not touched by it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::log::HandlerLog;
use crate::handler::CallError;

/// More failures than this at once are many. One device that fails some times before it gives up is below.
const FEW_MAX: u32 = 10;

/// One failure in this time, on and on, is few.
const FORGOTTEN_AFTER: Duration = Duration::from_millis(200);

/// Failures that are remembered: six seconds after the last one there are few again, however many there were.
const REMEMBERED_MAX: u32 = 40;

/// The failures of one handler's instances.
#[derive(Debug)]
pub(super) struct Failures {
    /// There was one that is not forgotten. Without, a new connection costs one look.
    any: AtomicBool,
    recent: Mutex<Recent>,
    told: HandlerLog,
}

impl Failures {
    /// Nothing has failed yet.
    pub(super) fn new() -> Self {
        let recent = Mutex::new(Recent { count: 0, since: Instant::now() });
        Self { any: AtomicBool::new(false), recent, told: HandlerLog::of_failures() }
    }

    /// An instance has failed. One that could not be made because there are too many is not at fault.
    pub(super) fn handle(&self, error: &CallError) {
        match error {
            CallError::Fault(_) | CallError::Timeout(_) => {
                self.recent.lock().handle_failure(Instant::now());
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
        let mut recent = self.recent.lock();
        let count = recent.count(Instant::now());
        if count == 0 {
            self.any.store(false, Ordering::Relaxed);
        }
        count > FEW_MAX
    }

    /// Whether one more may be told with its backtrace.
    pub(super) fn may_be_told(&self) -> bool {
        self.told.may_say()
    }
}

/// How many failures are remembered. Pure: `now` is an argument.
#[derive(Debug)]
struct Recent {
    count: u32,
    /// When the last one was forgotten.
    since: Instant,
}

impl Recent {
    fn handle_failure(&mut self, now: Instant) {
        self.count = (self.count(now) + 1).min(REMEMBERED_MAX);
    }

    fn count(&mut self, now: Instant) -> u32 {
        let intervals = now.saturating_duration_since(self.since).as_millis() / FORGOTTEN_AFTER.as_millis();
        let forgotten = u32::try_from(intervals).unwrap_or(u32::MAX);
        if forgotten >= self.count {
            self.count = 0;
            self.since = now;
        } else {
            self.count -= forgotten;
            self.since += FORGOTTEN_AFTER * forgotten;
        }
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few at once are few, one more is many, and they are few again as soon as one is forgotten.
    #[test]
    fn many_at_once() {
        let start = Instant::now();
        let mut recent = Recent { count: 0, since: start };
        for _ in 0..=FEW_MAX {
            recent.handle_failure(start);
        }
        assert_eq!(recent.count(start), FEW_MAX + 1);
        assert_eq!(recent.count(start + FORGOTTEN_AFTER - Duration::from_millis(1)), FEW_MAX + 1);
        assert_eq!(recent.count(start + FORGOTTEN_AFTER), FEW_MAX);
        assert_eq!(recent.count(start + FORGOTTEN_AFTER * 100), 0);
    }

    /// As many as are forgotten never become many; twice as many do, and are forgotten within the time that is promised.
    #[test]
    fn many_in_a_row() {
        let start = Instant::now();
        let mut recent = Recent { count: 0, since: start };
        for turn in 0..1000 {
            recent.handle_failure(start + FORGOTTEN_AFTER * turn);
        }
        let mut now = start + FORGOTTEN_AFTER * 1000;
        assert!(recent.count(now) <= 1);
        for _ in 0..1000 {
            now += FORGOTTEN_AFTER / 2;
            recent.handle_failure(now);
        }
        assert_eq!(recent.count(now), REMEMBERED_MAX);
        assert_eq!(recent.count(now + Duration::from_secs(6)), FEW_MAX);
    }

    /// A ceiling that is reached says nothing against a guest.
    #[test]
    fn a_full_gateway_is_no_failure() {
        let failures = Failures::new();
        for _ in 0..100 {
            failures.handle(&CallError::Unavailable("full".to_owned()));
            failures.handle(&CallError::Unfit("no".to_owned()));
        }
        assert!(!failures.are_many());
        for _ in 0..100 {
            failures.handle(&CallError::Fault("trap".to_owned()));
        }
        assert!(failures.are_many());
    }
}
