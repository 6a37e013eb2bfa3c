//! How many lines somebody may add to the log.
//!
//! A log that is written to a terminal or a pipe is slow and its space is finite: what comes with every event of every device is
//! bounded, and what was left out is told with the next line.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::rate::{Rate, TokenBucket};

/// So many lines in this time, all at once if need be.
pub(crate) fn lines_in(count: u64, per: Duration) -> Rate {
    Rate::smooth(NonZeroU64::new(count).unwrap_or(NonZeroU64::MIN), per).with_full_burst()
}

/// Whether a line may be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDecision {
    /// Yes.
    Yes,
    /// Yes, and before it so many were left out.
    After(u64),
    /// No; it is left out.
    No,
}

/// How many lines may still be said. Pure: `now` is an argument.
#[derive(Debug)]
pub(crate) struct LogBudget {
    rate: &'static Rate,
    lines: TokenBucket,
    suppressed: u64,
}

impl LogBudget {
    /// Nothing is said yet.
    pub(crate) fn new(rate: &'static Rate, now: Instant) -> Self {
        Self { rate, lines: TokenBucket::full(now), suppressed: 0 }
    }

    /// Takes one more line, or leaves it out.
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

    /// A line is left out for another reason.
    pub(crate) fn suppress(&mut self) {
        self.suppressed += 1;
    }

    /// Lines that were left out and not told of.
    pub(crate) fn suppressed(&self) -> u64 {
        self.suppressed
    }
}

/// The same for all who speak of one thing.
#[derive(Clone, Debug)]
pub struct LogLimiter(Arc<Mutex<LogBudget>>);

impl LogLimiter {
    /// Nothing is said yet.
    pub fn new(rate: &'static Rate) -> Self {
        Self(Arc::new(Mutex::new(LogBudget::new(rate, Instant::now()))))
    }

    /// Takes one more line, or leaves it out.
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

    /// So many lines at once, then one an interval; what was left out is told with the next line, once.
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

    /// A long silence earns no more than may be said at once.
    #[test]
    fn silence_is_not_saved_up() {
        let start = Instant::now();
        let mut budget = LogBudget::new(&RATE, start);
        let later = start + Duration::from_secs(100_000);
        let said = (0..10_000).filter(|_| budget.handle_line(later) != LogDecision::No).count();
        assert_eq!(said, 200);
    }

    /// Who speaks of the same thing is bounded together.
    #[test]
    fn all_are_bounded_together() {
        let lines = LogLimiter::new(&RATE);
        let others = lines.clone();
        while lines.handle_line() != LogDecision::No {}
        assert!((0..100).any(|_| others.handle_line() == LogDecision::No));
    }
}
