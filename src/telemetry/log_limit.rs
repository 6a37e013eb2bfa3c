//! Log rate limiter (token bucket) with a count of suppressed lines.
//!
//! A log to a terminal or a pipe is slow and its space is finite: lines that every event of every device can cause are
//! bounded, and the next line reports the number suppressed before it.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::rate::{Rate, TokenBucket};

/// A rate of `count` lines per `per`, with a full burst.
pub(crate) fn lines_in(count: u64, per: Duration) -> Rate {
    Rate::smooth(NonZeroU64::new(count).unwrap_or(NonZeroU64::MIN), per).with_full_burst()
}

/// Decision on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDecision {
    /// Write it.
    Yes,
    /// Write it, after a report of this many suppressed lines.
    After(u64),
    /// Suppress it.
    No,
}

/// Log budget of one source. Pure: `now` is an argument.
#[derive(Debug)]
pub(crate) struct LogBudget {
    rate: &'static Rate,
    lines: TokenBucket,
    suppressed: u64,
}

impl LogBudget {
    pub(crate) fn new(rate: &'static Rate, now: Instant) -> Self {
        Self { rate, lines: TokenBucket::full(now), suppressed: 0 }
    }

    /// Takes one line from the budget, or suppresses it.
    pub(crate) fn handle_line(&mut self, now: Instant) -> LogDecision {
        if self.lines.take(self.rate, now, 1).is_err() {
            self.suppress();
            return LogDecision::No;
        }
        match std::mem::take(&mut self.suppressed) {
            0 => LogDecision::Yes,
            suppressed => LogDecision::After(suppressed),
        }
    }

    /// Counts a line suppressed for another reason.
    pub(crate) fn suppress(&mut self) {
        self.suppressed += 1;
    }

    /// Suppressed lines that were not reported yet.
    pub(crate) fn suppressed(&self) -> u64 {
        self.suppressed
    }
}

/// Log budget shared by all sources of one kind of line.
#[derive(Clone, Debug)]
pub struct LogLimiter(Arc<Mutex<LogBudget>>);

impl LogLimiter {
    pub fn new(rate: &'static Rate) -> Self {
        Self(Arc::new(Mutex::new(LogBudget::new(rate, Instant::now()))))
    }

    /// Takes one line from the budget, or suppresses it.
    pub fn handle_line(&self) -> LogDecision {
        self.0.lock().handle_line(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static RATE: LazyLock<Rate> = LazyLock::new(|| lines_in(200, Duration::from_secs(10)));

    const LINE_INTERVAL: Duration = Duration::from_millis(50);

    /// The burst passes at once, then one line per interval; suppressed lines are reported once, with the next line.
    #[test]
    fn lines_are_bounded() {
        let start = Instant::now();
        let mut budget = LogBudget::new(&RATE, start);
        for _ in 0..200 {
            assert_eq!(budget.handle_line(start), LogDecision::Yes);
        }
        assert_eq!(budget.handle_line(start), LogDecision::No);
        assert_eq!(budget.handle_line(start + LINE_INTERVAL - Duration::from_millis(1)), LogDecision::No);
        assert_eq!(budget.handle_line(start + LINE_INTERVAL), LogDecision::After(2));
        assert_eq!(budget.handle_line(start + LINE_INTERVAL), LogDecision::No);
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), LogDecision::After(1));
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), LogDecision::Yes);
        assert_eq!(budget.handle_line(start + 3 * LINE_INTERVAL), LogDecision::No);
    }

    /// A long silence earns no more than the burst.
    #[test]
    fn silence_is_not_saved_up() {
        let start = Instant::now();
        let mut budget = LogBudget::new(&RATE, start);
        let later = start + Duration::from_secs(100_000);
        let said = (0..10_000).filter(|_| budget.handle_line(later) != LogDecision::No).count();
        assert_eq!(said, 200);
    }

    /// Clones share one budget.
    #[test]
    fn all_are_bounded_together() {
        let lines = LogLimiter::new(&RATE);
        let others = lines.clone();
        while lines.handle_line() != LogDecision::No {}
        assert!((0..100).any(|_| others.handle_line() == LogDecision::No));
    }
}
